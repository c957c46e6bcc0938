"""What a term is worth on a batch: a sum and a count, added over micro-batches and ranks before they are divided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One term on one (micro-)batch: its value is ``total / count`` once both are summed over the global batch.

    Parts of equal `unit` have equal counts on every batch, so that accumulation may treat them as one. One of weight 0
    is logged and no more.
    """

    total: Tensor
    count: Tensor | float
    weight: float
    unit: str


# docs/decisions/001-rows-sums-and-counts.md
@dataclass(frozen=True)
class LossOut:
    """What a step minimises: the weighted sum of its parts' means.

    Each part has a count of its own, because a mean over utterances and a mean over frames have different ones.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)

    @classmethod
    def mean(cls, name: str, values: Tensor, weight: float = 1.0) -> LossOut:
        """A single part from one value a sample: what a method with a loss of its own returns."""
        return cls({name: Part(values.sum(), float(values.numel()), weight, name)})

    def value(self) -> Tensor:
        """The loss of this batch alone, for a loop of your own on one process."""
        terms = [part.weight * part.total / safe(part.count) for part in self.parts.values() if part.weight]
        return torch.stack(terms).sum()

    def named(self, role: str) -> LossOut:
        """The same, for the log of a step in which several roles learn."""
        return LossOut({f"{role}/{name}": part for name, part in self.parts.items()})

    def __add__(self, other: LossOut) -> LossOut:
        if both := self.parts.keys() & other.parts.keys():
            raise ValueError(f"two parts are called {', '.join(sorted(both))}")
        return LossOut({**self.parts, **other.parts})


def safe(count: Tensor | float) -> Tensor | float:
    """A count to divide by, above 0 where nothing was counted: the total is 0 then, and so is the mean."""
    return count.clamp(min=1e-6) if isinstance(count, Tensor) else max(count, 1e-6)
