"""Losses between all layers of either side, which learn what layer should learn from what."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import item_mean, item_sum, loss, same_rows, to_maps, to_rows
from .connectors import NormKind, RowNorm
from .guards import inverse_root

Width = Annotated[int, Field(ge=1)]
Grid = tuple[int, ...] | None
POOLS = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class _Map(nn.Module):
    """A linear map and a norm."""

    def __init__(self, width_in: int, width_out: int, norm: NormKind) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width_in, width_out), RowNorm(norm, width_out)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.norm(self.linear(rows))
        return out


@loss(
    "afd", reduction="items", family="features", year=2021, needs="features",
    paper="Ji, Heo, Park: Show, Attend and Distill: Knowledge Distillation via Attention-based Feature Matching",
    properties="widths_differ batch_statistics",
)  # fmt: skip
class Afd(nn.Module):
    """``sum_t sum_s a_ts mean (m_s - m_t)^2``: each teacher layer t draws student layers s to it, by learned attention.

    m is an item's map of ``mean_c f^2``, of norm 1, the student's brought to the teacher layer's grid by windows of the
    mean first. ``a_t = softmax_s((K_ts . q_t + p_t . p_s) / sqrt(width))``: q and K come from an item's mean features
    through linear maps with norms (K also through a ReLU), p are learned places of the layers. ``on`` lists layers of
    either side: equally many, of which pair i has one grid, or any number on one grid. Published with a weight of 200
    and all blocks' outputs.

    Args:
        width: of queries and keys.
        norm: as in `RowNorm`, over the batch's items.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int], *, width: Width = 128, norm: NormKind = "batch"
    ):
        super().__init__()
        self.widths, self.width = (list(student_width), list(teacher_width)), width
        depth_s, depth_t = len(student_width), len(teacher_width)
        self.query = nn.ModuleList(_Map(wide, width, norm) for wide in teacher_width)
        self.key = nn.ModuleList(_Map(wide, width, norm) for wide in student_width)
        self.bilinear = _Map(width, width * depth_t, norm)
        self.place_s = nn.Parameter(nn.init.xavier_normal_(torch.empty(depth_s, width)))
        self.place_t = nn.Parameter(nn.init.xavier_normal_(torch.empty(depth_t, width)))

    def forward(
        self, student: list[Float[Tensor, "n _"]], teacher: list[Float[Tensor, "n _"]], item: list[Int[Tensor, " n"]],
        items: int, cell: list[Int[Tensor, " n"]], grid: list[tuple[int, ...] | None],
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        places = self._fit(student, teacher)
        counted = torch.bincount(item[0], minlength=items) > 0
        if not bool(counted.any()):
            return 0.0 * torch.stack([s.sum() for s in student]).sum() + student[0].new_zeros(items), counted
        means_s = [item_mean(f, i, items)[counted] for f, i in zip(student, item, strict=True)]
        means_t = [item_mean(f, item[p], items)[counted] for f, p in zip(teacher, places, strict=True)]
        share = student[0].new_zeros(items, len(teacher), len(student))
        share[counted] = self._attention(means_s, means_t)
        energy = [f.square().mean(dim=1, keepdim=True) for f in student]
        values = student[0].new_zeros(items)
        for t, (rows, p) in enumerate(zip(teacher, places, strict=True)):
            theirs = _of_norm_one(rows.square().mean(dim=1), item[p], items)
            for s, own in enumerate(energy):
                seen = _brought(own, (cell[s], grid[s]), (cell[p], grid[p]), items)
                apart = (_of_norm_one(seen, item[p], items) - theirs).square()
                values = values + share[:, t, s] * item_mean(apart, item[p], items)
        return values, counted

    def _fit(self, student: list[Tensor], teacher: list[Tensor]) -> list[int]:
        """Which of the student's layers each of the teacher's shares its rows with."""
        paired = len(student) == len(teacher)
        places = [t if paired else 0 for t in range(len(teacher))]
        widths = tuple([f.shape[1] for f in side] for side in (student, teacher))
        for rows, p in zip(teacher, places, strict=True):
            same_rows(student[p], rows)
        if widths != self.widths:
            shapes = (", ".join(str(tuple(f.shape)) for f in side) for side in (student, teacher))
            raise ValueError("afd was built for other widths than student {} and teacher {}".format(*shapes))
        return places

    def _attention(self, means_s: list[Tensor], means_t: list[Tensor]) -> Float[Tensor, "b t s"]:
        query = torch.stack([layer(x) for layer, x in zip(self.query, means_t, strict=True)], dim=1)
        keys = torch.stack([F.relu(layer(x)) for layer, x in zip(self.key, means_s, strict=True)], dim=1)
        bilinear = self.bilinear(keys.flatten(0, 1)).reshape(*keys.shape[:2], len(means_t), self.width)
        logits = torch.einsum("bstq,btq->bts", bilinear, query) + self.place_t @ self.place_s.T
        return torch.softmax(logits / self.width**0.5, dim=-1)


def _of_norm_one(values: Tensor, item: Tensor, items: int) -> Tensor:
    """``(n,)`` values over the norm of their item's; 0 where that is 0."""
    return values * inverse_root(item_sum(values.square(), item, items), 1e-12)[item]


def _brought(values: Tensor, source: tuple[Tensor, Grid], target: tuple[Tensor, Grid], items: int) -> Tensor:
    """Values ``(n, 1)`` at the cells of another grid ``(m,)``, by windows of the mean; as they are on the same one."""
    (cell, grid), (other, wanted) = source, target
    if grid == wanted:
        if len(values) != len(other):
            raise ValueError("afd: layers without a grid must have the same rows: compare those of one resolution")
        return values.squeeze(1)
    if grid is None or wanted is None or len(grid) != len(wanted) or len(grid) not in POOLS:
        raise ValueError(f"afd: layers of grids {grid} and {wanted} cannot be brought together: leave some out")
    pool: Any = POOLS[len(grid)]
    pooled: Tensor = pool(to_maps(values, cell, items, grid), wanted)
    assert pooled[0].numel() == prod(wanted)
    return to_rows(pooled, other).squeeze(1)
