"""The teacher's one pass over what a training will see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from time import monotonic
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ..adapter.adapter import Adapter, Batch, Source
from ..objective.objective import Objective
from ..objective.resample import COORDINATES
from ..recipe.cache_spec import CacheSpec
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError
from ..runtime.progress import bar
from ..runtime.random_streams import Streams
from ..signals.signals import Signals
from ..training.label_budget import LabelBudget
from ..training.loader import share, steps
from .codecs import Basis, Codec, Half, Int8, TopK, Whole, row_bytes, settings
from .entries import StoredSignal, written
from .folder import address
from .imported import Imported
from .manifest import Manifest, entry_key, ledger_key
from .source import Seeing, Seen, stale
from .store import Store

#: Seconds of work, and bytes of entries, that a kill may cost.
SECONDS, BYTES = 1.0, 1 << 26
#: Micro-batches whose features set the scales of int8.
CALIBRATION = 4
#: Rows to which a basis of scores is fitted, and rows for each class: fewer make a basis of their own accidents.
BASIS_ROWS, BASIS_ROWS_BY_CLASS = 2048, 4

Key = tuple[int, int]  # epoch by which entries are known, sample


class Filled(NamedTuple):
    """Samples whose signals the teacher computed in this pass, those that were there, and the seconds it took."""

    computed: int
    found: int
    seconds: float


@dataclass
class Filler:
    """Fills a store with what a training of `total` steps of `shares` micro-batches each will look up.

    The micro-batches are the training's own, in its order, each with what has not come before: a fill that was killed
    computes what is left in the very batches that it would have been in.
    """

    spec: CacheSpec
    training: Source
    """By whose plan samples are drawn."""
    source: Seeing
    adapter: Adapter
    teacher: nn.Module
    objective: Objective
    streams: Streams
    accelerator: Accelerator
    ranks: Ranks
    total: int
    shares: int
    workers: int = 0
    quiet: bool = False
    part: tuple[int, int] = (0, 1)
    """Which of how many parts of the samples this process is for."""
    imported: Imported | None = None
    """What a teacher that ran elsewhere said."""
    sharers: Sequence[int] = ()
    """The ranks that fill the store of this one, and read it; none said: all."""
    coordinates: bool = False
    """Whether a term needs the places of the teacher's rows."""

    def mine(self, micros: Sequence[list[Key]]) -> list[list[Key]]:
        """Micro-batches of this process's part."""
        part, parts = self.part
        return list(micros[part::parts])

    def plan(self) -> Iterator[list[Key]]:
        """Micro-batches of samples that were in none before."""
        seen: set[Key] = set()
        most, left = len(self.source) * self.spec.epochs * self.source.kinds, self.total
        for epoch in count():
            batches = [b for b in self.training.plan(epoch) if len(b) >= self.shares][:left]
            for batch in batches:
                for part in range(self.shares):
                    keys = [self._key(number, epoch) for number in share(batch, part, self.shares)]
                    fresh = [key for key in dict.fromkeys(keys) if key not in seen]
                    seen.update(fresh)
                    if fresh:
                        yield fresh
            left -= len(batches)
            if left <= 0 or not batches or len(seen) == most:
                return

    def _key(self, number: int, epoch: int) -> Key:
        if isinstance(self.training, LabelBudget):  # which numbers passes and samples together
            epoch, number = divmod(number, len(self.training))
        return self.source.drawn(epoch), number

    # ---------------------------------------------------------------- signals

    def kept(self, manifest: Manifest, micros: Sequence[Sequence[Key]]) -> dict[str, StoredSignal]:
        """The signals that the objective compares, those new to the manifest with codecs fitted to the first batches.

        Raises `UserError` for a signal that the store keeps in another way.
        """
        first = self.says(self.batch(micros[0]))
        names = [name for name in first if self._compared(name)]
        if self.imported is not None:
            names = self.imported.names(names, self._addresses(micros[0]))
        rows = self._calibration([name for name in names if name not in manifest.signals], first, micros)
        for name in names:
            made = self._made(name, first, rows.get(name), len(manifest.signals))
            made = made if self.imported is None else self.imported.made(made)
            there = manifest.signals.setdefault(name, made)
            if settings(there.codec) != settings(made.codec):
                raise UserError(
                    f"cache: its {name!r} are kept as {_told(there.codec)}, the recipe says {_told(made.codec)}: "
                    "choose another cache.path"
                )
        return {name: manifest.signals[name] for name in names}

    def _calibration(self, names: Sequence[str], first: Signals, micros: Sequence[Sequence[Key]]) -> dict[str, Tensor]:
        """Valid rows of `names`, as many as their codecs are fitted to, from the first micro-batches.

        Args:
            first: what the teacher says of the first of them.
        """
        found = {name: [_valid(first, name)] for name in names}

        def wanting(name: str, looked: int) -> bool:
            if name != "logits":
                return self.spec.features == "int8" and looked < CALIBRATION
            width = first.rows(name).shape[-1]
            enough = max(BASIS_ROWS, BASIS_ROWS_BY_CLASS * width)
            return self.spec.smaller is not None and sum(map(len, found[name])) < enough

        for looked, micro in enumerate(micros[1:], 1):
            if not (more := [name for name in names if wanting(name, looked)]):
                break
            said = self.says(self.batch(micro))
            for name in more:
                found[name].append(_valid(said, name))
        return {name: torch.cat(rows) for name, rows in found.items()}

    def _addresses(self, micro: Sequence[Key]) -> list[str]:
        seen = [self.source.seen(index, epoch) for epoch, index in micro]
        names = names_in(self.source.collate([one.sample for one in seen]), seen)
        return [address(name, epoch) for name, (epoch, _) in zip(names, micro, strict=True)]

    def _compared(self, name: str) -> bool:
        if self.coordinates and name.partition(":")[0] == COORDINATES:
            return True
        terms = [term.term for term in self.objective if term.spec.needs_teacher]
        patterns = [pattern for term in terms for pattern in (*term.signals("teacher"), term.weights or "")]
        return any(fnmatchcase(name, pattern) or name == pattern for pattern in patterns)

    def _made(self, name: str, first: Signals, fit: Tensor | None, number: int) -> StoredSignal:
        """How a signal is kept, its codec fitted to the rows `fit`, or to those of the `first` micro-batch."""
        rows, layout = first[name]
        fit = _valid(first, name) if fit is None else fit
        vector = rows.ndim == 1
        width = 1 if vector else rows.shape[-1]
        codec: Codec = Half(width)
        if name == "logits" and self.spec.top_k is not None and self.spec.top_k < width:
            top = TopK(width, self.spec.top_k, self._temperature())
            codec = top if row_bytes(top) < row_bytes(codec) else codec
        elif name == "logits" and self.spec.smaller is not None and not vector:
            codec = Basis.fitted(fit, max(1, int(row_bytes(codec) / self.spec.smaller)))
        elif name.partition(":")[0] == COORDINATES:
            codec = Whole(width)
        elif name not in ("logits", "prediction") and self.spec.features == "int8" and not vector:
            codec = Int8.fitted(fit)
        return StoredSignal(name, number, layout.kind, vector, codec)

    def _temperature(self) -> float:
        """At which the mass of the classes left out is kept."""
        if self.spec.temperature is not None:
            return self.spec.temperature
        on_logits = [t for t in self.objective if t.spec.needs_teacher and "logits" in t.term.signals("teacher")]
        found = {float(term.params.get("temperature", 1.0)) for term in on_logits}
        return found.pop() if len(found) == 1 else 1.0

    def says(self, batch: Batch, role: str = "teacher", model: nn.Module | None = None) -> Signals:
        with torch.no_grad(), self.streams.forked("teacher cache"), self.accelerator.autocast():
            here = send_to_device(batch, self.accelerator.device)
            return self.adapter.signals(role, model or self.teacher, here, self.objective.features(role))

    def batch(self, micro: Sequence[Key]) -> Batch:
        return self.source.collate([self.source.seen(index, epoch).sample for epoch, index in micro])

    # ---------------------------------------------------------------- the pass

    def fill(self, folder: Any, kept: Sequence[StoredSignal], micros: Sequence[Sequence[Key]]) -> Filled:
        """Compute and write what is missing of this rank's share of `micros`."""
        start = monotonic()
        store = Store(folder, self.ranks.rank)
        those = list(self.sharers or range(self.ranks.world))
        with closing(store):
            part = micros[those.index(self.ranks.rank) :: len(those)]
            todo = [m for m in part if not self._there(store, kept, m)]
            writer, shown, computed = _Writer(store), self.quiet or not self.ranks.main, 0
            with bar("teacher cache", len(todo), quiet=shown) as progress:
                for i, (micro, loaded) in enumerate(zip(todo, self.loaded(todo), strict=True), 1):
                    computed += self._compute(writer, kept, micro, **loaded)
                    progress.update(i, {})
            writer.commit()
        computed = self.ranks.sum_number(computed)
        return Filled(computed, sum(map(len, micros)) - computed, monotonic() - start)

    def _there(self, store: Store, kept: Sequence[StoredSignal], micro: Sequence[Key]) -> bool:
        return None not in store.get([self._ledger(one, key) for one in kept for key in micro])

    def _ledger(self, kept: StoredSignal, key: Key) -> bytes:
        return ledger_key(kept.number, self.streams.seed % 2**64, *key)

    def _compute(
        self, writer: _Writer, kept: Sequence[StoredSignal], micro: Sequence[Key], names: list[str],
        contents: list[bytes], batch: Batch,
    ) -> int:  # fmt: skip
        """The teacher on one micro-batch, unless it has seen the very same by another seed or epoch; how many samples.

        Raises `UserError` for a sample of which the store knows another content.
        """
        notes = [
            (self._ledger(one, key), content) for one in kept for key, content in zip(micro, contents, strict=True)
        ]
        known = writer.store.get([key for key, _ in notes])
        for (_, content), before, name in zip(notes, known, names * len(kept), strict=True):
            if before is not None and before != content:
                raise UserError(stale(name, writer.store))
        keys = [entry_key(one.number, content) for one in kept for content in contents]
        computed = 0
        if None in writer.store.get(keys):
            values, computed = self._values(kept, micro, names, contents, batch)
            writer.add(zip(keys, values, strict=True))
        writer.add(notes)
        writer.commit_at_times()
        return computed

    def _values(
        self, kept: Sequence[StoredSignal], micro: Sequence[Key], names: list[str], contents: list[bytes], batch: Batch
    ) -> tuple[list[bytes], int]:
        """Entries of every sample, signal by signal, and of how many samples the teacher computed them."""
        found: list[list[bytes] | None] = [None] * len(micro)
        if self.imported is not None:
            found = [
                self.imported.entries(kept, address(name, epoch), content)
                for name, (epoch, _), content in zip(names, micro, contents, strict=True)
            ]
        if (lacking := found.count(None)) > 0:
            outputs = self.says(batch)
            said = list(zip(*(written(one, outputs[one.name], names) for one in kept), strict=True))
            found = [list(said[i]) if one is None else one for i, one in enumerate(found)]
        columns = zip(*(one for one in found if one is not None), strict=True)
        return [value for column in columns for value in column], lacking

    def loaded(self, todo: Sequence[Sequence[Key]]) -> Iterator[Batch]:
        """The micro-batches of `todo`, each with its samples' names and the digests of what the teacher sees."""
        if not todo:
            return
        stream = steps(_Todo(self.source, todo), workers=self.workers)
        with closing(stream):
            for _ in todo:
                [loaded] = next(stream)
                yield loaded


