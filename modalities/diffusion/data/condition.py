"""What a denoiser is told of a sample beside its noise: a class, or what a prompt says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Text(NamedTuple):
    """What b prompts say, as a pipeline's text encoders have it."""

    #: ``(b, tokens, d)``.
    embedding: Tensor
    #: ``(b, p)``: of networks that also take one vector for a whole prompt it, of PixArt which tokens count.
    beside: Tensor | None = None
    #: ``(b, 2)`` height and width of the image, of networks that are told it.
    sizes: Tensor | None = None


#: Class numbers ``(b,)`` int64, or prompts. It travels as ``labels`` in a batch, whatever it is.
Condition = Tensor | Text
#: How many samples of a split have captions, and what those of some ``(b,)`` of them say.
Prompts = tuple[int, Callable[[Tensor], Condition]]


def each(condition: Condition) -> list[Tensor]:
    """Its tensors, whose first axis is the batch."""
    return [condition] if isinstance(condition, Tensor) else [part for part in condition if part is not None]


def like(condition: Condition, tensors: Sequence[Tensor]) -> Condition:
    """`tensors`, as `each` has them, as a condition of the same kind."""
    return tensors[0] if isinstance(condition, Tensor) else Text(*tensors)


def rows(condition: Condition, index: slice | Tensor | Sequence[int]) -> Condition:
    """Those of some samples."""
    return like(condition, [part[index] for part in each(condition)])


def moved(condition: Condition, device: torch.device | str) -> Condition:
    return like(condition, [part.to(device) for part in each(condition)])


def joined(first: Condition, second: Condition) -> Condition:
    """Both, one batch after the other."""
    return like(first, [torch.cat(pair) for pair in zip(each(first), each(second), strict=True)])


def repeated(one: Condition, count: int) -> Condition:
    """The first sample's, for `count` of them."""
    return like(one, [part[:1].expand(count, *part.shape[1:]) for part in each(one)])


__all__ = ["Condition", "Prompts", "Text", "each", "joined", "like", "moved", "repeated", "rows"]
