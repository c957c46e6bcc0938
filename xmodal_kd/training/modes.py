"""A model in eval mode, or without gradients of its own, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block all modules are in eval mode; after it each is in the mode that it was in."""
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter of `modules` is part of what is computed inside the block; gradients pass through them."""
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


__all__ = ["evaluating", "frozen"]
