"""Contrasts within patches of one map: what needs neither other samples nor memories nor augmented views."""

from __future__ import annotations

from math import prod
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from .base import Positive, item_sum, loss, same_shape
from .blocks import groups, in_blocks, side_by_side
from .connectors import Kernel, Place
from .masked import Mgd, Share

Count = Annotated[int, Field(ge=1)]


@loss(
    "af_dcd", reduction="items", family="contrastive", year=2023, needs="features", properties="random selective",
    paper="Fan et al.: Augmentation-free Dense Contrastive Knowledge Distillation for Efficient Semantic Segmentation",
)  # fmt: skip
class AfDcd(Mgd):
    """``mean_p sum_m -log [e(p, m; p, m) / (e(p, m; p, m) + sum_{q, k != m} e(p, m; q, k))] + regenerate L_mgd``.

    ``e(p, m; q, k) = exp(-|g_pm - t_qk|_1 / temperature)``: g is the map that `mgd` regenerates from the student's
    masked one, pooled like the teacher's by the most of `pool` cells a side and cut into patches of `patch` cells a
    side and into `groups` groups of channels. Group m of position p is to be nearer to the teacher's than to other
    groups at any position q of the patch. The mean is over an item's pooled positions. Rows without a grid are patches
    of one row.
    The term's projector brings the student to the teacher's width. Published with a weight of 0.001 (ADE20K) to 0.005
    (Cityscapes), and `regenerate` of 0.04 to 0.0004 beside it.

    Args:
        groups: M, which divides the teacher's channels.
        drop: the share of rows that the student's map loses before it is regenerated.
        regenerate: weight of the sum of squares of `mgd`, on the same regenerated map.
    """

    def __init__(
        self, student_width: int, teacher_width: int, axes: int,
        *, groups: Annotated[int, Field(ge=2)] = 16, patch: Count = 4, pool: Count = 4, temperature: Positive = 0.07,
        drop: Share = 0.75, kernel: Kernel = 3, regenerate: Annotated[float, Field(ge=0)] = 0.04,
    ):  # fmt: skip
        super().__init__(student_width, teacher_width, axes, drop=drop, kernel=kernel)
        if teacher_width % groups:
            raise ValueError(
                f"af_dcd: {groups} groups do not divide {teacher_width} channels: set its parameter groups"
            )
        self.groups, self.patch, self.pool = groups, patch, pool
        self.temperature, self.regenerate = temperature, regenerate

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
        cell: Int[Tensor, " n"], grid: tuple[int, ...] | None,
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        same_shape(student, teacher)
        keep = self.kept(len(student), items, student.shape[1]).to(student)
        made = self.generator.fill(student * keep, Place(cell, items, grid))
        values = self.regenerate * item_sum((made - teacher).square().sum(dim=1), item, items)
        counts = torch.bincount(item, minlength=items)
        if len(item):
            at, pooled = self._pooled(item, cell, grid)
            own, g, t = at[:, 0], *(_most(rows, pooled, len(at)) for rows in (made, teacher))
            told = self._told(g, t, self._patch_of(at))
            values = values + item_sum(told, own, items) / torch.bincount(own, minlength=items).clamp(min=1)
        return values, counts > 0

    def _pooled(self, item: Tensor, cell: Tensor, grid: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
        """Pooled positions ``(m, 1 + axes)``, an item and the place in it, and which of them each row belongs to."""
        if grid is None:
            number = torch.arange(len(item), device=item.device)
            return torch.stack([item, number * self.patch], dim=1), number
        place = [p // self.pool for p in torch.unravel_index(cell % prod(grid), grid)]
        return groups(item, *place)

    def _patch_of(self, at: Tensor) -> Tensor:
        return groups(at[:, 0], *(at[:, 1:] // self.patch).unbind(dim=1))[1]

    def _told(self, made: Tensor, teacher: Tensor, patch: Tensor) -> Tensor:
        """``(m,)`` what each position's groups cost among those of its patch."""
        number = int(patch.max()) + 1
        order = torch.argsort(patch, stable=True)
        g, own = side_by_side(made, patch, number)
        t, _ = side_by_side(teacher, patch, number)
        most, wide = g.shape[1], self.groups * g.shape[1]
        which = torch.arange(wide, device=made.device) % self.groups
        rival = (which[:, None] != which) | torch.eye(wide, dtype=torch.bool, device=made.device)

        def block(part: slice) -> Tensor:
            a, b = (x[part].reshape(-1, wide, x.shape[2] // self.groups) for x in (g, t))
            scores = -torch.cdist(a, b, p=1.0) / self.temperature
            there = own[part].repeat_interleave(self.groups, dim=1)
            scores = scores.masked_fill(~(rival & there[:, None, :]), -torch.inf)
            cost = torch.logsumexp(scores, dim=2) - scores.diagonal(dim1=1, dim2=2)
            return cost.reshape(-1, most, self.groups).sum(dim=2)

        costs = torch.cat(in_blocks(block, number, wide * wide))
        return torch.empty_like(costs[own]).index_copy(0, order, costs[own])


def _most(rows: Tensor, which: Tensor, number: int) -> Tensor:
    """The most of each channel over the rows of a pooled position."""
    out = rows.new_zeros(number, rows.shape[1])
    return out.scatter_reduce(0, which[:, None].expand_as(rows), rows, "amax", include_self=False)
