"""Feature losses on a part of a map: the rest is regenerated from what a mask leaves, or does not count."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import item_mean, item_sum, loss, same_shape
from .connectors import Kernel, Place, built_for, grid_conv

Share = Annotated[float, Field(ge=0, lt=1)]
Reduce = Literal["sum", "mean"]


class _Generator(nn.Sequential):
    """Two convolutions with a ReLU between them, which fill in what a mask has cut out."""

    def __init__(self, width: int, kernel: Kernel, axes: int) -> None:
        super().__init__(*(grid_conv(width, width, kernel, axes) for _ in range(2)))

    def fill(self, rows: Tensor, place: Place) -> Tensor:
        return place.apply(self[1], F.relu(place.apply(self[0], rows)))


def _per_item(squared: Tensor, item: Tensor, items: int, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Sum, or mean, of ``(n, c)`` over each item's rows and channels; and which items have rows."""
    if reduce == "sum":
        values = item_sum(squared.sum(dim=-1), item, items)
    else:
        values = item_mean(squared.mean(dim=-1), item, items)
    return values, torch.bincount(item, minlength=items) > 0


@loss(
    "mgd", reduction="items", family="features", year=2022, needs="features", properties="random selective",
    paper="Yang et al.: Masked Generative Distillation",
)  # fmt: skip
class Mgd(nn.Module):
    """``sum (G(s M) - t)^2`` over an item's rows and channels: the teacher's map from a masked one of the student.

    M leaves out each row (or each channel of an item) with probability `drop`; G is two convolutions with a ReLU, of
    `kernel` cells a side, or linear maps for rows without a grid. The term's projector brings the student to the
    teacher's width. Published weights for this *sum*: 2e-5 with drop 0.65 (one-stage detectors), 5e-7 with 0.45
    (two-stage), 2e-5 with 0.75 (segmentation), 7e-5 with channels and 0.15 (classification).

    Args:
        reduce: ``mean`` over rows and channels instead; its weight is the sum's times both numbers.
    """

    def __init__(
        self, student_width: int, teacher_width: int, axes: int,
        *, drop: Share = 0.65, mask: Literal["spatial", "channel"] = "spatial", kernel: Kernel = 3,
        reduce: Reduce = "sum",
    ):  # fmt: skip
        super().__init__()
        self.drop, self.mask, self.reduce = drop, mask, reduce
        self.generator = _Generator(teacher_width, kernel, axes)

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
        cell: Int[Tensor, " n"], grid: tuple[int, ...] | None,
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        same_shape(student, teacher)
        keep = self.kept(len(student), items, student.shape[1]).to(student)
        keep = keep if self.mask == "spatial" else keep[item]
        made = self.generator.fill(student * keep, Place(cell, items, grid))
        return _per_item((made - teacher).square(), item, items, self.reduce)

    def kept(self, rows: int, items: int, width: int) -> Tensor:
        """Which rows ``(n, 1)``, or channels of items ``(b, c)``, stay.

        Drawn on the CPU, whose generator the engine seeds for each step and micro-batch.
        """
        shape = (rows, 1) if self.mask == "spatial" else (items, width)
        return torch.rand(shape, dtype=torch.float32) >= self.drop


@loss(
    "dmkd", reduction="items", family="features", year=2024, needs="features", confidence="C",
    paper="inspired by Yang et al.: DMKD: Improving Feature-based Knowledge Distillation via Dual Masking",
)  # fmt: skip
class Dmkd(nn.Module):
    """Inspired by DMKD: ``sum (w_1 G_1(s M_sp) + w_2 G_2(s M_ch) - t)^2`` over an item's rows and channels.

    The important parts must be regenerated: M_sp cuts out the `drop` share of an item's rows on which the teacher is
    most active, M_ch that share of its channels, by mean absolute value. Two generators as in `mgd`; their results are
    mixed by the softmax of two learned numbers. Masks carry no gradient. Published weights belong to this *sum*: 2e-5
    (one-stage detectors), 5e-7 (two-stage).

    Args:
        reduce: ``mean`` over rows and channels instead.
    """

    def __init__(
        self, student_width: int, teacher_width: int, axes: int,
        *, drop: Share = 0.5, kernel: Kernel = 3, reduce: Reduce = "sum",
    ):  # fmt: skip
        super().__init__()
        self.drop, self.reduce = drop, reduce
        self.spatial = _Generator(teacher_width, kernel, axes)
        self.channel = _Generator(teacher_width, kernel, axes)
        self.mix = nn.Parameter(torch.zeros(2))

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
        cell: Int[Tensor, " n"], grid: tuple[int, ...] | None,
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        same_shape(student, teacher)
        place, (w_rows, w_channels) = Place(cell, items, grid), torch.softmax(self.mix, dim=0)
        rows = self.spatial.fill(student * self._quiet_rows(teacher, item, items), place)
        channels = self.channel.fill(student * self._quiet_channels(teacher, item, items)[item], place)
        made = w_rows * rows + w_channels * channels
        return _per_item((made - teacher).square(), item, items, self.reduce)

    def _quiet_rows(self, teacher: Tensor, item: Tensor, items: int) -> Tensor:
        """``(n, 1)``: 0 at each item's most active rows."""
        loudest = torch.argsort(teacher.abs().mean(dim=-1), descending=True, stable=True)
        order = loudest[torch.argsort(item[loudest], stable=True)]  # by item, the most active first
        count = torch.bincount(item, minlength=items)
        rank = torch.arange(len(item), device=item.device) - (count.cumsum(0) - count)[item[order]]
        keep = rank >= (self.drop * count.double()).floor()[item[order]]
        return torch.zeros_like(teacher[:, :1]).index_copy(0, order, keep.to(teacher)[:, None])

    def _quiet_channels(self, teacher: Tensor, item: Tensor, items: int) -> Tensor:
        """``(b, c)``: 0 at each item's most active channels."""
        active = item_mean(teacher.abs(), item, items)
        loudest = torch.argsort(active, dim=1, descending=True, stable=True)[:, : int(self.drop * active.shape[1])]
        return torch.ones_like(active).scatter(1, loudest, 0.0)


@loss(
    "fgfi", reduction="rows", family="features", year=2019, needs="features",
    paper="Wang et al.: Distilling Object Detectors with Fine-grained Feature Imitation",
    properties="widths_differ selective",
)  # fmt: skip
class Fgfi(nn.Module):
    """``0.5 sum_c (P(s) - t)^2`` of the rows inside the imitated region, over their number.

    The region (the term's ``regions`` names a signal of it, above 0 inside and 0 outside) is the adapter's to find:
    the paper's are cells near which anchors overlap an object by more than half of the best. P is a convolution of
    `kernel` cells a side and a ReLU. Published with a weight of 0.01, from some hundred steps on, at each level.
    """

    def __init__(self, student_width: int, teacher_width: int, axes: int, *, kernel: Kernel = 3, relu: bool = True):
        super().__init__()
        self.widths = student_width, teacher_width
        self.adapt = grid_conv(student_width, teacher_width, kernel, axes)
        self.relu = relu

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], regions: Int[Tensor, " n"],
        items: int, cell: Int[Tensor, " n"], grid: tuple[int, ...] | None,
    ) -> tuple[Float[Tensor, " n"], Tensor]:  # fmt: skip
        built_for(student, teacher, *self.widths)
        adapted = Place(cell, items, grid).apply(self.adapt, student)
        adapted = F.relu(adapted) if self.relu else adapted
        inside = regions > 0
        return 0.5 * (adapted - teacher).square().sum(dim=-1) * inside, inside
