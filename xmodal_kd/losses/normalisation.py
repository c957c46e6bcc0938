"""Features of another modality's network, predicted through its statistics."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from .base import Positive, loss
from .connectors import RowNorm, built_for, moments

Momentum = Annotated[float, Field(gt=0, le=1)]


@loss(
    "dn", reduction="rows", family="features", year=2021, needs="features", confidence="B",
    paper="Liu et al.: 3D-to-2D Distillation for Indoor Scene Parsing (dimension normalisation)",
    properties="widths_differ batch_statistics",
)  # fmt: skip
class DimensionNorm(nn.Module):
    """``mean_c (g(BN(f(s)) sigma_t + mu_t) - t)^2``: the student speaks in the teacher's mean and deviation.

    f is a linear map to the teacher's width, BN normalises each of its channels over the batch (no gain, no bias), and
    g is two linear maps with a ReLU between them. ``mu_t`` and ``sigma_t`` are running moments of the teacher's rows,
    the first batch's at first; they move in training only. For teachers of another modality, whose features lie on
    another scale. The paper's second transfer, which feeds the simulated features to the student's own classifier, is a
    matter of the model. Published with a weight of 0.03 for a sum over channels: 0.03 times the width for this mean.

    Args:
        momentum: share of a new batch in the teacher's moments, once 1 / momentum batches have been seen.
        eps: added to variances.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(
        self, student_width: int, teacher_width: int, *, momentum: Momentum = 0.1, eps: Positive = 1e-5
    ) -> None:
        super().__init__()
        self.widths, self.momentum, self.eps = (student_width, teacher_width), momentum, eps
        self.map = nn.Linear(student_width, teacher_width, bias=False)
        self.norm = RowNorm("batch", teacher_width, eps, momentum, affine=False)
        self.connector = nn.Sequential(
            nn.Linear(teacher_width, teacher_width), nn.ReLU(), nn.Linear(teacher_width, teacher_width)
        )
        self.register_buffer("mean", torch.zeros(teacher_width))
        self.register_buffer("variance", torch.ones(teacher_width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        built_for(student, teacher, *self.widths)
        normal = self.norm(self.map(student))  # first: it refuses a single row
        if self.training:
            self._watch(teacher)
        simulated = self.connector(normal * (self.variance + self.eps).sqrt() + self.mean)
        values: Tensor = (simulated - teacher).square().mean(dim=-1)
        return values

    @torch.no_grad()
    def _watch(self, teacher: Tensor) -> None:
        """Let the teacher's moments follow this batch, all ranks together."""
        n, mean, variance = moments(teacher)
        if n > 1:
            self.seen += 1
            share = max(self.momentum, 1 / int(self.seen))
            self.mean.lerp_(mean, share)
            self.variance.lerp_(variance * n / (n - 1), share)
