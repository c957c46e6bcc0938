"""Losses between all layers of either side, which learn what layer should learn from what."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import item_mean, item_sum, loss, same_rows, to_maps, to_rows
from .blocks import side_by_side
from .connectors import Kernel, NormKind, Place, RowNorm, grid_conv
from .guards import direction, inverse_root

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
        places = _fit("afd", student, teacher, self.widths)
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
                seen = _brought("afd", own, (cell[s], grid[s]), (cell[p], grid[p]), items)
                apart = (_of_norm_one(seen.squeeze(1), item[p], items) - theirs).square()
                values = values + share[:, t, s] * item_mean(apart, item[p], items)
        return values, counted

    def _attention(self, means_s: list[Tensor], means_t: list[Tensor]) -> Float[Tensor, "b t s"]:
        query = torch.stack([layer(x) for layer, x in zip(self.query, means_t, strict=True)], dim=1)
        keys = torch.stack([F.relu(layer(x)) for layer, x in zip(self.key, means_s, strict=True)], dim=1)
        bilinear = self.bilinear(keys.flatten(0, 1)).reshape(*keys.shape[:2], len(means_t), self.width)
        logits = torch.einsum("bstq,btq->bts", bilinear, query) + self.place_t @ self.place_s.T
        return torch.softmax(logits / self.width**0.5, dim=-1)


@loss(
    "semckd", reduction="items", family="features", year=2021, needs="features",
    paper="Chen et al.: Cross-Layer Distillation with Semantic Calibration",
    properties="widths_differ batch_statistics",
)  # fmt: skip
class Semckd(nn.Module):
    """``sum_s sum_t a_st mean (r_st(m_s) - m_t)^2 / layers_s``: each student layer s chooses its teacher layers t.

    ``a_s = softmax_t(q_s . k_t)``, for each item: q and k are directions that an MLP makes of the item's row of
    ``F F^T``, the products of the batch's flattened maps. The rows have as many numbers as the batch has items, so the
    loss is of **one batch size**, the parameter `batch`: items of a micro-batch on a rank. r are a bottleneck the other
    way round, to twice the teacher's width and back, with a norm and a ReLU after the first two layers. The larger of
    two maps is brought to the smaller one's grid by windows of the mean. ``on`` lists layers of either side as in
    `afd`; rows without a grid are multiplied in their order. Published with a weight of 400.

    Args:
        batch: items of a batch: ``train.batch_size``, where nothing is accumulated and one process trains.
        width: of queries and keys; None is a quarter of the batch, as published.
        kernel: of the middle layer of r.
        norm: of r, as in `RowNorm`.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int], axes: list[int],
        *, batch: Annotated[int, Field(ge=2)], width: Annotated[int, Field(ge=2)] | None = None, kernel: Kernel = 3,
        norm: NormKind = "batch",
    ):  # fmt: skip
        super().__init__()
        self.widths, self.batch = (list(student_width), list(teacher_width)), batch
        self.query, self.key = (
            nn.ModuleList(_embedding(batch, width or max(2, batch // 4)) for _ in side) for side in self.widths
        )
        grids = max(axes)
        self.regressors = nn.ModuleList(
            nn.ModuleList(_Regressor(own, theirs, kernel, grids, norm) for theirs in teacher_width)
            for own in student_width
        )

    def forward(
        self, student: list[Float[Tensor, "n _"]], teacher: list[Float[Tensor, "n _"]], item: list[Int[Tensor, " n"]],
        items: int, cell: list[Int[Tensor, " n"]], grid: list[tuple[int, ...] | None],
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        places = _fit("semckd", student, teacher, self.widths)
        if items != self.batch:
            raise ValueError(
                f"semckd was built for batches of {self.batch} items, whose rows it weighs, and got {items}: set its "
                "parameter batch to the items of a micro-batch"
            )
        stands = [(item[s], cell[s], grid[s]) for s in range(len(student))]
        sides = [_products(f, *at, items) for f, at in zip(student, stands, strict=True)]
        others = [_products(f, *stands[p], items) for f, p in zip(teacher, places, strict=True)]
        query = torch.stack([direction(e(x)) for e, x in zip(self.query, sides, strict=True)], dim=1)
        key = torch.stack([direction(e(x)) for e, x in zip(self.key, others, strict=True)], dim=1)
        share = torch.softmax(query @ key.transpose(1, 2), dim=2)
        values = student[0].new_zeros(items)
        for s, regressors in enumerate(self.regressors):
            for t, regressor in enumerate(cast(nn.ModuleList, regressors)):
                own, target, at = _on_one_grid(student[s], stands[s], teacher[t], stands[places[t]], items)
                apart = (regressor(own, Place(at[1], items, at[2])) - target).square().mean(dim=1)
                values = values + share[:, s, t] * item_mean(apart, at[0], items)
        return values / len(student), torch.bincount(item[0], minlength=items) > 0


class _Regressor(nn.Module):
    """Three maps without biases, the second of `kernel` cells a side, norms and ReLUs after the first two."""

    def __init__(self, width_in: int, width_out: int, kernel: Kernel, axes: int, norm: NormKind) -> None:
        super().__init__()
        wide = 2 * width_out
        self.enter, self.leave = nn.Linear(width_in, wide, bias=False), nn.Linear(wide, width_out, bias=False)
        self.middle = grid_conv(wide, wide, kernel, axes, bias=False)
        self.norms = nn.ModuleList(RowNorm(norm, wide) for _ in range(2))

    def forward(self, rows: Tensor, place: Place) -> Tensor:
        hidden = F.relu(self.norms[0](self.enter(rows)))
        out: Tensor = self.leave(F.relu(self.norms[1](place.apply(self.middle, hidden))))
        return out


def _embedding(batch: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(batch, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


Stand = tuple[Tensor, Tensor, Grid]


def _products(rows: Tensor, item: Tensor, cell: Tensor, grid: Grid, items: int) -> Float[Tensor, "b b"]:
    """Products of the items' flattened maps; of those without a grid, of their rows in order."""
    flat = side_by_side(rows, item, items)[0] if grid is None else to_maps(rows, cell, items, grid)
    return flat.flatten(1) @ flat.flatten(1).T


def _on_one_grid(
    student: Tensor, own: Stand, teacher: Tensor, other: Stand, items: int
) -> tuple[Tensor, Tensor, Stand]:
    """Rows of both sides on the smaller of their grids, and where those stand."""
    smaller = other if prod(own[2] or ()) > prod(other[2] or ()) else own
    student = _brought("semckd", student, own[1:], smaller[1:], items)
    return student, _brought("semckd", teacher, other[1:], smaller[1:], items), smaller


def _fit(name: str, student: list[Tensor], teacher: list[Tensor], built: tuple[list[int], list[int]]) -> list[int]:
    """Which of the student's layers each of the teacher's shares its rows with."""
    paired = len(student) == len(teacher)
    places = [t if paired else 0 for t in range(len(teacher))]
    for rows, p in zip(teacher, places, strict=True):
        same_rows(student[p], rows)
    if tuple([f.shape[1] for f in side] for side in (student, teacher)) != built:
        shapes = (", ".join(str(tuple(f.shape)) for f in side) for side in (student, teacher))
        raise ValueError(f"{name} was built for other widths than student {{}} and teacher {{}}".format(*shapes))
    return places


def _of_norm_one(values: Tensor, item: Tensor, items: int) -> Tensor:
    """``(n,)`` values over the norm of their item's; 0 where that is 0."""
    return values * inverse_root(item_sum(values.square(), item, items), 1e-12)[item]


def _brought(name: str, rows: Tensor, source: tuple[Tensor, Grid], target: tuple[Tensor, Grid], items: int) -> Tensor:
    """Rows ``(n, c)`` at the cells of another grid ``(m, c)``, by windows of the mean; as they are on the same one."""
    (cell, grid), (other, wanted) = source, target
    if grid == wanted:
        if len(rows) != len(other):
            raise ValueError(f"{name}: layers without a grid must have the same rows: compare those of one resolution")
        return rows
    if grid is None or wanted is None or len(grid) != len(wanted) or len(grid) not in POOLS:
        raise ValueError(f"{name}: layers of grids {grid} and {wanted} cannot be brought together: leave some out")
    pool: Any = POOLS[len(grid)]
    pooled: Tensor = pool(to_maps(rows, cell, items, grid), wanted)
    assert pooled[0, 0].numel() == prod(wanted)
    return to_rows(pooled, other)
