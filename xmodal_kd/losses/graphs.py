"""Losses on graphs within an item: regions and their prototypes, nodes of a map, neighbours of a row."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, item_mean, loss, same_rows
from .blocks import groups, in_blocks, neighbours_of, row_numbers, side_by_side
from .guards import direction, varies

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


@loss(
    "skd_pair", reduction="items", family="relations", year=2019, needs="features maps",
    paper="Liu et al.: Structured Knowledge Distillation for Semantic Segmentation (pair-wise)",
    properties="zero_at_teacher scale_invariant widths_differ held_weight selective",
)  # fmt: skip
def skd_pair(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], cell: Int[Tensor, " n"], items: int,
    grid: tuple[int, ...], *, pool: Share = 0.5, pooling: Literal["max", "mean"] = "max",
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``sum_ij (A_t - A_s)^2 / N^2`` with A the cosines of an item's N nodes, windows of its map pooled to one each.

    A window spans the share `pool` of every axis (at least one cell; the last ones may be smaller); cells without a
    valid row do not count, and a window without any is no node. The norms are held fixed in the gradient, as in the
    release. Published with a weight of 1 beside 10 for `kd` of pixels and 0.1 for `skd_adv`.
    """
    same_rows(student, teacher)
    node, nodes = _windows(cell, items, grid, pool)
    cosines = [_node_cosines(rows, node, nodes, items, pooling) for rows in (student, teacher)]
    there = torch.bincount(node, minlength=items * nodes).reshape(items, nodes) > 0
    number = there.sum(dim=1)
    values = (cosines[1] - cosines[0]).square().sum(dim=(1, 2)) / number.clamp(min=1).square()
    return values, number > 0


