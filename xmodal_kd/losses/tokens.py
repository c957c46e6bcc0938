"""Feature losses made for vision transformers: shallow layers are copied, deep ones generated."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import item_sum, loss
from .connectors import Place, built_for, grid_conv

Weight = Annotated[float, Field(ge=0)]
Rows = list[Float[Tensor, "n c"]]


@loss(
    "vitkd", reduction="items", family="transformers", year=2022, needs="hidden",
    paper="Yang et al.: ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation",
    properties="widths_differ random selective",
)  # fmt: skip
class Vitkd(nn.Module):
    """``mimic sum |P_l s_l - t_l|^2 + generate / hidden sum_hidden |G(x) - t|^2``, sums over an item's tokens.

    ``on`` lists layers of either side, the shallow ones first (the paper takes the first two), the last layer last.
    Shallow layers are copied through a linear map each. Of the last the share `hidden` of an item's tokens is replaced
    by one learned token, and two convolutions with a ReLU make the teacher's of them: a student has no shallow twin of
    the teacher's last layer. For tokens on a grid, without the class token: what stands in a hidden token's place is
    made of its neighbours.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int], axes: list[int],
        *, mimic: Weight = 3e-5, generate: Weight = 3e-6, hidden: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        kernel: Literal[3, 5, 7] = 3,
    ):  # fmt: skip
        super().__init__()
        if len(student_width) != len(teacher_width) or len(student_width) < 2:
            raise ValueError(
                f"vitkd pairs layers, shallow ones and the last: it needs at least 2 of either side, got "
                f"{len(student_width)} and {len(teacher_width)}"
            )
        self.widths = list(zip(student_width, teacher_width, strict=True))
        self.mimic, self.generate, self.hidden = mimic, generate, hidden
        self.align = nn.ModuleList(nn.Linear(a, b) for a, b in self.widths)
        wide = teacher_width[-1]
        self.token = nn.Parameter(torch.zeros(wide))
        self.generator = nn.ModuleList(grid_conv(wide, wide, kernel, axes[-1]) for _ in range(2))

    def forward(
        self, student: Rows, teacher: Rows, item: list[Int[Tensor, " n"]], items: int, cell: list[Int[Tensor, " n"]],
        grid: list[tuple[int, ...]],
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        made = []
        for s, t, widths, layer in zip(student, teacher, self.widths, self.align, strict=True):
            built_for(s, t, *widths)
            made.append(layer(s))
        values = student[0].new_zeros(items)
        for x, t, own in zip(made[:-1], teacher[:-1], item[:-1], strict=True):
            values = values + self.mimic * item_sum((x - t).square().sum(dim=1), own, items)
        own, place = item[-1], Place(cell[-1], items, grid[-1])
        noise = self.kept(len(own), items, student[-1].shape[1]).to(own.device)
        covered = self._covered(noise, own, items)[:, None]
        x = torch.where(covered, self.token.to(made[-1]), made[-1])
        x = place.apply(self.generator[1], F.relu(place.apply(self.generator[0], x)))
        squared = ((x - teacher[-1]).square() * covered).sum(dim=1)
        values = values + self.generate / self.hidden * item_sum(squared, own, items)
        return values, torch.bincount(own, minlength=items) > 0

    def kept(self, rows: int, items: int, width: int) -> Tensor:
        """Noise ``(n,)``: of an item the tokens with the least of it stay. Drawn on the CPU, as in `mgd`."""
        return torch.rand(rows, dtype=torch.float32)

    def _covered(self, noise: Tensor, item: Tensor, items: int) -> Tensor:
        """``(n,)`` whether a token is replaced: all but the first ``int((1 - hidden) n)`` of its item by noise."""
        order = torch.argsort(noise, stable=True)
        order = order[torch.argsort(item[order], stable=True)]
        count = torch.bincount(item, minlength=items)
        rank = torch.empty_like(item)
        rank[order] = torch.arange(len(item), device=item.device) - (count.cumsum(0) - count)[item[order]]
        return rank >= (count * (1 - self.hidden)).long()[item]
