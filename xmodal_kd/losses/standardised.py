"""Feature losses against several teachers of unlike scale: each is standardised, and has an adaptor of its own."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from .base import loss
from .connectors import built_for, moments, over_ranks


@loss(
    "phi_s", reduction="rows", family="features", year=2025, needs="features",
    paper="Ranzinger et al.: PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation",
    properties="widths_differ batch_statistics",
)  # fmt: skip
class PhiS(nn.Module):
    """``mean_c (A s - R (t - mean))^2``: the teacher's channels turned and scaled so that all have variance 1.

    ``R = H U' / sqrt(mean variance)`` with U the principal axes and H Hadamard's matrix: one factor for all channels,
    so that no direction's error is blown up as whitening does, and every channel has an equal part of every axis. Terms
    of several teachers then weigh alike, whatever their scale: one term a teacher, ``on: {teacher: NAME/path}``, whose
    linear adaptor A is its own and stays in the objective. H exists for powers of 2; other teachers are filled up to
    the next one by channels of 0, which changes no distance.

    Args:
        rows: of the teacher, of which mean and covariance are taken while training goes on; then they stay.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor
    turn: Tensor

    def __init__(self, student_width: int, teacher_width: int, *, rows: Annotated[int, Field(ge=2)] = 100000):
        super().__init__()
        self.widths, self.rows = (student_width, teacher_width), rows
        full = 1 << max(teacher_width - 1, 0).bit_length()
        self.adaptor = nn.Linear(student_width, full)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(teacher_width))
        self.register_buffer("scatter", torch.zeros(teacher_width, teacher_width))
        self.register_buffer("turn", torch.zeros(full, teacher_width))

    def forward(self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        built_for(student, teacher, *self.widths)
        if self.training and torch.is_grad_enabled() and self.count < self.rows:
            self._observe(teacher)
        target = (teacher - self.mean.to(teacher)) @ self.turn.to(teacher).T
        values: Tensor = (self.adaptor(student) - target).square().mean(dim=1)
        return values

    @torch.no_grad()
    def _observe(self, teacher: Tensor) -> None:
        """Add all ranks' rows to mean and scatter (Chan et al., 1983), and find R of them."""
        n, mean, _ = moments(teacher)
        if n == 0:
            return
        moved = teacher - mean
        apart, whole = (mean - self.mean).to(self.mean), self.count + n.to(self.count)
        self.scatter += over_ranks(moved.T @ moved).to(self.scatter)
        self.scatter += torch.outer(apart, apart) * self.count * n.to(self.count) / whole
        self.mean += apart * n.to(self.count) / whole
        self.count.copy_(whole)
        self.turn.copy_(_turned(self.scatter / (whole - 1).clamp(min=1), len(self.turn)))


def _turned(covariance: Float[Tensor, "d d"], full: int) -> Float[Tensor, "f d"]:
    """R of a covariance; 0 where nothing varies. Axes point to where their largest part is positive."""
    size, axes = torch.linalg.eigh(covariance.double())
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    hadamard = axes.new_ones(1, 1)
    while len(hadamard) < full:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    variance = size.clamp(min=0).sum() / full
    scale = torch.where(variance > 0, variance, 1.0).rsqrt() * (variance > 0)
    turn: Tensor = (scale / full**0.5 * hadamard[:, : len(axes)] @ axes.T).to(covariance)
    return turn
