"""Weights on a grid within buckets (Polino, Pascanu, Alistarh, ICLR 2018): an even grid, or points that are learned.

A tensor is laid out in a row and cut into buckets; each has its own range, so that one large weight spoils the grid of
its bucket only. What `decode` makes of codes is what the network computes with, in training and from a file alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

#: Codes are packed into bytes, so these are the widths that waste nothing.
BITS = (1, 2, 4, 8)


class Coded(NamedTuple):
    """A tensor as codes.

    Attributes:
        codes: ``(n,)`` one a weight, below ``2 ** bits``.
        low, span: ``(buckets,)`` least value of each bucket, and how far above it the greatest lies.
        points: ``(2 ** bits,)`` what each code stands for in units of the span; None: evenly from 0 to 1.
        shape: of the tensor.
    """

    codes: UInt8[Tensor, " n"]
    low: Float[Tensor, " buckets"]
    span: Float[Tensor, " buckets"]
    points: Float[Tensor, " levels"] | None
    shape: tuple[int, ...]
    bits: int
    bucket: int


def buckets(n: int, bucket: int) -> int:
    """How many buckets `n` weights fill; the last may be shorter."""
    return -(-n // bucket)


def scaled(weight: Tensor, bucket: int) -> tuple[Tensor, Tensor, Tensor]:
    """A tensor's weights in units of their bucket.

    Returns:
        ``(n,)`` from 0 to 1 (0 throughout a bucket of equal weights), ``low`` and ``span`` ``(buckets,)``.
    """
    flat = weight.detach().flatten()
    lacking = -len(flat) % bucket
    rows = torch.cat([flat, flat[-1:].expand(lacking)]).reshape(-1, bucket)  # its own last weight widens no range
    low, high = rows.aminmax(dim=1)
    span = high - low
    units = (rows - low[:, None]) / torch.where(span > 0, span, 1.0)[:, None]
    return units.flatten()[: len(flat)], low, span


def encode(weight: Tensor, bits: int, bucket: int, drawn: Float[Tensor, " n"] | None = None) -> Coded:
    """On the even grid: ``round((v - min) / (max - min) * (2^b - 1))`` in each bucket.

    Args:
        drawn: evenly from [0, 1), one a weight: each is rounded up as often as it lies far up between two levels, so
            that its mean is itself.
    """
    units, low, span = scaled(weight, bucket)
    units = units * (2**bits - 1)
    codes = torch.round(units) if drawn is None else units.floor() + (drawn < units.frac())
    codes = codes.to(torch.uint8)
    return Coded(codes, low, span, None, tuple(weight.shape), bits, bucket)


def assign(units: Float[Tensor, " n"], points: Float[Tensor, " levels"]) -> UInt8[Tensor, " n"]:
    """Which point is nearest to each weight; of two as near, the lower one."""
    places, order = points.detach().sort()
    between = (places[1:] + places[:-1]) / 2
    return order[torch.bucketize(units, between)].to(torch.uint8)


def encode_at(weight: Tensor, points: Float[Tensor, " levels"], bucket: int) -> Coded:
    """On points that are given in units of a bucket's span: each weight at the nearest."""
    units, low, span = scaled(weight, bucket)
    bits = (len(points) - 1).bit_length()
    return Coded(assign(units, points), low, span, points, tuple(weight.shape), bits, bucket)


def decode(coded: Coded) -> Tensor:
    """The tensor; its gradient reaches `Coded.points`: ``dL/dp_j = sum of span(i) dL/dQ_i over what is assigned j``."""
    n, bucket = len(coded.codes), coded.bucket
    index = coded.codes.long()
    levels = index.to(coded.low.dtype) / (2**coded.bits - 1) if coded.points is None else coded.points[index]
    low, span = (x.repeat_interleave(bucket)[:n] for x in (coded.low, coded.span))
    return (levels * span + low).reshape(coded.shape)


def quantiles(weight: Tensor, bits: int, bucket: int) -> Float[Tensor, " levels"]:
    """Points at which each code serves as many weights as any other: where method 2 starts."""
    units, _, _ = scaled(weight, bucket)
    levels = 2**bits
    at = ((torch.arange(levels, device=units.device) + 0.5) * len(units) / levels).long()
    return units.sort().values[at.clamp(max=len(units) - 1)]


class _Straight(torch.autograd.Function):
    """Another tensor's values with this one's gradient. ``w + (q - w).detach()`` would round q once more."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def straight_through(weight: Tensor, values: Tensor) -> Tensor:
    """`values`, whose gradient is given to `weight` as it is (Bengio, Léonard, Courville, 2013)."""
    out: Tensor = _Straight.apply(weight, values)
    return out


# ---------------------------------------------------------------- bits to bytes


def pack(codes: UInt8[Tensor, " n"], bits: int) -> UInt8[Tensor, " bytes"]:
    """``8 / bits`` codes a byte, the first in the lowest bits.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
    [33, 3]
    """
    each = 8 // bits
    padded = torch.cat([codes, codes.new_zeros(-len(codes) % each)]).reshape(-1, each)
    packed = torch.zeros(len(padded), dtype=torch.uint8, device=codes.device)
    for i in range(each):
        packed |= padded[:, i] << (bits * i)
    return packed


def unpack(packed: UInt8[Tensor, " bytes"], bits: int, n: int) -> UInt8[Tensor, " n"]:
    """The first `n` codes of what `pack` made."""
    each = 8 // bits
    parts = [(packed >> (bits * i)) & (2**bits - 1) for i in range(each)]
    return torch.stack(parts, dim=1).flatten()[:n]
