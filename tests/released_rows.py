"""Rows, weights and layers that any machine makes the same, on which releases were run beside our losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def rows(k: int, n: int = 8, c: int = 5) -> Tensor:
    """``(n, c)``: the student's for even k, the teacher's for odd ones."""
    i, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(c, dtype=torch.float64)
    return 2 * torch.sin(1.7 * i * (k + 1) + 0.9 * j * j + k) + 0.3 * torch.cos(2.3 * j * i + k)


def filled(module: nn.Module) -> Any:
    """The module in float64 with weights that any machine makes the same."""
    module.double()
    with torch.no_grad():
        for k, (_, parameter) in enumerate(sorted(module.named_parameters())):
            count = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.copy_(0.5 * (1.3 * count + k).sin())
    return module


def pyramid(k: int, widths: tuple[int, ...], sides: tuple[int, ...], items: int = 3) -> list[Tensor]:
    """Layers of square maps as rows, an item after another."""
    return [
        torch.cat([rows(k + i + 7 * b, side * side, width) for b in range(items)])
        for i, (width, side) in enumerate(zip(widths, sides, strict=True))
    ]


def places(sides: tuple[int, ...], items: int = 3) -> dict[str, Any]:
    return {
        "item": [torch.arange(items).repeat_interleave(side * side) for side in sides],
        "cell": [torch.arange(items * side * side) for side in sides],
        "grid": [(side, side) for side in sides],
    }


def mean_and_slope_of(loss: Any, student: Tensor) -> tuple[float, float]:
    """Mean of the loss of the student's rows, and the gradient's entry [2, 3]."""
    student = student.clone().requires_grad_()
    value = loss(student).mean()
    (grad,) = torch.autograd.grad(value, student)
    return value.item(), grad[2, 3].item()
