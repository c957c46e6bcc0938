"""Feature losses of which the projector and the normalisation are the method."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Positive, loss
from .connectors import built_for, moments, over_ranks


@loss(
    "srd", reduction="batch", family="features", year=2024, needs="features", properties="widths_differ",
    paper="Miles, Mikolajczyk: Understanding the Role of the Projector in Knowledge Distillation",
)  # fmt: skip
class Srd(nn.Module):
    """``log sum |BN(P s) - BN(t)|^4`` over rows and channels: the simple recipe of a projector, a norm and a logarithm.

    P is a linear map; BN normalises each channel over all rows, without gain or bias. The logarithm takes the scale out
    of the gradient and the fourth power lets the channels speak that are furthest apart. Give one row a sample (pooled
    features). Published with a weight of 2 beside ``kd`` at temperature 1. 1e-5 is added to the sum, so that a student
    that has arrived is finite. Needs two rows.
    """

    def __init__(self, student_width: int, teacher_width: int, *, eps: Positive = 1e-4):
        super().__init__()
        self.widths, self.eps = (student_width, teacher_width), eps
        self.projector = nn.Linear(student_width, teacher_width)

    def forward(self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        built_for(student, teacher, *self.widths)
        if len(student) < 2:
            raise ValueError(f"srd normalises channels over rows: it needs at least 2, got {len(student)}")
        apart = self._normal(self.projector(student)) - self._normal(teacher)
        return (apart.pow(4).sum() + 1e-5).log()

    def _normal(self, rows: Tensor) -> Tensor:
        """Of the whole batch, which this loss is given: no running averages, no other rank's rows."""
        moved = rows - rows.mean(dim=0)
        return moved * torch.rsqrt(moved.square().mean(dim=0) + self.eps)


@loss(
    "vkd", reduction="rows", family="features", year=2024, needs="features",
    paper="Miles, Elezi, Deng: VkD: Improving Knowledge Distillation using Orthogonal Projections",
    properties="widths_differ batch_statistics",
)  # fmt: skip
class Vkd(nn.Module):
    """``mean_c smooth_l1(Q s - t')`` with orthonormal Q: the projector turns features and can do nothing else.

    So no part of what is to be learnt ends in the projector, which is thrown away. Q has orthonormal columns where the
    teacher is at least as wide, else orthonormal rows. Published with pooled features.

    Args:
        normalise: t' is each row of the teacher with mean 0 and variance 1 over its channels (``layer``, as released
            for classification), or all rows whitened together, ``(t - mean) cov^(-1/2)`` (``whiten``, which the paper
            takes for generators and its release lacks; with more channels than rows what the rows do not span stays
            near 0).
    """

    def __init__(
        self, student_width: int, teacher_width: int,
        *, normalise: Literal["layer", "whiten"] = "layer", eps: Positive = 1e-5,
    ):  # fmt: skip
        super().__init__()
        self.widths, self.normalise, self.eps = (student_width, teacher_width), normalise, eps
        self.raw = nn.Parameter(torch.empty(teacher_width, student_width))
        nn.init.orthogonal_(self.raw)

    @property
    def orthonormal(self) -> Tensor:
        """Q ``(d, c)``: the raw weight's columns, or rows where it is wide, after Gram and Schmidt."""
        wide = self.raw.shape[0] < self.raw.shape[1]
        q, r = torch.linalg.qr(self.raw.T if wide else self.raw)
        turned: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)
        return turned.T if wide else turned

    def forward(self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        built_for(student, teacher, *self.widths)
        target = F.layer_norm(teacher, teacher.shape[1:], eps=self.eps)
        if self.normalise == "whiten":
            target = self._whitened(teacher)
        return F.smooth_l1_loss(student @ self.orthonormal.T, target, reduction="none").mean(dim=1)

    @torch.no_grad()
    def _whitened(self, rows: Tensor) -> Tensor:
        n, mean, _ = moments(rows)
        moved = rows - mean
        covariance = over_ranks(moved.T @ moved) / n.clamp(min=1)
        size, axes = torch.linalg.eigh(covariance + self.eps * torch.eye(len(mean)).to(rows))
        whitened: Tensor = moved @ (axes * size.clamp(min=self.eps).rsqrt()) @ axes.T
        return whitened