def _windows(cell: Tensor, items: int, grid: tuple[int, ...], pool: float) -> tuple[Tensor, int]:
    """Window ``(n,)`` of each row, numbered over all items, and windows an item."""
    sizes = [max(1, int(g * pool)) for g in grid]
    counts = [-(-g // size) for g, size in zip(grid, sizes, strict=True)]
    within, window = cell % prod(grid), torch.zeros_like(cell)
    for axis, (g, size, count) in enumerate(zip(grid, sizes, counts, strict=True)):
        place = within // prod(grid[axis + 1 :]) % g
        window = window * count + place // size
    return cell // prod(grid) * prod(counts) + window, prod(counts)


def _node_cosines(rows: Tensor, node: Tensor, nodes: int, items: int, pooling: str) -> Tensor:
    """``(b, N, N)`` cosines of an item's nodes, 0 at one without rows; norms without gradient."""
    if pooling == "mean":
        pooled = item_mean(rows, node, items * nodes)
    else:
        index = node[:, None].expand_as(rows)
        pooled = rows.new_zeros(items * nodes, rows.shape[1]).scatter_reduce(0, index, rows, "amax", include_self=False)
    unit = direction(pooled, held=True).reshape(items, nodes, -1)
    cosines: Tensor = unit @ unit.mT
    return cosines


@loss(
    "ifvd", reduction="rows", family="relations", year=2020, needs="features", confidence="B",
    paper="Wang et al.: Intra-class Feature Variation Distillation for Semantic Segmentation",
    properties="zero_at_teacher scale_invariant widths_differ",
)  # fmt: skip
def ifvd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
    regions: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:  # fmt: skip
    """``(cos(s_i, mean of its class) - cos(t_i, mean of its class))^2`` of each row i.

    How far each row stands from the prototype of its class (or region) within its item, a mean over rows of that class,
    itself among them. Weight to be tuned, from 10.
    """
    same_rows(student, teacher)
    found, which = groups(item, regions)
    towards = []
    for rows in (student, teacher):
        prototypes = direction(item_mean(rows, which, len(found)))
        towards.append((direction(rows) * prototypes[which]).sum(dim=1))
    return (towards[0] - towards[1]).square()


@loss(
    "intra_kd", reduction="items", family="relations", year=2020, needs="features", confidence="B",
    paper="Hou et al.: Inter-Region Affinity Distillation for Road Marking Segmentation",
    properties="zero_at_teacher widths_differ selective",
)  # fmt: skip
def intra_kd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
    regions: Int[Tensor, " n"], *, least: Count = 1,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``mean_r mean_ij (A_r^s - A_r^t)^2``, ``A_r(i, j)`` the cosine of the r-th moments of an item's regions i and j.

    Moments of each channel over a region's rows: ``m1 = mean f``, ``m2 = mean (f - m1)^2``, ``m3 = mean ((f - m1) /
    (m2 + 1e-6))^3``. The paper smooths the masks of classes to areas that hold some context; here the adapter's signal
    `regions` does, or the labels as they are. Weight from 0.1.

    Args:
        least: rows that a region must have, others are skipped: the third moment of a few says nothing (try 10).
    """
    same_rows(student, teacher)
    found, which = groups(item, regions)
    kept = torch.bincount(which, minlength=len(found)) >= least
    owner = found[kept, 0]
    difference = None
    for m_s, m_t in zip(_moments(student, which, len(found)), _moments(teacher, which, len(found)), strict=True):
        affinity_s, affinity_t = (_affinity(m[kept], owner, items) for m in (m_s, m_t))
        one = (affinity_s - affinity_t).square().sum(dim=(1, 2))
        difference = one if difference is None else difference + one
    assert difference is not None
    number = torch.bincount(owner, minlength=items)
    return difference / (3 * number.clamp(min=1).square()), number > 0


def _moments(rows: Tensor, which: Tensor, number: int) -> list[Tensor]:
    """Three moments ``(g, c)`` of each group's rows."""
    mean = item_mean(rows, which, number)
    centred = rows - mean[which]
    size = item_mean(rows.detach().square(), which, number).clamp(min=1)
    centred = centred * varies(item_mean(centred.detach().square(), which, number), size)[which]
    variance = item_mean(centred.square(), which, number)
    skewness = item_mean((centred / (variance[which] + 1e-6)).pow(3), which, number)
    skewed = torch.bincount(which, minlength=number) > 2  # the third moment of two rows is 0, and in floats its noise
    return [mean, variance, skewness * skewed[:, None]]


def _affinity(moments: Tensor, owner: Tensor, items: int) -> Tensor:
    """``(b, r, r)`` cosines of an item's regions, 0 beyond their number."""
    regions, _ = side_by_side(direction(moments), owner, items)
    return regions @ regions.mT


@loss(
    "lsp", reduction="rows", family="relations", year=2020, needs="features", confidence="B",
    paper="Yang et al.: Distilling Knowledge from Graph Convolutional Networks (local structure preserving)",
    properties="zero_at_teacher row_shift_invariant widths_differ",
)  # fmt: skip
def lsp(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
    *, neighbours: Count = 8, sigma: Positive = 1.0,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``KL(L_s || L_t)`` with L the softmax over a row's neighbours of ``exp(-|f_i - f_j|^2 / (2 sigma^2))``.

    The graph is the teacher's: the `neighbours` nearest rows of the same item in its features (fewer in a small item).
    The student's distribution stands first, as in the paper; the release has the teacher's first, and other distances.
    Distances far above `sigma` say nothing, so set it to the features' scale. A row alone in its item counts 0.
    """
    same_rows(student, teacher)
    neighbour, there = _nearest_of_item(teacher, item, items, neighbours)

    def block(part: slice) -> Tensor:
        log_s, log_t = (_structure(rows, neighbour[part], there[part], part, sigma) for rows in (student, teacher))
        return (log_s.exp() * (log_s - log_t)).sum(dim=1)

    width = max(student.shape[1], teacher.shape[1])
    return torch.cat(in_blocks(block, len(student), neighbour.shape[1] * width))


def _nearest_of_item(rows: Tensor, item: Tensor, items: int, number: int) -> tuple[Tensor, Tensor]:
    """``(n, k)`` nearest rows of the same item, itself left out, and which of them exist."""
    neighbour = torch.zeros(len(rows), number, dtype=torch.int64, device=rows.device)
    there = torch.zeros_like(neighbour, dtype=torch.bool)
    for own in row_numbers(item, items):
        if (count := min(number, len(own) - 1)) > 0:
            neighbour[own, :count] = own[neighbours_of(rows[own], count)]
            there[own, :count] = True
    return neighbour, there


def _structure(rows: Tensor, neighbour: Tensor, there: Tensor, part: slice, sigma: float) -> Tensor:
    """``(k, neighbours)`` log-softmax of a part's similarities; all alike at a row without neighbours."""
    squared = (rows[part, None] - rows[neighbour]).square().sum(dim=-1)
    similarity = torch.exp(-squared / (2 * sigma**2))
    lonely = ~there.any(dim=1, keepdim=True)
    return F.log_softmax(similarity.masked_fill(~there & ~lonely, -1e9), dim=1)
