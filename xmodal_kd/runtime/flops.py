"""Floating-point operations, counted on a real batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count(work: Callable[[], Any]) -> float:
    """FLOPs of matrix products, convolutions and attention in `work`, backward included where it calls it."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def forward(model: torch.nn.Module, work: Callable[[], Any]) -> float:
    """As `count`, in eval mode without gradients; the model's mode is put back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return count(work)
    finally:
        model.train(training)
