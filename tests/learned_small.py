"""Losses that are modules, built and called on a few rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xmodal_kd.losses import LOSSES

ITEM = torch.tensor([0, 0, 0, 0, 2, 2, 2])
GRIDLESS = (ITEM, 3, torch.arange(len(ITEM)), None)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name: str, student: Any, teacher: Any, **params: Any) -> Any:
    """The loss's module in float64, always with the same weights."""
    torch.manual_seed(0)
    return LOSSES[name].make(student, teacher, **params).double()


def gradients(value: Tensor, module: nn.Module) -> dict[str, float]:
    """Size of the gradient that each parameter gets; 0 for none."""
    found = torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
    names = [name for name, _ in module.named_parameters()]
    return {n: 0.0 if g is None else float(g.abs().max()) for n, g in zip(names, found, strict=True)}
