"""Norms, deviations and roots whose gradients stay bounded: what every loss that normalises is made of.

A vector of length 0 has no direction and a constant one no deviation; the gradient of a norm held off 0 by a tiny
number is one over that number. Here such a vector counts as 0 and gets no gradient, and one that is longer is computed
exactly. Its gradient is at most ``1 / LEAST`` times that of a vector of length 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: A vector shorter than this is no direction; a deviation below this share of the values' size is their rounding.
LEAST = 1e-6


def direction(rows: Tensor, dim: int = -1, *, least: float = LEAST, held: bool = False, revive: bool = False) -> Tensor:
    """`rows` with length 1 along `dim`; 0, without gradient, where they are shorter than `least`.

    Args:
        held: lengths are constants in the gradient.
        revive: what is shorter stays as it is, with the gradient of a vector of length 1.
    """
    squared = (rows.detach() if held else rows).square().sum(dim=dim, keepdim=True)
    if revive:
        return rows / torch.where(squared > least**2, squared, 1.0).sqrt()
    return rows * inverse_root(squared, least)


def inverse_root(squared: Tensor, least: float = LEAST) -> Tensor:
    """``1 / sqrt(squared)``; 0, without gradient, up to ``least ** 2``."""
    alive = squared > least**2
    return alive / torch.where(alive, squared, 1.0).sqrt()


def living(rows: Tensor, dim: int = -1) -> Tensor:
    """`rows`, of which those shorter than `LEAST` are exactly 0, without gradient."""
    return rows * (rows.detach().square().sum(dim=dim, keepdim=True) > LEAST**2)


def centred(rows: Tensor, dim: int) -> Tensor:
    """`rows` minus their mean along `dim`; exactly 0, without gradient, where they are constant but for rounding."""
    moved = rows - rows.mean(dim=dim, keepdim=True)
    return moved * varies(moved.detach().square().sum(dim, keepdim=True), rows.detach().square().sum(dim, keepdim=True))


def varies(spread: Tensor, size: Tensor) -> Tensor:
    """Whether a sum of squares about the mean, `spread`, is more than the rounding of values of squared `size`."""
    return spread > LEAST**2 * size


def deviation(rows: Tensor, dim: int = -1, *, unbiased: bool = True) -> Tensor:
    """Standard deviation of `centred` rows along `dim`, which stays; 0, without gradient, where they hardly vary."""
    variance = rows.square().sum(dim=dim, keepdim=True) / max(rows.shape[dim] - unbiased, 1)
    alive = variance > LEAST**2
    return torch.where(alive, variance, 1.0).sqrt() * alive
