"""Feature losses for maps with objects in them: what lies in one, what around it, and how they belong together."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from .base import Positive, item_mean, item_sum, loss, same_shape
from .blocks import groups
from .features import log_softmax_over_rows

Weight = Annotated[float, Field(ge=0)]


class _Context(nn.Module):
    """Rows with their item's context added (Cao et al., 2019, GCNet): a mean by attention, through a bottleneck."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = max(1, width // 2)
        self.mask = nn.Linear(width, 1)
        self.add = nn.Sequential(nn.Linear(width, half), nn.LayerNorm(half), nn.ReLU(), nn.Linear(half, width))
        last: nn.Linear = self.add[-1]  # type: ignore[assignment]
        nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)

    def forward(self, rows: Tensor, item: Tensor, items: int) -> Tensor:
        share = log_softmax_over_rows(self.mask(rows), item, items).exp()
        added: Tensor = self.add(item_sum(share * rows, item, items))
        return rows + added[item]


@loss(
    "fgd", reduction="items", family="features", year=2022, needs="features",
    paper="Yang et al.: Focal and Global Knowledge Distillation for Detectors",
)  # fmt: skip
class Fgd(nn.Module):
    """``foreground L_fg + background L_bg + attention L_att + relation L_global``, sums over an item.

    L_fg and L_bg are ``sum (s - t)^2 S_t C_t w``: S and C say where and in which channels the teacher is active, by
    softmax of mean absolute values at `temperature`, times the number of rows and of channels; w is one over the rows
    of a row's object, or of the item's background, so that small objects count as large ones. L_att is
    ``sum |S_s - S_t| + sum |C_s - C_t|``. L_global is the squared difference after the context of the whole item, a
    learned attention and bottleneck a side, has been added to each row.

    The term's ``regions`` names a signal of an object's number in each row, 0 where there is none; where boxes overlap
    the release takes the smaller one. A projector before it brings the student to the teacher's width. The defaults are
    published for one-stage detectors; two-stage ones have 5e-5, 2.5e-5, 5e-5 and 5e-7.
    """

    def __init__(
        self, student_width: int, teacher_width: int,
        *, temperature: Positive = 0.5, foreground: Weight = 1e-3, background: Weight = 5e-4, attention: Weight = 1e-3,
        relation: Weight = 5e-6,
    ):  # fmt: skip
        super().__init__()
        self.temperature = temperature
        self.inside, self.outside, self.attention, self.relation = foreground, background, attention, relation
        self.context_s, self.context_t = _Context(teacher_width), _Context(teacher_width)

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
        regions: Int[Tensor, " n"],
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        same_shape(student, teacher)
        (where_s, which_s), (where_t, which_t) = (self._active(rows, item, items) for rows in (student, teacher))
        squared = (student - teacher).square() * where_t[:, None] * which_t[item]
        focal = item_sum(squared.sum(dim=1) * self._weights(item, regions, student), item, items)
        masks = item_sum((where_s - where_t).abs(), item, items) + (which_s - which_t).abs().sum(dim=1)
        related = self.context_s(student, item, items) - self.context_t(teacher, item, items)
        counted = torch.bincount(item, minlength=items) > 0
        values = focal + self.attention * masks
        return (values + self.relation * item_sum(related.square().sum(dim=1), item, items)) * counted, counted

    def _active(self, rows: Tensor, item: Tensor, items: int) -> tuple[Tensor, Tensor]:
        """Attention to rows ``(n,)`` and to an item's channels ``(b, c)``, each with a mean of 1."""
        size = rows.abs()
        count = torch.bincount(item, minlength=items)[item]
        where = log_softmax_over_rows(size.mean(dim=1, keepdim=True) / self.temperature, item, items).exp()
        which = torch.softmax(item_mean(size, item, items) / self.temperature, dim=1)
        return count * where.squeeze(1), rows.shape[1] * which

    def _weights(self, item: Tensor, regions: Tensor, like: Tensor) -> Tensor:
        """``(n,)`` weight of each row: its part's over the number of rows of its object, or of the background."""
        object_ = regions.clamp(min=0)
        found, which = groups(item, object_)
        number = torch.bincount(which, minlength=len(found))[which]
        part = torch.where(object_ > 0, like.new_tensor(self.inside), like.new_tensor(self.outside))
        return part / number
