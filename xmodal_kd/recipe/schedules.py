"""Factors as pure functions of the step: learning rates and loss weights share them, and none has state to save."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from ..adapter.adapter import Strict


class Schedule(Strict):
    """A factor between 0 and 1 that multiplies a learning rate or a weight.

    ``warmup`` rises linearly over its share of the steps, then `kind` leads from 1 to `end` over the rest.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = Field(0.0, ge=0)
    """Share of all steps when below 1, else a number of steps."""
    end: float = Field(0.0, ge=0, le=1)
    """Final factor of ``linear`` and ``cosine``."""

    def __call__(self, step: int, steps: int) -> float:
        """The factor at `step` (counted from 0) of `steps`."""
        warmup = self.warmup * steps if self.warmup < 1 else self.warmup
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.kind == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1.0, steps - warmup))
        remaining = 1 - progress if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.end + (1 - self.end) * remaining
