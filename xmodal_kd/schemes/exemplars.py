"""Samples of an old task among those of a new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..adapter.adapter import Batch, Source
from ..runtime.errors import UserError
from ..runtime.random_streams import Streams
from ..training.label_budget import LabelBudget, Shown


class Held(NamedTuple):
    """A sample, and whether it is an exemplar of the old task."""

    sample: Any
    exemplar: bool


class Rehearsed:
    """A training source each of whose batches holds some exemplars of an old task beside its own samples.

    Which ones is drawn anew for each batch. They stand evenly among its samples, so that a cut into micro-batches keeps
    the balance. In the plan an even number is one of `inner`'s, an odd one an exemplar; ``ids`` count them behind
    `inner`'s samples.

    Args:
        exemplars: indexes of them in `old`.
        labelled: whether a loss may look at their labels.
    """

    def __init__(
        self, inner: Source, old: Source, exemplars: Sequence[int], per_batch: int, streams: Streams, *, labelled: bool
    ) -> None:
        if per_batch > len(exemplars):
            raise UserError(f"scheme.params.per_batch: {per_batch} of {len(exemplars)} exemplars: give fewer")
        self.inner, self.old, self.exemplars, self.per_batch = inner, old, list(exemplars), per_batch
        self.streams, self.shown = streams, labelled

    def __len__(self) -> int:
        return len(self.inner)

    def plan(self, epoch: int) -> list[list[int]]:
        return [self._mixed(batch, epoch, number) for number, batch in enumerate(self.inner.plan(epoch))]

    def _mixed(self, batch: Sequence[int], epoch: int, number: int) -> list[int]:
        order = self.streams.numpy("exemplars", epoch, number).permutation(len(self.exemplars))
        out = [2 * own for own in batch]
        for k, which in enumerate(order[: self.per_batch].tolist()):  # each the last of equal stretches
            out.insert((k + 1) * (len(batch) + self.per_batch) // self.per_batch - 1, 2 * which + 1)
        return out

    def sample(self, index: int, epoch: int) -> Held:
        number, exemplar = divmod(index, 2)
        if not exemplar:
            return Held(self.inner.sample(number, epoch), False)
        found = self.old.sample(self.exemplars[number], epoch)
        return Held(Shown(found, self.shown) if isinstance(self.inner, LabelBudget) else found, True)

    def collate(self, samples: Sequence[Held]) -> Batch:
        """The inner source's batch with ``exemplar`` ``(b,)`` bool, and ``labelled``."""
        kept = torch.tensor([one.exemplar for one in samples])
        batch = dict(self.inner.collate([one.sample for one in samples]))
        shown = torch.ones_like(kept) if self.shown else ~kept
        batch["ids"] = batch["ids"] + kept * len(self.inner)
        return batch | {"exemplar": kept, "labelled": batch.get("labelled", torch.ones_like(kept)) & shown}


__all__ = ["Held", "Rehearsed"]
