"""What learned feature losses are built of: norms over rows and convolutions over an item's grid."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .base import to_maps, to_rows

NormKind = Literal["batch", "layer", "none"]


class RowNorm(nn.Module):
    """Normalisation of rows ``(n, c)``.

    ``batch`` is batch normalisation as the papers have it: each channel over all valid rows of the micro-batch, on all
    ranks together, so that two ranks do what one process does. Running averages serve evaluation. ``layer`` is each row
    over its channels: no row depends on another, hence accumulation changes nothing. ``none`` leaves rows as they are.
    Without `affine` there is no gain and no bias to learn.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, kind: NormKind, width: int, eps: float = 1e-5, momentum: float = 0.1, *, affine: bool = True
    ) -> None:
        super().__init__()
        self.kind, self.eps, self.momentum = kind, eps, momentum
        learns = affine and kind != "none"
        self.weight = nn.Parameter(torch.ones(width)) if learns else None
        self.bias = nn.Parameter(torch.zeros(width)) if learns else None
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(width))
            self.register_buffer("running_var", torch.ones(width))

    def forward(self, rows: Tensor) -> Tensor:
        if self.kind == "none":
            return rows
        if self.kind == "layer":
            return F.layer_norm(rows, rows.shape[-1:], self.weight, self.bias, self.eps)
        mean, variance = self._moments(rows) if self.training else (self.running_mean, self.running_var)
        normal = (rows - mean) * torch.rsqrt(variance + self.eps)
        return normal if self.weight is None or self.bias is None else normal * self.weight + self.bias

    def _moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each channel over all ranks' rows. Raises ``ValueError`` for a single row."""
        n, mean, variance = moments(rows)
        if n == 0:
            return self.running_mean, self.running_var
        if n < 2:
            raise ValueError("batch normalisation takes its statistics over rows: it needs at least 2 (or norm: layer)")
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        return mean, variance


class _SumOverRanks(torch.autograd.Function):
    """The sum of all ranks' tensors; its gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        out = value.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        out = grad.clone()
        dist.all_reduce(out)
        return out


def over_ranks(value: Tensor) -> Tensor:
    """`value` summed over the ranks, with its graph; every rank must come by here, one without rows too."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    return _SumOverRanks.apply(value)  # type: ignore[no-any-return]


def moments(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of all ranks' rows ``(n, c)``, and each channel's mean and biased variance over them, with the graph."""
    n = over_ranks(rows.new_tensor(float(len(rows))))
    mean = over_ranks(rows.sum(dim=0)) / n.clamp(min=1)
    return n, mean, over_ranks((rows - mean).square().sum(dim=0)) / n.clamp(min=1)


def built_for(student: Tensor, teacher: Tensor, student_width: int, teacher_width: int) -> None:
    """Refuse rows that do not pair, or of other widths than a learned loss was built for."""
    if len(student) != len(teacher) or (student.shape[1], teacher.shape[1]) != (student_width, teacher_width):
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} are not paired rows of the widths "
            f"{student_width} and {teacher_width} that this loss was built for"
        )


Kernel = Literal[1, 3, 5, 7]


def grid_conv(width_in: int, width_out: int, kernel: Kernel, axes: int, *, bias: bool = True) -> nn.Module:
    """A convolution of `kernel` cells a side over a grid of `axes` axes; a linear map of each row where that is it.

    Rows without a grid (``axes`` 0) have no neighbours: points and regions get the linear map.
    """
    if kernel == 1 or axes == 0:
        return nn.Linear(width_in, width_out, bias=bias)
    convolutions = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    if axes not in convolutions:
        raise ValueError(f"a grid of {axes} axes has no convolution here (1 to 3): set kernel: 1")
    return convolutions[axes](width_in, width_out, kernel, padding=kernel // 2, bias=bias)


class Place(NamedTuple):
    """Where rows stand: the cell of each among ``items x prod(grid)``; without a grid they have no neighbours."""

    cell: Tensor
    items: int
    grid: tuple[int, ...] | None

    def apply(self, layer: nn.Module, rows: Tensor) -> Tensor:
        """`layer`, made by `grid_conv`, of rows ``(n, c)``. A cell without a valid row is zeros, as padding is."""
        if isinstance(layer, nn.Linear) or self.grid is None:
            return layer(rows)  # type: ignore[no-any-return]
        return to_rows(layer(to_maps(rows, self.cell, self.items, self.grid)), self.cell)