def names_in(batch: Batch, samples: Sequence[Seen]) -> list[str]:
    """Of a batch's samples, by which people know them."""
    return [str(key) for key in batch.get("keys", [one.name for one in samples])]


class _Todo:
    """Micro-batches of (epoch, sample) as a source of one epoch, for the loader and its workers."""

    def __init__(self, source: Seeing, todo: Sequence[Sequence[Key]]) -> None:
        self.source = source
        self.keys = [key for micro in todo for key in micro]
        ends = torch.tensor([len(micro) for micro in todo]).cumsum(0).tolist()
        self.batches = [list(range(end - len(micro), end)) for end, micro in zip(ends, todo, strict=True)]

    def __len__(self) -> int:
        return len(self.keys)

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        return self.batches

    def sample(self, index: int, epoch: int) -> Seen:
        drawn, sample = self.keys[index]
        return self.source.seen(sample, drawn)

    def collate(self, samples: Sequence[Seen]) -> Batch:
        batch = self.source.collate([seen.sample for seen in samples])
        return {"names": names_in(batch, samples), "contents": [s.content for s in samples], "batch": batch}


class _Writer:
    """Collects entries and commits them now and then."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._waiting: list[tuple[bytes, bytes]] = []
        self._bytes, self._last = 0, monotonic()

    def add(self, items: Any) -> None:
        for key, value in items:
            self._waiting.append((key, value))
            self._bytes += len(value)

    def commit_at_times(self) -> None:
        if self._bytes > BYTES or monotonic() - self._last > SECONDS:
            self.commit()

    def commit(self) -> None:
        if self._waiting:
            self.store.put(self._waiting)
        self._waiting, self._bytes, self._last = [], 0, monotonic()


def _valid(signals: Signals, name: str) -> Tensor:
    rows, layout = signals[name]
    return rows[layout.mask]


def _told(codec: Codec) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings(codec).items())
