"""Training sets that replay their augmentation, and that bring the teacher's entries with each sample.

What is looked up is read where samples are made: in the loader's workers, beside the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from ..adapter.adapter import CACHED, Adapter, Batch, Source
from ..recipe.cache_spec import CacheSpec
from ..runtime.errors import UserError
from .content import Contents
from .entries import StoredSignal, packed
from .manifest import entry_key
from .store import Store


class Replayed:
    """A source whose augmentation comes again after some epochs; its order does not.

    Args:
        kinds: of passes that take turns in the numbers of epochs (2 where labelled samples are drawn beside all).
    """

    def __init__(self, source: Source, spec: CacheSpec, kinds: int = 1) -> None:
        self.source, self.spec, self.kinds = source, spec, kinds

    def shown(self, epoch: int) -> int:
        """The epoch whose augmentation is seen in `epoch`."""
        if self.spec.view == "clean":
            return epoch
        turn, kind = divmod(epoch, self.kinds)
        return turn % self.spec.epochs * self.kinds + kind

    def drawn(self, epoch: int) -> int:
        """The epoch by which a sample's entries are known in `epoch`: of the clean view one for all."""
        return 0 if self.spec.view == "clean" else self.shown(epoch)

    def __len__(self) -> int:
        return len(self.source)

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        return self.source.plan(epoch)

    def sample(self, index: int, epoch: int) -> Any:
        return self.source.sample(index, self.shown(epoch))

    def collate(self, samples: Sequence[Any]) -> Batch:
        return self.source.collate(samples)


class Seen(NamedTuple):
    """A sample, and the digest of what decides its teacher's signals."""

    sample: Any
    content: bytes
    name: str


class Seeing(Replayed):
    """Samples with the digest of what the teacher sees of them."""

    def __init__(self, source: Source, spec: CacheSpec, kinds: int, adapter: Adapter) -> None:
        super().__init__(source, spec, kinds)
        self.adapter, self.contents = adapter, Contents()

    def seen(self, index: int, epoch: int) -> Seen:
        sample = super().sample(index, epoch)
        name = str(getattr(sample, "key", index))
        try:
            return Seen(sample, self.contents.digest(self.adapter.teacher_sees(sample)), name)
        except TypeError as error:
            raise UserError(f"cache: sample {name}: {error}: this modality has no cache") from None


class Held(NamedTuple):
    sample: Any
    entries: list[bytes]


class CachedSource(Seeing):
    """Each batch of `source` with the teacher's entries, packed, under `CACHED`.

    Args:
        own: signals whose rows stay the teacher's when they are restored.
    """

    def __init__(
        self,
        source: Source,
        spec: CacheSpec,
        kinds: int,
        adapter: Adapter,
        store: Store,
        kept: Mapping[str, StoredSignal],
        own: Set[str] = frozenset(),
    ) -> None:
        super().__init__(source, spec, kinds, adapter)
        self.store, self.kept, self.own = store, dict(kept), own

    def sample(self, index: int, epoch: int) -> Held:
        """Raises `UserError` that names a sample of which the store has nothing: it is not what it was."""
        sample, content, name = self.seen(index, epoch)
        entries = self.store.get([entry_key(kept.number, content) for kept in self.kept.values()])
        if None in entries:
            raise UserError(stale(name, self.store))
        return Held(sample, entries)  # type: ignore[arg-type]

    def collate(self, samples: Sequence[Held]) -> Batch:
        batch = self.source.collate([held.sample for held in samples])
        return {**batch, CACHED: self.pack(samples)}

    def pack(self, samples: Sequence[Held]) -> dict[str, Any]:
        columns = zip(self.kept.values(), zip(*(held.entries for held in samples), strict=True), strict=True)
        return {kept.name: packed(kept, entries) for kept, entries in columns}


def stale(name: str, store: Store) -> str:
    return (
        f"cache {store.folder}: sample {name} is not what it was when the cache was filled (its content, its crop or "
        "speed, or the rows that student and teacher share): delete the cache, or choose another cache.path"
    )
