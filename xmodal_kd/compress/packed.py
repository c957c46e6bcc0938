"""A compressed model's weights in one file, as codes: ``packed.safetensors``, which answers as what was trained.

Names and shapes are those of the model that the folder's card names, so the file holds numbers only: all codes, all
numbers that turn codes into weights, and all weights that are kept whole, each laid end to end in the order of the
model's state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
from .buckets import Coded, buckets, decode, pack, unpack

PACKED = "packed.safetensors"


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


def write(path: Path, model: nn.Module, coded: Mapping[str, Coded | Scaled], more: Mapping[str, Tensor]) -> int:
    """Write a model whose weights `coded` are as codes, and how many bytes that took.

    Args:
        more: further tensors under names of their own.
    """
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in more.items()}
    whole = [value.flatten() for name, value in state.items() if name not in coded and value.dtype == torch.float32]
    tensors["full"] = torch.cat(whole) if whole else torch.zeros(0)
    tensors |= {name: v.clone() for name, v in state.items() if name not in coded and v.dtype != torch.float32}
    of = [coded[name] for name in state if name in coded]
    tensors["codes"] = torch.cat([pack(one.codes.cpu(), one.bits) for one in of])
    tensors["values"] = torch.cat([_values(one).float().cpu() for one in of])
    layout = {
        "format": 1, "model": _print(model),
        "coded": [[i, *_layout(coded[name])] for i, name in enumerate(state) if name in coded],
    }  # fmt: skip
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
    codes, values, full = (_Reader(tensors.pop(name)) for name in ("codes", "values", "full"))
    held = {number: rest for number, *rest in layout["coded"]}
    coded: dict[str, Coded | Scaled] = {}
    with torch.no_grad():
        for i, (name, value) in enumerate(state.items()):
            if i in held:
                coded[name] = _coded(value, held[i], codes, values)
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


def _coded(like: Tensor, layout: list[Any], codes: _Reader, values: _Reader) -> Coded | Scaled:
    kind, bits, *rest = layout
    n, shape = like.numel(), tuple(like.shape)
    found = unpack(codes.take(-(-n // (8 // bits))), bits, n)
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
