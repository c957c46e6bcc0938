"""Points in the order of a space-filling curve, cut into windows (Wu et al., 2024, Point Transformer V3, section 4).

Neighbours on the curve are mostly neighbours in space, so attention within windows of consecutive points needs no
neighbour search. Where the curve jumps, a second order and shifted windows put together what one cut apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Bits of a coordinate in a code; three of them and an item's number fit into 63.
BITS = 16
#: Axes of each order, and by how many cells it moves the origin. The curve jumps most where the highest bits change,
#: which would be at the sensor, where points are densest, and at the same places in both orders.
ORDERS = (((0, 1, 2), 0x1555), ((2, 1, 0), 0x0AAB))
#: For each step of spreading a number's bits three apart: by how much to shift, and which bits to keep.
SPREAD = ((16, 0x0000FF0000FF), (8, 0x00F00F00F00F), (4, 0x0C30C30C30C3), (2, 0x249249249249))


@dataclass(frozen=True)
class Windows:
    """Attention windows over points in one order.

    Attributes:
        order: ``(total,)`` which point comes at each place.
        place: ``(total,)`` at which place each point comes.
        lengths: points of each window, in order.
        centred: ``(total, 3)`` metres from the mean of a point's window, in order.
    """

    order: Int[Tensor, " total"]
    place: Int[Tensor, " total"]
    lengths: list[int]
    centred: Float[Tensor, "total 3"]


def morton(
    xyz: Float[Tensor, "total 3"], cell: float, axes: tuple[int, int, int] = (0, 1, 2)
) -> Int[Tensor, " total"]:  # fmt: skip
    """Morton codes (Morton, 1966) of points in cells of `cell` metres; the first of `axes` changes fastest.

    A point's code depends on nothing but its position; further away than ``2 ** 15`` cells, on its direction only.
    """
    half = 2 ** (BITS - 1)
    cells = (xyz / cell).floor().clamp(-half, half - 1).long() + half
    code = torch.zeros_like(cells[:, 0])
    for shift, axis in enumerate(axes):
        code |= _spread(cells[:, axis]) << shift
    return code


def _spread(x: Int[Tensor, " total"]) -> Int[Tensor, " total"]:
    """Bit i of the 16 goes to place 3 i."""
    for shift, keep in SPREAD:
        x = (x | x << shift) & keep
    return x


def cut(lengths: Sequence[int], window: int, shift: int) -> list[int]:
    """Windows of `window` points, item by item; what is left over at an item's end is one of its own.

    >>> cut([5, 2], 4, 0), cut([9, 2], 4, 2)
    ([4, 1, 2], [2, 4, 3, 2])
    """
    found: list[int] = []
    for left in lengths:
        first = min(shift, left)
        sizes = [first] + [min(window, left - start) for start in range(first, left, window)]
        found += [size for size in sizes if size]
    return found


@torch.no_grad()
def windows(
    xyz: Float[Tensor, "total 3"], lengths: Sequence[int], *, window: int, cell: float, orders: int, shifts: int
) -> list[Windows]:
    """One for every order of axes and, within it, every shift of the cuts.

    Args:
        lengths: points of each item; no window holds points of two.
        orders: how many of the orders (x, y, z), (z, y, x); equal codes keep the file's order.
        shifts: 1, or 2 for windows that begin in the middle of the others besides.
    """
    item = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long)).to(xyz.device)
    found = []
    for axes, origin in ORDERS[:orders]:
        code = morton(xyz + cell * origin, cell, axes) | item << 3 * BITS
        order = code.argsort(stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        for half in range(shifts):
            sizes = cut(lengths, window, half * (window // 2))
            found.append(Windows(order, place, sizes, _centred(xyz[order], sizes)))
    return found


def _centred(xyz: Float[Tensor, "total 3"], sizes: list[int]) -> Float[Tensor, "total 3"]:
    number = torch.tensor(sizes, dtype=torch.long)
    of = torch.repeat_interleave(torch.arange(len(sizes)), number).to(xyz.device)
    total = xyz.new_zeros(len(sizes), 3).index_add_(0, of, xyz)
    return xyz - (total / number.to(xyz.device)[:, None])[of]
