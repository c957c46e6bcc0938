"""Losses of features that a classifier of either side judges, or takes over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Positive, item_mean, loss, same_shape
from .connectors import Kernel, NormKind, Place, RowNorm, built_for, grid_conv
from .learned_features import Connected
from .logits import kl


@loss(
    "simkd", reduction="rows", family="features", year=2022, needs="features",
    paper="Chen et al.: Knowledge Distillation with the Reused Teacher Classifier",
    properties="widths_differ batch_statistics",
)  # fmt: skip
class Simkd(nn.Module):
    """``mean_c (P(s) - t)^2`` of the last features, the only loss of a student that reuses the teacher's head.

    P is a 1 x 1 convolution to half the teacher's width, one of `kernel` cells a side over the grid, and a 1 x 1 to
    its width, each with a norm and a ReLU; for teacher features behind a ReLU. At inference the student is its trunk,
    P (this module, in the objective) and the frozen head. Published with a weight of 1 and no other term.
    """

    def __init__(
        self, student_width: int, teacher_width: int, axes: int, *, kernel: Kernel = 3, norm: NormKind = "batch"
    ):
        super().__init__()
        self.widths, half = (student_width, teacher_width), max(1, teacher_width // 2)
        first, last = (nn.Linear(a, b, bias=False) for a, b in ((student_width, half), (half, teacher_width)))
        self.conv = nn.ModuleList([first, grid_conv(half, half, kernel, axes, bias=False), last])
        self.norm = nn.ModuleList(RowNorm(norm, width) for width in (half, half, teacher_width))

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"],
        items: int, cell: Int[Tensor, " n"], grid: tuple[int, ...] | None,
    ) -> Float[Tensor, " n"]:  # fmt: skip
        built_for(student, teacher, *self.widths)
        place, rows = Place(cell, items, grid), student
        for conv, norm in zip(self.conv, self.norm, strict=True):
            rows = F.relu(norm(place.apply(conv, rows)))
        return (rows - teacher).square().mean(dim=-1)


@loss(
    "srrl", reduction="items", family="features", year=2021, needs="features head",
    paper="Yang et al.: Knowledge Distillation via Softmax Regression Representation Learning",
    properties="widths_differ tied_widths batch_statistics",
)  # fmt: skip
class Srrl(Connected):
    """``mean_c (gap(g) - gap(t))^2 + w mean_k (H(gap(g)) - H(gap(t)))^2`` of an item, ``g = ReLU(norm(linear(s)))``.

    H is the teacher's frozen head (the term's ``head``), through which the student's gradient passes. gap is the mean
    over an item's rows. Published with w = 1 beside the cross-entropy of the student's own head.

    Args:
        weight: w.
        pool: feed the head an item's mean; without it each row, as a head for frames or pixels wants, both parts then
            being means over the item's rows.
    """

    def __init__(
        self, student_width: int, teacher_width: int,
        *, weight: Annotated[float, Field(ge=0)] = 1.0, norm: NormKind = "batch", pool: bool = True,
    ):  # fmt: skip
        super().__init__(student_width, teacher_width, norm)
        self.weight, self.pool = weight, pool

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"],
        item: Int[Tensor, " n"], items: int, head: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
        g, t = F.relu(self.connected(student, teacher)), teacher
        counted = torch.bincount(item, minlength=items) > 0
        if self.pool:
            g, t = item_mean(g, item, items), item_mean(t, item, items)
        with torch.no_grad():
            scores = head(t)
        values = (g - t).square().mean(dim=-1) + self.weight * (head(g) - scores).square().mean(dim=-1)
        return (values if self.pool else item_mean(values, item, items)) * counted, counted


@loss(
    "dskd", reduction="rows", family="logits", year=2024, needs="logits features head own_head",
    paper="Zhang et al.: Dual-Space Knowledge Distillation for Large Language Models", properties="labelled_lists",
)  # fmt: skip
class Dskd(nn.Module):
    """``CE(S(P h_t), y) + KL(S(P h_t) || z_s) + KL(z_t || T(Q h_s))`` a row, the KLs at `temperature`.

    Each side's last features h, through a linear map, are read by the other side's head (the term's ``head``): S is the
    student's, T the teacher's, and neither learns of it. So the teacher speaks in the student's space, where P learns
    from the labels alone, and the student in the teacher's. ``on`` lists the logits z and what the heads are given,
    ``[logits, features]``. Published with weights of a half of this and of the cross-entropy, at temperature 2, without
    its square. The cross-model attention for two vocabularies is not built.
    """

    def __init__(self, student_width: list[int], teacher_width: list[int], *, temperature: Positive = 2.0):
        super().__init__()
        if len(student_width) != 2 or len(teacher_width) != 2:
            raise ValueError("dskd asks for the logits and what each head is given: on: [logits, features]")
        mine, theirs = student_width[1], teacher_width[1]
        self.temperature, self.widths = temperature, (mine, theirs)
        self.to_student, self.to_teacher = nn.Linear(theirs, mine), nn.Linear(mine, theirs)

    def forward(
        self, student: list[Float[Tensor, "n _"]], teacher: list[Float[Tensor, "n _"]], labels: Int[Tensor, " n"],
        head: Callable[[Tensor], Tensor], own_head: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, " n"]:  # fmt: skip
        (z_s, h_s), (z_t, h_t) = student, teacher
        built_for(h_s, h_t, *self.widths)
        same_shape(z_s, z_t)
        seen, told = own_head(self.to_student(h_t)), head(self.to_teacher(h_s))
        log_s, log_seen, log_t, log_told = (
            F.log_softmax(z / self.temperature, dim=-1) for z in (z_s, seen.detach(), z_t, told)
        )
        return F.cross_entropy(seen, labels, reduction="none") + kl(log_seen, log_s) + kl(log_t, log_told)
