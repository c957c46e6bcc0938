"""Distillation whose difficulty is learnt: against the student, the harder the longer it has trained."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from . import blocks
from .base import Positive, beside, loss, same_shape
from .blocks import in_blocks, row_by_row
from .logits import kl, standardised


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned round and multiplied by `strength`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None


@loss(
    "ctkd", reduction="rows", family="adaptive", year=2023, properties="zero_at_teacher held_weight",
    paper="Li et al.: Curriculum Temperature for Knowledge Distillation",
)  # fmt: skip
class Ctkd(nn.Module):
    """``T^2 KL(softmax(t/T) || softmax(s/T))`` at a learned ``T = start + span sigmoid(theta)``.

    theta *raises* the loss: its gradient is reversed, with a strength that grows from 0 to 1 by a cosine over the first
    `ramp` of the training (10 of the paper's 240 epochs). Learnt by the student's optimizer. Serves wherever `kd` does.
    Published with a weight of 0.9 beside 0.1 cross-entropy.

    Args:
        mode: ``global`` learns one theta (1 at the start); ``instance`` predicts each row's by two linear maps with a
            ReLU from both sides' logits, which they send no gradient to.
        standardise: as in `kd`; the temperature is predicted from the logits as they are.
    """

    def __init__(
        self, student_width: int, teacher_width: int,
        *, mode: Literal["global", "instance"] = "global", start: Positive = 1.0, span: Positive = 20.0,
        ramp: Annotated[float, Field(ge=0, le=1)] = 0.04, standardise: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.start, self.span, self.ramp = start, span, ramp
        if mode == "global":
            self.theta = nn.Parameter(torch.ones(()))
        else:
            self.mlp = nn.Sequential(nn.Linear(student_width + teacher_width, 64), nn.ReLU(), nn.Linear(64, 1))
        self.mode, self.standardise = mode, standardise

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], progress: float
    ) -> Float[Tensor, " n"]:
        same_shape(student, teacher)
        temperature = self._temperature(student.detach(), teacher, progress)
        if self.standardise:
            student, teacher = standardised(student), standardised(teacher)
        if student.numel() <= blocks.BLOCK:
            return _tempered(student, teacher, temperature)
        values = row_by_row(_tempered, student, [teacher, temperature.detach()])
        rows, width = student.detach(), student.shape[1]
        of_temperature = in_blocks(
            lambda part: _tempered(rows[part], teacher[part], temperature[part]), len(rows), width
        )
        return beside(values, torch.cat(of_temperature))

    def _temperature(self, student: Tensor, teacher: Tensor, progress: float) -> Float[Tensor, "n 1"]:
        """Of each row, with a graph that turns the gradient round."""
        if self.mode == "global":
            theta = self.theta.expand(len(student), 1)
        else:
            pieces = in_blocks(lambda part: self.mlp(torch.cat([student[part], teacher[part]], dim=1)), *student.shape)
            theta = torch.cat(pieces)
        theta = _Reversed.apply(theta, self.strength(progress))
        return self.start + self.span * torch.sigmoid(theta)

    def strength(self, progress: float) -> float:
        """Of the reversal, from 0 to 1."""
        done = min(1.0, progress / self.ramp) if self.ramp else 1.0
        return 0.5 * (1 - math.cos(math.pi * done))


def _tempered(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """``T^2 KL`` of each row at its own temperature ``(n, 1)``."""
    log_p, log_q = (F.log_softmax(z / temperature, dim=-1) for z in (teacher, student))
    return temperature.square().squeeze(1) * kl(log_p, log_q)
