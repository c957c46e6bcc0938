"""DistillBEV: a teacher's map of the ground, where things are and where it is active."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from xmodal_kd.losses.base import Positive, item_mean, item_sum, loss, same_shape
from xmodal_kd.losses.blocks import groups
from xmodal_kd.losses.connectors import Place, grid_conv
from xmodal_kd.losses.features import log_softmax_over_rows

Weight = Annotated[float, Field(ge=0)]


@loss(
    "distillbev", reduction="items", family="features", year=2023, needs="features",
    paper="Wang et al.: DistillBEV: Boosting Multi-Camera 3D Object Detection with Cross-Modal Knowledge Distillation",
)  # fmt: skip
class DistillBev(nn.Module):
    """``foreground L_fg + background L_bg + channel L_ch + spatial L_sp``, sums over an item.

    L_fg and L_bg are ``sum (s - t)^2 S A C``: A and C say where and in which channels the teacher is active, by softmax
    of mean absolute values at `temperature`, times the number of rows and of channels; S is one over the root of the
    rows of a row's thing, but at least one over those of the background, which it is there. L_ch and L_sp are the
    absolute differences of means over rows of each channel, and over channels of each row, the student's after a 3 x 3
    convolution that learns.

    The term's ``regions`` names a signal of a thing's number in each row, 0 where there is none. A projector before it
    brings the student to the teacher's width. The paper takes the area of a box for its rows; false positives are
    further regions of the method ``distillbev_fp``. The defaults are those of students like BEVDepth; those like
    BEVFormer have 3e-3, 4e-2, 0 and 1e-3.
    """

    def __init__(
        self, student_width: int, teacher_width: int, axes: int,
        *, temperature: Positive = 0.5, foreground: Weight = 1.5e-3, background: Weight = 4e-2, channel: Weight = 0.25,
        spatial: Weight = 2.5e-3,
    ):  # fmt: skip
        super().__init__()
        self.temperature, self.inside, self.outside = temperature, foreground, background
        self.channel, self.spatial = channel, spatial
        self.pooled = grid_conv(1, 1, 3, axes)

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
        regions: Int[Tensor, " n"], cell: Int[Tensor, " n"], grid: tuple[int, ...] | None,
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        squared, channels, places = self.compared(student, teacher, item, items, cell, grid)
        weighed = torch.where(regions > 0, self.inside * squared, self.outside * squared)
        focal = item_sum(weighed * self.scales(item, items, regions, squared), item, items)
        counted = torch.bincount(item, minlength=items) > 0
        return (focal + self.channel * channels + self.spatial * places) * counted, counted

    def compared(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
        cell: Int[Tensor, " n"], grid: tuple[int, ...] | None,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " b"], Float[Tensor, " b"]]:  # fmt: skip
        """``(s - t)^2 A C`` of each row, and L_ch and L_sp of each item."""
        same_shape(student, teacher)
        size = teacher.abs()
        rows = torch.bincount(item, minlength=items)
        where = log_softmax_over_rows(size.mean(dim=1, keepdim=True) / self.temperature, item, items).exp().squeeze(1)
        which = student.shape[1] * torch.softmax(item_mean(size, item, items) / self.temperature, dim=1)
        squared = ((student - teacher).square() * which[item]).sum(dim=1) * where * rows[item]
        channels = (item_mean(student, item, items) - item_mean(teacher, item, items)).abs().sum(dim=1)
        mine = Place(cell, items, grid).apply(self.pooled, student.mean(dim=1, keepdim=True))
        places = item_sum((mine - teacher.mean(dim=1, keepdim=True)).abs().squeeze(1), item, items)
        return squared, channels, places

    @staticmethod
    def scales(
        item: Int[Tensor, " n"], items: int, regions: Int[Tensor, " n"], like: Tensor,
        errors: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:  # fmt: skip
        """S of each row; of the cells of a false positive, which are none of the background, one over their number.

        Args:
            errors: number of the false positive that a row of no thing is in, from 1; 0 of none.
        """
        errors = torch.zeros_like(regions) if errors is None else errors
        thing, wrong = regions > 0, errors > 0
        others = torch.bincount(item[~thing & ~wrong], minlength=items).to(like)
        behind = torch.where(others > 0, 1 / others, 0.0)[item]
        found, which = groups(item, regions.clamp(min=0), errors)
        number = torch.bincount(which, minlength=len(found)).to(like)[which]
        return torch.where(thing, torch.maximum(number.rsqrt(), behind), torch.where(wrong, 1 / number, behind))


__all__ = ["DistillBev"]
