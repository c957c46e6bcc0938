"""How rows are written: scores dense, the highest with the mass of the rest or in a basis, features in fp16 or int8.

A codec turns rows ``(n, c)`` into arrays of n rows each, the fields; these are what lies on the disk, and what travels
to the device, where they become rows again.
"""

from __future__ import annotations

import base64
import heapq
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Fields = tuple[tuple[str, int], ...]
#: Beyond it fp16 is infinite; a score of minus infinity (a class that is masked) is kept as the least there is.
LARGEST = 65504.0


class Codec(Protocol):
    """Of one signal."""

    width: int
    #: Type and width of each field; bytes of a row are the sum of theirs.
    fields: Fields
    #: How each field is told from the others in a file of arrays: what comes behind the signal's name.
    names: tuple[str, ...]

    def encode(self, rows: Tensor) -> list[Array]:
        """``(n, c)`` finite rows to fields ``(n, width)``. Raises `OverflowError` for what cannot be written."""
        ...

    def decode(self, fields: Sequence[Tensor]) -> Tensor:
        """Fields back to ``(n, c)``."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON from which `codec_of` makes it again."""
        ...


#: What of a codec's description was fitted to rows, and nobody set.
FITTED = ("scale", "basis", "bits")


def settings(codec: Codec) -> dict[str, Any]:
    """A codec's description without what was fitted to rows."""
    return {key: value for key, value in codec.describe().items() if key not in FITTED}


def row_bytes(codec: Codec) -> int:
    return sum(np.dtype(kind).itemsize * width for kind, width in codec.fields)


class Half:
    """Rows as they are, in fp16."""

    names: tuple[str, ...] = ("",)

    def __init__(self, width: int) -> None:
        self.width = width
        self.fields: Fields = (("<f2", width),)

    def encode(self, rows: Tensor) -> list[Array]:
        if rows.numel() and float(rows.max()) > LARGEST:
            raise OverflowError(f"{float(rows.max()):.3g} is beyond fp16")
        return [rows.clamp(min=-LARGEST).half().cpu().numpy()]

    def decode(self, fields: Sequence[Tensor]) -> Tensor:
        return fields[0]

    def describe(self) -> dict[str, Any]:
        return {"codec": "fp16", "width": self.width}


class Whole:
    """Rows as they are, in fp32: coordinates, by which others are found."""

    names: tuple[str, ...] = ("",)

    def __init__(self, width: int) -> None:
        self.width = width
        self.fields: Fields = (("<f4", width),)

    def encode(self, rows: Tensor) -> list[Array]:
        return [rows.float().cpu().numpy()]

    def decode(self, fields: Sequence[Tensor]) -> Tensor:
        return fields[0]

    def describe(self) -> dict[str, Any]:
        return {"codec": "fp32", "width": self.width}


class TopK:
    """The `k` highest scores, and one score for all others, by which their mass at `temperature` is right.

    With z the scores of a row, R the others and T the temperature, every one of R is given

        v = T log( 1/|R| sum over R of exp(z_j / T) ),

    so that softmax(z / T) of each kept class, and its sum over R, are what they were. Written are the highest score and
    all others relative to it: fp16 is finest near 0, where the mass is.
    """

    names: tuple[str, ...] = (".index", ".values")

    def __init__(self, width: int, k: int, temperature: float = 1.0) -> None:
        if not 0 < k < width:
            raise ValueError(f"{k} of {width} scores")
        self.width, self.k, self.temperature = width, k, temperature
        index = "u1" if width <= 2**8 else "<u2" if width <= 2**16 else "<u4"
        self.fields: Fields = ((index, k), ("<f2", k + 1))

    def encode(self, rows: Tensor) -> list[Array]:
        rows = rows.double() if rows.dtype == torch.float64 else rows.float()
        kept = rows.topk(self.k, dim=-1)
        rest = rows.scatter(-1, kept.indices, -torch.inf)
        count = self.width - self.k
        v = self.temperature * (torch.logsumexp(rest / self.temperature, dim=-1, keepdim=True) - np.log(count))
        highest = kept.values[:, :1]
        if rows.numel() and float(highest.abs().max()) > LARGEST:
            raise OverflowError(f"{float(highest.abs().max()):.3g} is beyond fp16")
        values = torch.cat([highest, kept.values[:, 1:] - highest, v - highest], dim=-1)
        index = kept.indices.cpu().numpy().astype(self.fields[0][0])
        return [index, values.clamp(min=-LARGEST).half().cpu().numpy()]

    def decode(self, fields: Sequence[Tensor]) -> Tensor:
        index, values = fields[0].long(), fields[1].float()
        highest = values[:, :1]
        rows = (highest + values[:, -1:]).repeat(1, self.width)
        kept = torch.cat([highest, highest + values[:, 1:-1]], dim=-1)
        return rows.scatter_(-1, index, kept)

    def describe(self) -> dict[str, Any]:
        return {"codec": "top_k", "width": self.width, "k": self.k, "temperature": self.temperature}


