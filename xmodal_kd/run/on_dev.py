"""What dev said of a role while it was trained, so that the weights that are kept are not measured there again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..adapter.adapter import Adapter, Evaluation
from ..runtime.checkpoint import digest


class OnDev:
    """The best evaluation of each role's training, by the weights that it is of."""

    def __init__(self) -> None:
        self._best: dict[str, tuple[Adapter, str, Evaluation]] = {}

    def watched(self, role: str, adapter: Adapter, *, known: bool) -> Callable[[nn.Module], Mapping[str, Any]]:
        """Evaluates `role` for its training.

        Args:
            known: whether weights alone decide what it answers, and no stage or compression beside them.
        """
        (name, lower), best = adapter.metric, list[float]()

        def evaluate(model: nn.Module) -> Mapping[str, Any]:
            found = adapter.evaluate(role, model, "dev")
            value = float(found.metrics[name]) * (1 if lower else -1)
            if known and (not best or value < best[0]):
                best[:] = [value]
                self._best[role] = adapter, digest(model.state_dict().items()), found
            return found.metrics

        return evaluate

    def of(self, role: str, adapter: Adapter, model: nn.Module) -> Evaluation:
        """Of the finished role: what was found of these very weights, or is found now."""
        measured, weights, found = self._best.pop(role, (None, "", None))
        if found is not None and measured is adapter and weights == digest(model.state_dict().items()):
            return found
        return adapter.evaluate(role, model, "dev")


__all__ = ["OnDev"]
