"""Losses that speak of regions of an item: supervoxels, superpixels, phones. Values are means over regions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, item_mean, item_sum, loss, same_rows, same_shape
from .blocks import groups, side_by_side
from .guards import direction
from .logits import kl

Count = Annotated[int, Field(ge=1)]


@loss(
    "affinity", reduction="items", family="relations", year=2022, needs="features", confidence="B",
    paper="Hou et al.: Point-to-Voxel Knowledge Distillation for LiDAR Semantic Segmentation (affinity)",
    properties="zero_at_teacher scale_invariant widths_differ",
)  # fmt: skip
def affinity(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
    regions: Int[Tensor, " n"], *, least: Count = 2,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``mean_r mean_ij (A_s - A_t)^2``, ``A(i, j)`` the cosine of rows i and j of region r (section 3.3).

    How the points, or voxels, of a supervoxel resemble one another, whatever the widths. Returned are each item's sum
    over its regions and their number, so that every region of the global batch counts alike. A region larger than the
    features are wide costs (c x c) products and not pairs of rows; its value is then a difference of large numbers,
    exact to about 1e-6 in float32. The paper draws four supervoxels a scan by difficulty and a fixed number of points
    in each; here the signal `regions` says which rows take part. Published weights (recalled, there is no code): 0.15
    on points and 0.25 on voxels.

    Args:
        least: rows that a region must have, others are left out: a row alone is like itself on either side.
    """
    same_rows(student, teacher)
    found, which = groups(item, regions)
    counts = torch.bincount(which, minlength=len(found))
    values = item_sum(student.sum(dim=1) * 0.0, item, items)  # keeps the graph where no region is left
    for chosen in _of_like_size(counts, least):
        number = torch.full_like(counts, -1).index_copy(0, chosen, torch.arange(len(chosen), device=item.device))[which]
        inside = number >= 0
        s, t = (
            side_by_side(direction(x[inside], revive=True), number[inside], len(chosen))[0] for x in (student, teacher)
        )
        mean = _gram_difference(s, t) / counts[chosen].square()
        values = values.index_add(0, found[chosen, 0], mean)
    return values, torch.bincount(found[counts >= least, 0], minlength=items)


def _of_like_size(counts: Tensor, least: int) -> Iterator[Tensor]:
    """Numbers of the groups of at least `least` rows, those of 2^k to 2^(k + 1) - 1 rows together.

    Laid side by side they take less than twice the memory of their rows.
    """
    size = torch.frexp(counts.double()).exponent.masked_fill(counts < least, -1)
    for one in size.unique().tolist():
        if one >= 0:
            yield (size == one).nonzero().squeeze(1)


def _gram_difference(s: Tensor, t: Tensor) -> Tensor:
    """``(g,)``: ``|S S' - T T'|_F^2`` of each group's rows ``(g, m, c)`` and ``(g, m, d)``, by the smaller products."""
    if s.shape[1] <= max(s.shape[2], t.shape[2]):
        return (s @ s.mT - t @ t.mT).square().sum(dim=(1, 2))
    own = (s.mT @ s).square().sum(dim=(1, 2)) + (t.mT @ t).square().sum(dim=(1, 2))
    cross: Tensor = (s.mT @ t).square().sum(dim=(1, 2))
    return own - 2 * cross


@loss(
    "region_kd", reduction="items", family="logits", year=2022, confidence="B",
    paper="Hou et al.: Point-to-Voxel Knowledge Distillation for LiDAR Semantic Segmentation (voxel output)",
    properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def region_kd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    regions: Int[Tensor, " n"], *, temperature: Positive = 1.0,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``mean_r T^2 KL(softmax(t_r/T) || softmax(s_r/T))``, ``t_r`` and ``s_r`` the mean logits of region r's rows.

    Every voxel counts alike, however many points it holds, so that far and sparse places are heard beside `kd` of
    points. Returned are each item's sum over its regions and their number. Published weights (recalled, there is no
    code) are 0.1 on points and 0.15 on voxels, of means over regions *and* classes: divide them by the number of
    classes for this sum over classes.
    """
    same_shape(student, teacher)
    found, which = groups(item, regions)
    log_s, log_t = (F.log_softmax(item_mean(x, which, len(found)) / temperature, dim=-1) for x in (student, teacher))
    return item_sum(temperature**2 * kl(log_t, log_s), found[:, 0], items), torch.bincount(found[:, 0], minlength=items)
