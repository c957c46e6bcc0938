"""A compressed model's weights in one file, as codes: ``packed.safetensors``, which answers as what was trained.

Names and shapes are those of the model that the folder's card names, so the file holds numbers only: all codes, all
numbers that turn codes into weights, and all weights that are kept whole, each laid end to end in the order of the
model's state. Codes may be by Huffman's code, one for all that have as many bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..runtime.checkpoint import damaged, write_bytes
from ..runtime.errors import UserError
from . import huffman
from .buckets import Coded, buckets, decode, pack, unpack

PACKED = "packed.safetensors"
#: Names of the tensors of codes by Huffman, before how many bits they would have without.
STREAM, SIZES = "huffman_", "huffman_sizes_"


class Scaled(NamedTuple):
    """A tensor as whole numbers with a scale for each index of its first dimension, symmetric about 0."""

    codes: UInt8[Tensor, " n"]
    scale: Float[Tensor, " rows"]
    shape: tuple[int, ...]
    bits: int


def weight_of(coded: Coded | Scaled) -> Tensor:
    """The tensor that codes stand for."""
    if isinstance(coded, Coded):
        return decode(coded)
    whole = coded.codes.float() - (2 ** (coded.bits - 1) - 1)
    rows: Tensor = whole.reshape(coded.shape[0], -1) * coded.scale[:, None]
    return rows.reshape(coded.shape)


def by_bits(coded: Mapping[str, Coded | Scaled]) -> dict[int, list[Coded | Scaled]]:
    """What has codes of as many bits, for which there is one Huffman code."""
    return {
        bits: [one for one in coded.values() if one.bits == bits] for bits in sorted({c.bits for c in coded.values()})
    }


def counts(some: Iterable[Coded | Scaled], bits: int) -> list[int]:
    """How often each code comes among tensors of as many `bits`."""
    total = torch.zeros(2**bits, dtype=torch.long)
    for one in some:
        total += torch.bincount(one.codes.cpu().long(), minlength=2**bits)
    return [int(count) for count in total]


def bits_by_huffman(coded: Mapping[str, Coded | Scaled]) -> int:
    """Of all codes together in words of their Huffman codes, without the tables of these."""
    found = 0
    for bits, some in by_bits(coded).items():
        often = counts(some, bits)
        found += sum(count * length for count, length in zip(often, huffman.word_lengths(often), strict=True))
    return found


def values_of(coded: Mapping[str, Coded | Scaled]) -> int:
    """How many numbers turn the codes into weights: two a bucket, points, scales."""
    return sum(_values(one).numel() for one in coded.values())


def write(
    path: Path, model: nn.Module, coded: Mapping[str, Coded | Scaled], more: Mapping[str, Tensor], *,
    by_huffman: bool = False,
) -> int:  # fmt: skip
    """Write a model whose weights `coded` are as codes, and how many bytes that took.

    Args:
        more: further tensors under names of their own.
        by_huffman: codes have words of a Huffman code, not the same number of bits each.
    """
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in more.items()}
    whole = [value.flatten() for name, value in state.items() if name not in coded and value.dtype == torch.float32]
    tensors["full"] = torch.cat(whole) if whole else torch.zeros(0)
    tensors |= {name: v.clone() for name, v in state.items() if name not in coded and v.dtype != torch.float32}
    of = [coded[name] for name in state if name in coded]
    words: dict[str, list[int]] = {}
    if by_huffman:
        for bits, some in by_bits({name: coded[name] for name in state if name in coded}).items():
            words[str(bits)] = huffman.word_lengths(counts(some, bits))
            written = huffman.write(torch.cat([one.codes.cpu() for one in some]).numpy(), words[str(bits)])
            tensors |= {f"{STREAM}{bits}": torch.from_numpy(written.stream)}
            tensors |= {f"{SIZES}{bits}": torch.from_numpy(written.sizes)}
    else:
        tensors["codes"] = torch.cat([pack(one.codes.cpu(), one.bits) for one in of])
    tensors["values"] = torch.cat([_values(one).float().cpu() for one in of])
    layout = {
        "format": 1, "model": _print(model),
        "coded": [[i, *_layout(coded[name])] for i, name in enumerate(state) if name in coded],
    } | ({"huffman": words} if words else {})  # fmt: skip
    content = save(tensors, {"packed": json.dumps(layout, separators=(",", ":"))})
    write_bytes(path, content)
    return len(content)


def read(path: Path, model: nn.Module) -> tuple[dict[str, Coded | Scaled], dict[str, Tensor]]:
    """Give a model the weights of a packed file; its codes by name, and what else the file holds.

    Raises:
        UserError: the file is missing, is no packed model, or is one of another model.
    """
    try:
        with safe_open(path, "pt") as file:
            layout = json.loads((file.metadata() or {}).get("packed", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a packed model: {error}") from None
    if layout is None:
        raise UserError(f"{path} is not a packed model: load it as a plain one")
    try:
        return _unpacked(path, model, layout, tensors)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise damaged(path, error) from error


def _unpacked(
    path: Path, model: nn.Module, layout: Any, tensors: dict[str, Tensor]
) -> tuple[dict[str, Coded | Scaled], dict[str, Tensor]]:
    if layout["model"] != _print(model):
        raise UserError(f"{path} is packed from another model than this {type(model).__name__}: check its card")
    state = model.state_dict()
    values, full = (_Reader(tensors.pop(name)) for name in ("values", "full"))
    held = {number: rest for number, *rest in layout["coded"]}
    sizes = [(held[i][1], value.numel()) for i, value in enumerate(state.values()) if i in held]
    codes = _codes(tensors, layout.get("huffman"), sizes)
    coded: dict[str, Coded | Scaled] = {}
    with torch.no_grad():
        for i, (name, value) in enumerate(state.items()):
            if i in held:
                coded[name] = _coded(value, held[i], next(codes), values)
                value.copy_(weight_of(coded[name]))
            else:
                value.copy_(tensors.pop(name) if name in tensors else full.take(value.numel()).reshape(value.shape))
    return coded, tensors


def _values(coded: Coded | Scaled) -> Tensor:
    if isinstance(coded, Scaled):
        return coded.scale
    return torch.cat([coded.low, coded.span, *([] if coded.points is None else [coded.points.detach()])])


def _layout(coded: Coded | Scaled) -> list[Any]:
    if isinstance(coded, Scaled):
        return ["scale", coded.bits]
    return ["even" if coded.points is None else "points", coded.bits, coded.bucket]


class _Reader:
    """Takes numbers from the front of a long row."""

    def __init__(self, row: Tensor) -> None:
        self.row, self.at = row, 0

    def take(self, n: int) -> Tensor:
        self.at += n
        return self.row[self.at - n : self.at]


def _codes(tensors: dict[str, Tensor], words: Any, sizes: list[tuple[int, int]]) -> Iterator[Tensor]:
    """The codes of each tensor, of which `sizes` has the bits of one and how many there are."""
    if words is None:
        packed = _Reader(tensors.pop("codes"))
        yield from (unpack(packed.take(-(-n // (8 // bits))), bits, n) for bits, n in sizes)
        return
    rows: dict[int, _Reader] = {}
    for bits in {bits for bits, _ in sizes}:
        written = huffman.Written(*(tensors.pop(f"{name}{bits}").numpy() for name in (STREAM, SIZES)))
        found = huffman.read(written, words[str(bits)], sum(n for b, n in sizes if b == bits))
        rows[bits] = _Reader(torch.from_numpy(found))
    yield from (rows[bits].take(n) for bits, n in sizes)


def _coded(like: Tensor, layout: list[Any], found: Tensor, values: _Reader) -> Coded | Scaled:
    kind, bits, *rest = layout
    n, shape = like.numel(), tuple(like.shape)
    if kind == "scale":
        return Scaled(found, values.take(shape[0]), shape, bits)
    [bucket] = rest
    number = buckets(n, bucket)
    low, span = values.take(number), values.take(number)
    return Coded(found, low, span, values.take(2**bits) if kind == "points" else None, shape, bits, bucket)


def _print(model: nn.Module) -> str:
    """Of the names and shapes of a model's state."""
    return blake2b(repr(list(_shapes(model))).encode(), digest_size=8).hexdigest()


def _shapes(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, value in model.state_dict().items():
        yield name, tuple(value.shape)
