"""Labels of a part of the samples: which part, and batches of those that have labels beside those that have none.

Which samples are labelled is a function of the data alone, not of the recipe's seed, so that seeds and arms compare;
fewer labels are always a part of more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import torch

from ..adapter.adapter import Batch, Source
from ..runtime.errors import UserError
from ..runtime.random_streams import Streams


def chosen(source: Source, wanted: int | str | None, key: str) -> Sequence[int]:
    """Ascending indexes of the samples whose labels may be looked at.

    Args:
        source: its optional attribute ``labelled`` names the samples that have labels at all.
        wanted: how many of those, or ``"10%"``; None: all.
        key: of the recipe, for errors.
    Raises:
        UserError: more labels than there are, or none at all.
    """
    told = getattr(source, "labelled", range(len(source)))
    known: Sequence[int] = told if isinstance(told, range) else sorted(set(told))
    if not known:
        raise UserError(f"{key}: no sample of the train split has a label, and a term of the objective reads labels")
    if wanted is None:
        return known
    number = wanted if isinstance(wanted, int) else _share(wanted, len(known))
    if not 0 < number <= len(known):
        raise UserError(f"{key}: {wanted} of {len(known)} samples with labels: give 1 to {len(known)}, or leave it out")
    order = Streams(0).numpy("labels").permutation(len(known))
    return sorted(known[i] for i in order[:number])


def _share(percent: str, total: int) -> int:
    """Samples in a share of all, at least one where the share is not 0."""
    share = float(percent.rstrip("%"))
    return max(1, round(share / 100 * total)) if share else 0


class Shown(NamedTuple):
    """A sample, and whether its labels may be looked at."""

    sample: Any
    labelled: bool


# docs/decisions/007-few-labels.md
class LabelBudget:
    """A training source of which only some samples' labels may be looked at.

    Every batch is full. With a `pool` its samples are by turns a labelled one and any one, the first kind one more
    where the size is odd, so that any cut into micro-batches keeps the balance; else all of them are labelled. Either
    kind is drawn in shuffled passes, one after the other across epochs, and augmented anew in each pass: a number in
    the plan is a sample's index and its pass. Order is the passes' own: how `inner` plans its epochs is not asked.

    Args:
        inner: the source of all samples.
        labelled: indexes of those whose labels may be looked at.
        pool: whether half of a batch comes from all samples, labelled or not.
    """

    def __init__(
        self, inner: Source, labelled: Sequence[int], batch_size: int, streams: Streams, *, pool: bool
    ) -> None:
        if pool and batch_size < 2:
            raise UserError("train.batch_size: half of a batch has labels and half need not have any: give 2 or more")
        self.inner, self.labelled, self.batch_size, self.streams = inner, labelled, batch_size, streams
        self.pool = pool
        self._known = frozenset(labelled)
        self._latest: dict[str, tuple[int, list[int]]] = {}

    def __len__(self) -> int:
        return len(self.inner)

    def plan(self, epoch: int) -> list[list[int]]:
        """As many batches as the samples would fill once."""
        steps = max(1, len(self) // self.batch_size)
        return [self._batch(step) for step in range(epoch * steps, (epoch + 1) * steps)]

    def sample(self, index: int, epoch: int) -> Shown:
        """`index` and pass as the plan numbers them; `epoch` says nothing more."""
        turn, index = divmod(index, len(self))
        return Shown(self.inner.sample(index, turn), index in self._known)

    def collate(self, samples: Sequence[Shown]) -> Batch:
        """The inner source's batch with ``labelled`` ``(b,)`` bool."""
        batch = self.inner.collate([shown.sample for shown in samples])
        return {**batch, "labelled": torch.tensor([shown.labelled for shown in samples])}

    def _batch(self, step: int) -> list[int]:
        others = self.batch_size // 2 if self.pool else 0
        known = self.batch_size - others
        pairs = zip_longest(
            self._drawn("labelled", step * known, known), self._drawn("pool", step * others, others), fillvalue=-1
        )
        return [number for number in chain.from_iterable(pairs) if number >= 0]

    def _drawn(self, kind: str, start: int, number: int) -> Iterator[int]:
        """Samples `start` to `start` + `number` of the endless passes of a kind: even passes labelled, odd ones all."""
        size = len(self.labelled) if kind == "labelled" else len(self)
        for position in range(start, start + number):
            turn, place = divmod(position, size)
            yield self._order(kind, turn, size)[place] + (2 * turn + (kind == "pool")) * len(self)

    def _order(self, kind: str, turn: int, size: int) -> list[int]:
        if kind not in self._latest or self._latest[kind][0] != turn:
            order = self.streams.numpy("order", kind, turn).permutation(size).tolist()
            self._latest[kind] = (turn, [self.labelled[i] for i in order] if kind == "labelled" else order)
        return self._latest[kind][1]


def facts(known: Sequence[int], source: Source) -> dict[str, Any]:
    """For the report: of how many samples a role saw the labels, and whether it saw the others too."""
    return {
        "labelled": len(known),
        "samples": len(source),
        "unlabelled": isinstance(source, LabelBudget) and source.pool,
    }