class Int8:
    """Whole numbers from -127 to 127 times a scale for each channel; what lies beyond is cut, and counted."""

    names: tuple[str, ...] = ("",)

    def __init__(self, width: int, scale: Sequence[float]) -> None:
        self.width = width
        self.scale = torch.tensor(scale, dtype=torch.float32)
        self.fields: Fields = (("i1", width),)
        self.cut = self.seen = 0

    @classmethod
    def fitted(cls, rows: Tensor) -> Int8:
        """Scales by which the largest of `rows` ``(n, c)`` is 127."""
        largest = rows.detach().float().abs().amax(dim=0) if len(rows) else torch.ones(rows.shape[-1])
        return cls(rows.shape[-1], (largest.clamp(min=1e-12) / 127).tolist())

    def encode(self, rows: Tensor) -> list[Array]:
        whole = (rows.float() / self.scale.to(rows.device)).round()
        self.cut += int((whole.abs() > 127).sum())
        self.seen += whole.numel()
        return [whole.clamp(-127, 127).to(torch.int8).cpu().numpy()]

    def decode(self, fields: Sequence[Tensor]) -> Tensor:
        if self.scale.device != fields[0].device:
            self.scale = self.scale.to(fields[0].device)
        return fields[0] * self.scale

    def describe(self) -> dict[str, Any]:
        return {"codec": "int8", "width": self.width, "scale": self.scale.tolist()}


