"""How rows are written: scores dense or the highest with the mass of the rest, features in fp16 or int8.

A codec turns rows ``(n, c)`` into arrays of n rows each, the fields; these are what lies on the disk, and what travels
to the device, where they become rows again.
"""

from __future__ import annotations

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


def codec_of(described: Mapping[str, Any]) -> Codec:
    """The codec that `Codec.describe` told of."""
    given = {key: value for key, value in described.items() if key != "codec"}
    kinds: dict[str, Any] = {"fp16": Half, "fp32": Whole, "top_k": TopK, "int8": Int8}
    made: Codec = kinds[described["codec"]](**given)
    return made
