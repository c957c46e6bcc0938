"""Training data of schemes that need several samples of a class in a batch, or two views of a sample."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ..adapter.adapter import Adapter, Batch, Input, Source
from ..runtime.errors import UserError
from ..training.label_budget import LabelBudget

#: Where a batch holds its other view.
OTHER = "other view"
#: Far from every epoch that a training comes to: its augmentations are the second view's.
ELSEWHERE = 1 << 30


def recorded(adapter: Adapter, what: str) -> tuple[str, Input]:
    """Where a batch holds an input that may be changed, and what it is. Raises `UserError` without one, or classes.

    Args:
        what: a scheme does with it, for the message.
    """
    found = adapter.input()
    if found is None or found.key is None or adapter.blank is not None or adapter.output != "logits":
        raise UserError(f"{what}, and samples of this modality have no such input: choose another scheme")
    return found.key, found


class _Around:
    """A source that changes what another one says."""

    def __init__(self, inner: Source) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        return self.inner.plan(epoch)

    def sample(self, index: int, epoch: int) -> Any:
        return self.inner.sample(index, epoch)

    def collate(self, samples: Sequence[Any]) -> Batch:
        return self.inner.collate(samples)


class Views(_Around):
    """Every sample in several augmentations: the batch is the first one's, which holds the others for `viewed`.

    A source some of whose augmentations move rows has a method ``again(index, epoch, view)``: the sample of `epoch`,
    its rows where they are there, in whatever else the epoch `view` makes of it.
    """

    def __init__(self, inner: Source, views: int) -> None:
        super().__init__(inner)
        self.views = views

    def sample(self, index: int, epoch: int) -> tuple[Any, ...]:
        again = getattr(self.inner, "again", None)
        found = [self.inner.sample(index, epoch)]
        for view in (epoch + number * ELSEWHERE for number in range(1, self.views)):
            found.append(self.inner.sample(index, view) if again is None else again(index, epoch, view))
        return tuple(found)

    def collate(self, samples: Sequence[tuple[Any, ...]]) -> Batch:
        one, *others = (self.inner.collate(side) for side in zip(*samples, strict=True))
        return {**one, **{_key(number): other for number, other in enumerate(others, 1)}}


def several_views(source: Source, views: int = 2) -> Source:
    """`source` with several views; where labels are scarce, around the samples: there a pass stands for the epoch."""
    if not isinstance(source, LabelBudget):
        return Views(source, views)
    out = copy.copy(source)
    out.inner = Views(source.inner, views)
    return out


def viewed(batch: Batch, number: int = 1) -> Batch:
    """A view of the samples of a batch, counted from 0: the batch itself."""
    if number == 0:
        return batch
    return {**batch[_key(number)], **{key: batch[key] for key in ("labelled",) if key in batch}}


def _key(number: int) -> str:
    return OTHER if number == 1 else f"{OTHER} {number}"


def same_rows(adapter: Adapter, name: str) -> None:
    """Raises `UserError` where row i of a sample is not the same thing in two augmentations."""
    if (reason := adapter.views_differ()) is not None:
        raise UserError(f"scheme {name}: two views of a sample have no rows in common: {reason}")


class Without(_Around):
    """A source without some of its samples; batches of the same size are filled from what is left of an epoch."""

    def __init__(self, inner: Source, left_out: Sequence[int]) -> None:
        super().__init__(inner)
        self.left_out = frozenset(left_out)

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        batches = [list(batch) for batch in self.inner.plan(epoch)]
        order = [index for batch in batches for index in batch if index not in self.left_out]
        size = max(map(len, batches))
        return [order[at : at + size] for at in range(0, max(1, len(order) - size + 1), size)]


class Pairs(_Around):
    """Batches of pairs of a class: the samples 2i and 2i + 1 of a batch are different ones of the same class.

    An epoch holds every sample once, and once more one of each class of an odd number. Where the source does not say
    of which class a sample is (attribute ``classes``), because a sample holds rows of several, its own batches stay.
    """

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        batches = [list(batch) for batch in self.inner.plan(epoch)]
        classes = getattr(self.inner, "classes", None)
        if classes is None:
            return batches
        order = [index for batch in batches for index in batch]
        pairs, waiting, first = [], dict[int, int](), dict[int, int]()
        for index in order:
            kind = int(classes[index])
            first.setdefault(kind, index)
            if (mate := waiting.pop(kind, None)) is None:
                waiting[kind] = index
            else:
                pairs.append((mate, index))
        pairs += [(index, first[kind]) for kind, index in waiting.items()]
        size = max(1, max(map(len, batches)) // 2)
        return [[i for pair in pairs[at : at + size] for i in pair] for at in range(0, len(pairs), size)]
