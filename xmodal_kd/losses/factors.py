"""Factors: what an auto-encoder of the teacher's map keeps, and the student's translation of its own map into them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Positive, item_mean, item_sum, loss
from .connectors import Kernel, Place, built_for, grid_conv
from .guards import inverse_root


class _Coder(nn.Sequential):
    """Three convolutions, each with a leaky ReLU."""

    def __init__(self, widths: tuple[int, int, int, int], kernel: Kernel, axes: int) -> None:
        super().__init__(*(grid_conv(a, b, kernel, axes) for a, b in pairwise(widths)))

    def code(self, rows: Tensor, place: Place) -> Tensor:
        for layer in self:
            rows = F.leaky_relu(place.apply(layer, rows), 0.1)
        return rows


@loss(
    "ft", reduction="items", family="features", year=2018, needs="features", properties="widths_differ",
    paper="Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer",
)  # fmt: skip
class Ft(nn.Module):
    """``mean |F_s/|F_s| - F_t/|F_t||`` of an item's factors (p = 1), of k times the teacher's channels.

    F_t is the middle of the paraphraser, an auto-encoder of the teacher's map which learns without labels by mean
    squared error; F_s is the student's translator. The factor loss never reaches the paraphraser. For maps on a grid,
    and position by position for rows without one. Published with a weight of 200.

    Args:
        factor: ``paper`` normalises the whole factor, rows and channels; ``attention`` is the released code's: the
            mean square over channels of each row, normalised over the rows.
        pretrain: share of the training in which only the paraphraser learns, and after which it is fixed: the paper's
            two stages (it took 30 epochs for the first). None lets it learn all along, beside the student.
        reconstruction: weight of the paraphraser's own loss beside the factor loss when `pretrain` is None.
    """

    def __init__(
        self, student_width: int, teacher_width: int, axes: int,
        *, k: Positive = 0.5, kernel: Kernel = 3, factor: Literal["paper", "attention"] = "paper",
        pretrain: Annotated[float, Field(gt=0, lt=1)] | None = None, reconstruction: Positive = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.factor, self.pretrain, self.reconstruction = factor, pretrain, reconstruction
        self.widths = student_width, teacher_width
        width = max(1, round(k * teacher_width))
        self.paraphraser = _Coder((teacher_width, teacher_width, width, width), kernel, axes)
        self.decoder = _Coder((width, width, teacher_width, teacher_width), kernel, axes)
        self.translator = _Coder((student_width, student_width, width, width), kernel, axes)

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
        cell: Int[Tensor, " n"], grid: tuple[int, ...] | None, progress: float,
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        built_for(student, teacher, *self.widths)
        place, counted = Place(cell, items, grid), torch.bincount(item, minlength=items) > 0
        if self.pretrain is not None and progress < self.pretrain:
            return self._reconstruction(teacher, place, item, items), counted
        with torch.no_grad():
            theirs = self._normalised(self.paraphraser.code(teacher, place), item, items)
        mine = self._normalised(self.translator.code(student, place), item, items)
        values = item_mean((mine - theirs).abs().mean(dim=-1), item, items)
        if self.pretrain is None:
            values = values + self.reconstruction * self._reconstruction(teacher, place, item, items)
        return values, counted

    def _reconstruction(self, teacher: Tensor, place: Place, item: Tensor, items: int) -> Tensor:
        """``(b,)`` mean squared error of the auto-encoder."""
        made = self.decoder.code(self.paraphraser.code(teacher, place), place)
        return item_mean((made - teacher).square().mean(dim=-1), item, items)

    def _normalised(self, rows: Tensor, item: Tensor, items: int) -> Tensor:
        """Factor rows over the norm of their item's factor; a factor of zeros stays 0."""
        if self.factor == "attention":
            rows = rows.square().mean(dim=-1, keepdim=True)
        squared = item_sum(rows.square().sum(dim=-1), item, items)
        return rows * inverse_root(squared)[item, None]
