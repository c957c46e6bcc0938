"""Models by torch.compile while they are trained: ``train.compile``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..objective.objective import Objective
from ..recipe.recipe import Train
from ..runtime.errors import UserError

#: What ``default`` asks of torch: random numbers are those of uncompiled operations, so that dropout drops the same.
DEFAULT: Mapping[str, Any] = {"options": {"fallback_random": True}}


def check(train: Train, objective: Objective) -> None:
    """Raises `UserError` for terms that look inside a model: what is compiled whole has no modules to look at."""
    if train.compile == "none":
        return
    for side in ("student", "teacher"):
        if inside := objective.features(side):
            raise UserError(
                f"train.compile: default: a term compares {inside[0]!r} of the {side}, inside a compiled model: "
                "say train.compile=none, or compare what the models answer"
            )


@contextmanager
def compiling(train: Train, models: Iterable[nn.Module]) -> Iterator[None]:
    """Calls of `models` are compiled inside the block, as ``train.compile`` says; the modules stay what they are."""
    those = [] if train.compile == "none" else list(models)
    try:
        for model in those:
            model.compile(**DEFAULT)
        yield
    finally:
        for model in those:
            model._compiled_call_impl = None


def uncompiled() -> Any:
    """A block in which compiled models run as they are: evaluation sees other shapes, and few of each."""
    return torch.compiler.set_stance("force_eager")
