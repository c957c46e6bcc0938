"""Sparse convolutions over occupied voxels in plain PyTorch (Graham, Engelcke, van der Maaten, 2018).

A kernel is applied as pairs: for each of its places, which voxel is seen from which. Every pair of a place is one row
of a matrix product, so empty space costs nothing, and no voxel occurs twice in one place's pairs, which makes the sums
the same on every run. Rows are taken by ``index_select``, whose gradient is such a sum too: that of ``x[index]`` sorts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

#: Bits of a coordinate in a voxel's number: 65,534 voxels along each axis, and the item above them.
BITS = 16
#: Half a kernel of 3 x 3 x 3; the other half are the same pairs, turned round.
HALF = [(x, y, z) for x, y, z in product((-1, 0, 1), repeat=3) if (x, y, z) > (0, 0, 0)]

Pairs = tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]


@dataclass(frozen=True)
class Level:
    """The occupied voxels of one resolution, in the order of their numbers.

    Attributes:
        numbers: ``(voxels,)``, ascending: item, x, y, z.
        around: for each place of `HALF`, pairs (voxel, its neighbour at that place).
        parent: ``(voxels,)`` of each the voxel of the next coarser level; None in the coarsest.
        child: ``(voxels,)`` which of the eight children of its parent it is; None in the coarsest.
    """

    numbers: Int[Tensor, " voxels"]
    around: list[Pairs]
    parent: Int[Tensor, " voxels"] | None
    child: Int[Tensor, " voxels"] | None

    def __len__(self) -> int:
        return len(self.numbers)


@torch.no_grad()
def voxelise(
    xyz: Float[Tensor, "total 3"], lengths: Sequence[int], *, cell: float, levels: int
) -> tuple[Int[Tensor, " total"], list[Level]]:
    """The voxel of each point, and the levels from fine to coarse, each of voxels twice as wide as the one before.

    Args:
        xyz: metres; the points of all items end to end. Points further than 32,766 cells from the origin fall into the
            last voxel on their axis.
        lengths: points of each item; no voxel holds points of two.
        cell: metres of the finest voxels' edges.
    """
    half = 2 ** (BITS - 1)
    # from 1 to 2^16 - 2, so that a neighbour's number never runs over into another axis
    place = (xyz / cell).floor().clamp(1 - half, half - 2).long() + half
    number = torch.tensor(lengths, dtype=torch.long)
    item = torch.repeat_interleave(torch.arange(len(number)), number).to(xyz.device)
    numbers, of = torch.unique(_number(item, place), return_inverse=True)
    found = []
    for level in range(levels):
        parent = child = coarser = None
        if level + 1 < levels:
            item, place = _item_and_place(numbers)
            # half as many cells either side of the origin, which stays where it is
            coarser, parent = torch.unique(
                _number(item, (place - half).div(2, rounding_mode="floor") + half), return_inverse=True
            )
            child = ((place & 1) * torch.tensor([4, 2, 1], device=place.device)).sum(1)
        found.append(Level(numbers, [_pairs(numbers, at) for at in HALF], parent, child))
        if coarser is not None:
            numbers = coarser
    return of, found


def _number(item: Tensor, place: Int[Tensor, "voxels 3"]) -> Int[Tensor, " voxels"]:
    x, y, z = place.unbind(1)
    return ((item << BITS | x) << BITS | y) << BITS | z


def _item_and_place(numbers: Tensor) -> tuple[Tensor, Int[Tensor, "voxels 3"]]:
    low = 2**BITS - 1
    place = torch.stack([numbers >> 2 * BITS & low, numbers >> BITS & low, numbers & low], dim=1)
    return numbers >> 3 * BITS, place


def _pairs(numbers: Tensor, place: tuple[int, int, int]) -> Pairs:
    dx, dy, dz = place
    wanted = numbers + ((dx << 2 * BITS) + (dy << BITS) + dz)
    at = torch.searchsorted(numbers, wanted).clamp(max=max(len(numbers) - 1, 0))
    here = (numbers[at] == wanted).nonzero().flatten()
    return here, at[here]


class Neighbours(nn.Module):
    """A 3 x 3 x 3 convolution that keeps the occupied voxels (submanifold): empty ones neither see nor are seen.

    Its weights are ``(27, c, d)``: the middle, then for each place of `HALF` itself and its opposite.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_uniform(1 + 2 * len(HALF), channels, width))

    def forward(self, x: Float[Tensor, "voxels c"], level: Level) -> Float[Tensor, "voxels d"]:
        out = x @ self.weight[0]
        for k, (here, there) in enumerate(level.around):
            out.index_add_(0, here, x.index_select(0, there) @ self.weight[2 * k + 1])
            out.index_add_(0, there, x.index_select(0, here) @ self.weight[2 * k + 2])
        return out


class Coarser(nn.Module):
    """A 2 x 2 x 2 convolution of stride 2: every voxel of the next level sums its children."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_uniform(8, channels, width))

    def forward(self, x: Float[Tensor, "voxels c"], level: Level, coarser: Level) -> Float[Tensor, "coarser d"]:
        assert level.parent is not None and level.child is not None
        out = x.new_zeros(len(coarser), self.weight.shape[2])
        for k in range(8):
            here = (level.child == k).nonzero().flatten()
            out.index_add_(0, level.parent[here], x.index_select(0, here) @ self.weight[k])
        return out


class Finer(nn.Module):
    """The way back of `Coarser`: every voxel takes from its parent what its place among the children says."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_uniform(8, channels, width) * 8**0.5)

    def forward(self, x: Float[Tensor, "coarser c"], level: Level) -> Float[Tensor, "voxels d"]:
        assert level.parent is not None and level.child is not None
        out = x.new_zeros(len(level), self.weight.shape[2])
        for k in range(8):
            here = (level.child == k).nonzero().flatten()
            out.index_add_(0, here, x.index_select(0, level.parent[here]) @ self.weight[k])
        return out


def _uniform(places: int, channels: int, width: int) -> Tensor:
    """Of the variance that `nn.Conv3d` would give a kernel of as many places."""
    bound = (places * channels) ** -0.5
    return torch.empty(places, channels, width).uniform_(-bound, bound)


def mean_of(x: Float[Tensor, "total c"], of: Int[Tensor, " total"], voxels: int) -> Float[Tensor, "voxels c"]:
    """The mean of each voxel's points."""
    total = x.new_zeros(voxels, x.shape[1]).index_add(0, of, x)
    count = torch.bincount(of, minlength=voxels).clamp(min=1)
    return total / count[:, None].to(x.dtype)


__all__ = ["Coarser", "Finer", "Level", "Neighbours", "mean_of", "voxelise"]
