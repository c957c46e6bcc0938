"""Feature losses on maps that attention to channels and positions has weighed first."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from .base import item_mean, item_sum, loss
from .connectors import Kernel, NormKind, Place, RowNorm, built_for, grid_conv
from .guards import inverse_root
from .learned_features import Connected


@loss(
    "attnfd", reduction="items", family="attention", year=2024, needs="features",
    paper="Mansourian, Jalali, Ahmadi, Kasaei: Attention-guided Feature Distillation for Semantic Segmentation",
    properties="widths_differ batch_statistics",
)  # fmt: skip
class AttnFd(Connected):
    """``|u_s/|u_s| - u_t/|u_t||^2`` over an item's rows and channels, u the features under attention.

    Both sides are weighed as CBAM does (Woo et al., 2018): each channel by ``sigmoid(g(mean) + g(max))`` over the
    item's rows, then each row by ``sigmoid(h(max, mean))`` over its channels. The teacher's g is the identity and its h
    the sum, so nothing of it learns; the student's g is an MLP of two layers and h a convolution of 7 cells a side and
    a norm. A linear map and a norm bring the student to the teacher's width. An item's map has length 1; the release
    divides by the length of the whole batch, which makes an item's value depend on the others and is the same for
    one item. Published with a weight of 2 for the sum over the layers, of the whole batch's length.

    Args:
        reduction: of the MLP's hidden layer.
        kernel: of h, on a grid.
        norm: as in `RowNorm`.
    """

    def __init__(
        self, student_width: int, teacher_width: int, axes: int,
        *, reduction: Annotated[int, Field(ge=1)] = 16, kernel: Kernel = 7, norm: NormKind = "batch",
    ):  # fmt: skip
        super().__init__(student_width, teacher_width, norm)
        hidden = max(1, student_width // reduction)
        self.channels = nn.Sequential(nn.Linear(student_width, hidden), nn.ReLU(), nn.Linear(hidden, student_width))
        self.rows, self.rows_norm = grid_conv(2, 1, kernel, axes, bias=False), RowNorm(norm, 1, momentum=0.01)

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
        cell: Int[Tensor, " n"], grid: tuple[int, ...] | None,
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        built_for(student, teacher, *self.widths)
        mean, most = item_mean(student, item, items), _item_max(student, item, items)
        s = student * torch.sigmoid(self.channels(mean) + self.channels(most))[item]
        where = self.rows_norm(Place(cell, items, grid).apply(self.rows, _seen(s)))
        s = self.connected(s * torch.sigmoid(where), teacher)
        t = teacher * torch.sigmoid(item_mean(teacher, item, items) + _item_max(teacher, item, items))[item]
        t = t * torch.sigmoid(_seen(t).sum(dim=1, keepdim=True))
        apart = (_of_length_one(s, item, items) - _of_length_one(t, item, items)).square()
        return item_sum(apart.sum(dim=1), item, items), torch.bincount(item, minlength=items) > 0


def _seen(rows: Tensor) -> Float[Tensor, "n 2"]:
    """The most and the mean of each row's channels."""
    return torch.stack([rows.amax(dim=1), rows.mean(dim=1)], dim=1)


def _item_max(rows: Tensor, item: Tensor, items: int) -> Float[Tensor, "b c"]:
    """Each channel's most in an item; 0 for an item without rows."""
    index = item[:, None].expand_as(rows)
    return rows.new_zeros(items, rows.shape[1]).scatter_reduce(0, index, rows, "amax", include_self=False)


def _of_length_one(rows: Tensor, item: Tensor, items: int) -> Tensor:
    return rows * inverse_root(item_sum(rows.square().sum(dim=1), item, items))[item][:, None]
