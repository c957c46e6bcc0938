"""Losses that remember what the teacher says of a class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Positive, loss, same_shape
from .connectors import over_ranks


@loss(
    "ikl_classes", reduction="rows", family="logits", year=2024, properties="shift_invariant",
    paper="Cui et al.: Decoupled Kullback-Leibler Divergence Loss (global weights)",
)  # fmt: skip
class IklClasses(nn.Module):
    """`ikl` with weights of the label's class, the mean of ``softmax(teacher / weight_temperature)`` over it.

    A row of which the teacher is wrongly sure then weighs differences of logits as its class does. The mean is over all
    rows of the class so far, before this batch, and even for a class of which none was seen; the release takes that of
    the epoch before, which is the same where the teacher sees the same samples in every epoch.
    """

    total: Tensor
    count: Tensor

    def __init__(
        self, student_width: int, teacher_width: int,
        *, alpha: float = 1.0, beta: float = 8.0, temperature: Positive = 4.0, weight_temperature: Positive = 100.0,
    ):  # fmt: skip
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.temperature, self.weight_temperature = temperature, weight_temperature
        self.register_buffer("total", torch.zeros(teacher_width, teacher_width))
        self.register_buffer("count", torch.zeros(teacher_width))

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        same_shape(student, teacher)
        if labels.shape != student.shape[:1]:
            raise ValueError(f"labels {tuple(labels.shape)} are not one a row of the student {tuple(student.shape)}")
        seen = self.count[:, None]
        weight = torch.where(seen > 0, self.total / seen.clamp(min=1), 1 / len(seen))[labels].to(student)
        difference = teacher - student
        spread = difference - (weight * difference).sum(dim=-1, keepdim=True)
        p_t = torch.softmax(teacher / self.temperature, dim=-1)
        log_s = F.log_softmax(student / self.temperature, dim=-1)
        if self.training and torch.is_grad_enabled():
            self._remember(teacher, labels)
        return self.beta / 2 * (weight * spread.square()).sum(dim=-1) - self.alpha * (p_t * log_s).sum(dim=-1)

    @torch.no_grad()
    def _remember(self, teacher: Tensor, labels: Tensor) -> None:
        said = torch.softmax(teacher / self.weight_temperature, dim=-1).to(self.total)
        of = F.one_hot(labels, len(self.count)).to(said)
        self.total += over_ranks(of.T @ said)
        self.count += over_ranks(of.sum(dim=0))
