"""Losses between maps pooled to a few cells, and between several levels of a network."""

from __future__ import annotations

from math import prod
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from .base import item_mean, loss, same_shape
from .connectors import Kernel, NormKind, Place, RowNorm, built_for, grid_conv
from .guards import direction

Grid = tuple[int, ...]


class Level(NamedTuple):
    """Where the rows of one map stand, each item's map cut to its own extent, so that padding moves no border."""

    item: Int[Tensor, " n"]
    items: int
    cell: Int[Tensor, " n"]
    grid: Grid
    at: Int[Tensor, "n axes"]
    extent: Int[Tensor, "b axes"]

    @classmethod
    def of(cls, item: Tensor, items: int, cell: Tensor, grid: Grid | None) -> Level:
        """From a loss's inputs; one row an item is a map of one cell. Raises ``ValueError`` for rows without a grid."""
        if grid is None and len(item) and int(torch.bincount(item).max()) > 1:
            raise ValueError("this loss works on maps, and the rows form no grid")
        grid = grid or (1,)
        axes, rest = [], cell
        for size in reversed(grid):
            axes.append(rest % size)
            rest = rest // size
        at = torch.stack(axes[::-1], dim=1)
        index = item[:, None].expand_as(at)
        extent = at.new_zeros(items, len(grid)).scatter_reduce(0, index, at + 1, "amax")
        return cls(item, items, cell, grid, at, extent)

    @property
    def place(self) -> Place:
        return Place(self.cell, self.items, self.grid)

    def pooled(self, rows: Float[Tensor, "n c"], side: int) -> tuple[Float[Tensor, "b k c"], Bool[Tensor, "b k"]]:
        """Means over ``side`` cells an axis, cut as adaptive average pooling cuts, and which of them have rows.

        Neighbouring cells overlap where `side` does not divide the extent.
        """
        extent, cuts = self.extent[self.item][..., None], torch.arange(side, device=rows.device)
        first, last = cuts * extent // side, ((cuts + 1) * extent + side - 1) // side
        within = (first <= self.at[..., None]) & (self.at[..., None] < last)  # n axes side
        inside = within[:, 0]
        for axis in range(1, len(self.grid)):
            inside = (inside[:, :, None] & within[:, axis, None]).flatten(1)
        row, pool = inside.nonzero(as_tuple=True)
        pools = inside.shape[1]
        number = self.item[row] * pools + pool
        means = item_mean(rows[row], number, self.items * pools).reshape(self.items, pools, -1)
        return means, (torch.bincount(number, minlength=self.items * pools) > 0).reshape(self.items, pools)

    def nearest(self, rows: Float[Tensor, "n c"], target: Level) -> Float[Tensor, "m c"]:
        """`rows` of this level at each row of `target`: the nearest cell within the item's extents, 0 where invalid."""
        alike = len(self.grid) == len(target.grid)
        if not alike and bool((self.extent > 1).any()):
            raise ValueError(f"grids {self.grid} and {target.grid} differ in axes: only a single cell fits any grid")
        cell = torch.zeros_like(target.item)
        for axis, size in enumerate(self.grid):
            own, other = (level.extent[target.item, axis] for level in (self, target if alike else self))
            cell = cell * size + (target.at[:, axis] * own // other if alike else torch.zeros_like(cell))
        cells = prod(self.grid)
        row_of = torch.full((self.items * cells,), len(rows), device=rows.device)
        row_of[self.cell] = torch.arange(len(rows), device=rows.device)
        return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[row_of[target.item * cells + cell]]


@loss(
    "catkd", reduction="items", family="attention", year=2023, needs="maps", properties="zero_at_teacher",
    paper="Guo et al.: Class Attention Transfer Based Knowledge Distillation",
)  # fmt: skip
def catkd(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], item: Int[Tensor, " n"], items: int,
    cell: Int[Tensor, " n"], grid: Grid, *, cells: Annotated[int, Field(gt=0)] = 2, normalise: bool = True,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``mean (A_s - A_t)^2`` of class maps pooled to `cells` a side, each class's of norm 1 over them.

    A class map is the classifier applied at every position, before the pooling whose result are the logits: ``on``
    names it on both sides, with the same classes. The grid may have one axis (frames) to three. Published with a weight
    of 400, and without `normalise` of 1.8 to 15.
    """
    same_shape(student, teacher)
    level = Level.of(item, items, cell, grid)
    (a_s, held), (a_t, _) = level.pooled(student, cells), level.pooled(teacher, cells)
    if normalise:
        a_s, a_t = direction(a_s, dim=1), direction(a_t, dim=1)
    values = (a_s - a_t).square().mean(dim=-1).sum(dim=1) / held.sum(dim=1).clamp(min=1)
    return values, torch.bincount(item, minlength=items) > 0


@loss(
    "reviewkd", reduction="items", family="features", year=2021, needs="maps pre_activation pyramid",
    paper="Chen et al.: Distilling Knowledge via Knowledge Review", properties="widths_differ batch_statistics",
)  # fmt: skip
class Reviewkd(nn.Module):
    """Each level of the student, fused with all deeper ones, against the teacher's: mean squared errors at four scales.

    From the deepest level to the first, ``x = norm(linear(f))`` is mixed with the deeper level's mix, brought to its
    grid, by two gates ``sigmoid(linear([x; deeper]))``; ``norm(conv(x))`` is compared with the teacher's level as it
    is and pooled to 4, 2 and 1 cells a side where its map is larger, with weights 1, 1/2, 1/4, 1/8 over their sum.
    Levels are added up. ``on`` lists the levels from the shallow to the deep, *before* their ReLU; the last may be the
    pooled embedding, one row an item. Published with a weight of 0.6 to 8, warmed up over 20 epochs.

    Args:
        mid: width of the mixed maps, at most that of the deepest student level.
        kernel: side of the last convolution.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int], axes: list[int],
        *, mid: Annotated[int, Field(gt=0)] = 512, kernel: Kernel = 3, norm: NormKind = "batch",
    ):  # fmt: skip
        super().__init__()
        if len(student_width) != len(teacher_width):
            raise ValueError(
                f"{len(student_width)} levels of the student and {len(teacher_width)} of the teacher: pair them"
            )
        self.widths, mid = list(zip(student_width, teacher_width, strict=True)), min(mid, student_width[-1])
        self.reduce = nn.ModuleList(nn.Linear(width, mid, bias=False) for width in student_width)
        self.reduce_norm = nn.ModuleList(RowNorm(norm, mid) for _ in student_width)
        self.attend = nn.ModuleList(nn.Linear(2 * mid, 2) for _ in student_width[1:])
        self.out = nn.ModuleList(
            grid_conv(mid, width, kernel, n, bias=False) for width, n in zip(teacher_width, axes, strict=True)
        )
        self.out_norm = nn.ModuleList(RowNorm(norm, width) for width in teacher_width)

    def forward(
        self, student: list[Float[Tensor, "n c"]], teacher: list[Float[Tensor, "n d"]],
        item: list[Int[Tensor, " n"]], items: int, cell: list[Int[Tensor, " n"]], grid: list[Grid | None],
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        levels = [Level.of(i, items, c, g) for i, c, g in zip(item, cell, grid, strict=True)]
        total, mixed = student[0].new_zeros(items), None
        for i in reversed(range(len(levels))):
            built_for(student[i], teacher[i], *self.widths[i])
            x = self.reduce_norm[i](self.reduce[i](student[i]))
            if mixed is not None:
                deeper = levels[i + 1].nearest(mixed, levels[i])
                gates = torch.sigmoid(self.attend[i](torch.cat([x, deeper], dim=1)))
                x = x * gates[:, :1] + deeper * gates[:, 1:]
            mixed = x
            made = self.out_norm[i](levels[i].place.apply(self.out[i], x))
            total = total + _at_all_scales(made, teacher[i], levels[i])
        return total, torch.bincount(item[0], minlength=items) > 0


def _at_all_scales(student: Tensor, teacher: Tensor, level: Level) -> Float[Tensor, " b"]:
    """``(b,)`` weighted mean of the squared errors of an item's map as it is and pooled to fewer cells than it has."""
    difference = student - teacher
    total = item_mean(difference.square().mean(dim=-1), level.item, level.items)
    weight, weights = torch.ones_like(total), torch.ones_like(total)
    for side in (4, 2, 1):
        used = level.extent[:, 0] > side
        weight = torch.where(used, weight / 2, weight)
        pooled, held = level.pooled(difference, side)  # pooling is linear
        error = pooled.square().mean(dim=-1).sum(dim=1) / held.sum(dim=1).clamp(min=1)
        total, weights = total + used * weight * error, weights + used * weight
    return total / weights