class Basis:
    """Scores as coefficients in a basis that was fitted to some of them, each with bits of its own.

    Scores of N classes come of a head that is fed with d < N numbers, so that they all lie near few directions. With m
    the mean of the fitted rows, v_1, v_2, ... their principal directions and s_i the step of the i-th coefficient,

        z = m + sum over i of s_i (k_i - (2^b_i - 1) / 2) v_i,

    where k_i is a whole number of b_i bits, from 0 to 8. Steps are such that the largest fitted coefficient is the
    largest that there is; what lies beyond is cut, and counted. Bits go where they take most squared error away, until
    a row has no more (water-filling: Cover and Thomas, Elements of Information Theory, section 10.3.3). They lie behind
    one another, the lowest first.
    """

    names: tuple[str, ...] = ("",)

    def __init__(self, width: int, size: int, bits: Sequence[int], basis: str) -> None:
        """`size` bytes a row were asked for; `basis` is base64 of ``(1 + r, width)`` float32, m and ``s_i v_i``."""
        rows = torch.from_numpy(np.frombuffer(base64.b64decode(basis), "<f4").reshape(-1, width).copy())
        self.width, self.size, self.bits, self.mean, self.basis = width, size, tuple(bits), rows[0], rows[1:]
        if len(self.bits) != len(self.basis) or not all(0 < b <= 8 for b in self.bits):
            raise ValueError(f"{len(self.bits)} numbers of bits from 1 to 8 for {len(self.basis)} coefficients")
        self.fields: Fields = (("u1", (sum(self.bits) + 7) // 8),)
        held = torch.tensor(self.bits)
        self._first, self._most = held.cumsum(0) - held, 2**held - 1
        self.cut = self.seen = 0

    @classmethod
    def fitted(cls, rows: Tensor, size: int) -> Basis:
        """Of at most `size` bytes a row, to rows ``(n, c)``, those that are finite."""
        rows = rows.detach().float().cpu()
        rows = rows[torch.isfinite(rows).all(dim=1)]
        rows = rows if len(rows) else rows.new_zeros(1, rows.shape[1])
        mean = rows.mean(dim=0)
        _, sizes, directions = torch.linalg.svd(rows - mean, full_matrices=False)
        directions = directions[: max(1, int((sizes > 1e-5 * sizes[0]).sum()))]  # the others are what fp32 rounds
        coefficients = (rows - mean) @ directions.T
        largest = coefficients.abs().amax(dim=0).clamp(min=1e-12)
        left = [coefficients.square().mean(dim=0)]
        for b in range(1, 9):
            step = largest / ((2**b - 1) / 2)
            codes = _codes(coefficients / step, torch.tensor(2**b - 1))
            left.append(((codes - (2**b - 1) / 2) * step - coefficients).square().mean(dim=0))
        bits = torch.tensor(shared(torch.stack(left, dim=1).tolist(), 8 * size))
        used = bits > 0
        step = largest[used] / ((2 ** bits[used] - 1) / 2)
        held = torch.cat([mean[None], directions[used] * step[:, None]])
        return cls(rows.shape[1], size, bits[used].tolist(), _text(held))

    def encode(self, rows: Tensor) -> list[Array]:
        rows = rows.float()
        if not bool(torch.isfinite(rows).all()):
            raise OverflowError("-inf, of a class that it does not know, is in no basis: use top_k, or all scores")
        mean, basis = self.mean.to(rows.device), self.basis.to(rows.device)
        q = ((rows - mean) @ (basis / basis.square().sum(dim=1, keepdim=True)).T).cpu()
        self.cut += int((q.abs() > (self._most + 1) / 2).sum())
        self.seen += q.numel()
        codes: Array = _codes(q, self._most).numpy().astype(np.uint8)
        one = np.concatenate([(codes[:, i : i + 1] >> np.arange(b)) & 1 for i, b in enumerate(self.bits)], axis=1)
        return [np.packbits(one.astype(np.uint8), axis=1, bitorder="little")]

    def decode(self, fields: Sequence[Tensor]) -> Tensor:
        device = fields[0].device
        if self.mean.device != device:
            self.mean, self.basis = self.mean.to(device), self.basis.to(device)
            self._first, self._most = self._first.to(device), self._most.to(device)
        held = torch.nn.functional.pad(fields[0].int(), (0, 1))
        at = self._first // 8  # a number lies in two bytes at most
        codes = (held[:, at] | held[:, at + 1] << 8) >> (self._first % 8).int() & self._most.int()
        return torch.addmm(self.mean, codes - self._most / 2, self.basis)

    def describe(self) -> dict[str, Any]:
        held = torch.cat([self.mean[None], self.basis])
        told = {"codec": "basis", "width": self.width, "size": self.size}
        return {**told, "bits": list(self.bits), "basis": _text(held)}


def _codes(q: Tensor, most: Tensor) -> Tensor:
    """Whole numbers from 0 to `most`, which is odd, of coefficients in steps around 0."""
    return (q + most / 2).round().clamp(min=0).minimum(most.to(q))


def _text(rows: Tensor) -> str:
    return base64.b64encode(rows.cpu().numpy().astype("<f4").tobytes()).decode()


def shared(left: Sequence[Sequence[float]], bits: int) -> list[int]:
    """How many of `bits` each coefficient gets, at least one of them some.

    Args:
        left: squared error of each coefficient by its number of bits, from none on.
    """
    given, waiting = [0] * len(left), list[tuple[float, int, int]]()

    def ask(i: int) -> None:
        """The best that it could make of some more, by bit."""
        errors, has = left[i], given[i]
        if more := [((errors[has] - errors[b]) / (b - has), b) for b in range(has + 1, len(errors))]:
            gain, b = max(more)
            heapq.heappush(waiting, (-gain, i, b))

    for i in range(len(left)):
        ask(i)
    while waiting and bits:
        gain, i, b = heapq.heappop(waiting)
        if b - given[i] <= bits and (gain < 0 or not any(given)):
            bits -= b - given[i]
            given[i] = b
            ask(i)
    return given if any(given) else [min(bits, 8), *given[1:]]


def codec_of(described: Mapping[str, Any]) -> Codec:
    """The codec that `Codec.describe` told of."""
    given = {key: value for key, value in described.items() if key != "codec"}
    kinds: dict[str, Any] = {"fp16": Half, "fp32": Whole, "top_k": TopK, "int8": Int8, "basis": Basis}
    made: Codec = kinds[described["codec"]](**given)
    return made
