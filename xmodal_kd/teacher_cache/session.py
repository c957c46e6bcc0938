"""A training that reads its teacher from disk: what is missing is filled before, what it was worth is told after."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ..adapter.adapter import Adapter, Source, is_teacher
from ..objective.objective import Objective
from ..recipe.cache_spec import CacheSpec
from ..recipe.recipe import Recipe, Train
from ..runtime.common_folder import raise_first, sharers
from ..runtime.distributed import ranks_of
from ..runtime.errors import UserError
from ..runtime.random_streams import Streams
from ..training.label_budget import LabelBudget
from ..training.method import METHODS, Distil, Method
from .entries import StoredSignal, restored
from .fill import Filled, Filler, Key
from .folder import SignalFolder
from .imported import Imported
from .manifest import Manifest
from .measure import Worth, measure
from .own_rows import own_rows
from .source import CachedSource, Replayed, Seeing
from .store import Store, alone

#: Samples looked at to see whether what the teacher sees changes from epoch to epoch.
LOOKED_AT = 8


def check(recipe: Recipe, adapter: Adapter) -> None:
    """Before anything is trained.

    Raises:
        UserError: the method's teacher cannot be one that ran before; there is no folder of signals; or the view is
            clean, one entry a sample, and what the teacher sees of a sample changes from epoch to epoch (a warp would
            part frames from targets).
    """
    if recipe.cache is None or recipe.teacher is None:
        return
    if not getattr(METHODS[recipe.method.name], "cacheable", False):
        raise UserError(
            f"cache: the teacher of {recipe.method.name} does not only see the data as they are: leave cache out, or "
            "choose the method distil"
        )
    if recipe.cache.signals is not None:
        SignalFolder(recipe.cache.signals.expanduser())
    if recipe.cache.view == "replay":
        return
    source = Seeing(adapter.data("train"), recipe.cache, 1, adapter)
    for index in list(dict.fromkeys(i for batch in source.plan(0) for i in batch))[:LOOKED_AT]:
        first, second = source.seen(index, 0), source.seen(index, 1)
        if first.content != second.content:
            raise UserError(
                f"cache.view: clean: what the teacher sees of sample {first.name} changes from epoch to epoch (speed, "
                "crop, gain or noise: cached targets would not fit the frames): say cache.view=replay, or switch that "
                "augmentation off"
            )


def cache_folder(recipe: Recipe, out: Path) -> Path:
    """Where the store of a run in `out` lies."""
    assert recipe.cache is not None
    return (recipe.cache.path or out / "cache").expanduser().absolute()


def identity(recipe: Recipe, objective: Objective, teacher: nn.Module, data: Mapping[str, Any]) -> Manifest:
    """Whose signals the student's store holds; `data` is the resolved section of the recipe."""
    if any(term.term.weights for term in objective if term.spec.needs_teacher):
        data = {**data, "labels": recipe.labels}  # by which classes are weighed
    return Manifest.of(teacher, data, recipe.train.precision)


@dataclass(frozen=True)
class CacheUser:
    """What a cache takes of a run: its recipe and folder, its models so far, and how it computes."""

    recipe: Recipe
    out: Path
    models: Mapping[str, nn.Module]
    streams: Streams
    accelerator: Accelerator
    quiet: bool
    part: tuple[int, int] = (0, 1)
    """Which of how many parts of the store this process fills."""


@dataclass(frozen=True)
class Session:
    """The data of one training, and the cache that they come with, if any."""

    source: Source
    reading: Reading | None = None

    @classmethod
    def of(
        cls, user: CacheUser, role: str, adapter: Adapter, source: Source, method: Method, train: Train,
        data: Mapping[str, Any], student: nn.Module,
    ) -> Session:  # fmt: skip
        """The cache of `role`'s training, filled.

        The control reads no cache but sees the student's data: where augmentation is replayed, its is too.

        Args:
            source: what `role` is trained on; with few labels, its inner source is what the cache goes around.
            data: the resolved data section of the recipe.
            student: what `role` starts as.
        """
        spec, inner = user.recipe.cache, source.inner if isinstance(source, LabelBudget) else source
        if spec is None or is_teacher(role):
            return cls(source)
        kinds = 2 if isinstance(source, LabelBudget) else 1
        if role != "student" or not isinstance(method, Distil) or not method.objective.needs_teacher:
            return cls(_around(source, Replayed(inner, spec, kinds)))
        ranks, teacher = ranks_of(user.accelerator), user.models["teacher"].eval()
        filler = Filler(
            spec, source, Seeing(inner, spec, kinds, adapter), adapter, teacher, method.objective, user.streams,
            user.accelerator, ranks, sum(stage.steps for stage in method.stages()), ranks.world * train.accumulate,
            train.workers, user.quiet, user.part,
        )  # fmt: skip
        folder, manifest = cache_folder(user.recipe, user.out), identity(user.recipe, method.objective, teacher, data)
        if spec.signals is not None:
            filler.imported = Imported(spec, manifest, adapter)
        own = own_rows(filler, student.to(user.accelerator.device))
        filler.coordinates = bool(own)
        kept, filled = filled_store(filler, folder, manifest)
        method.restore = partial(restored, kept, own=own)
        cached = CachedSource(inner, spec, kinds, adapter, Store(folder), kept, own)
        if not (parts := filler.mine(list(filler.plan()))):
            raise UserError(f"--shard {user.part[0]}/{user.part[1]}: there are not so many micro-batches")
        first = parts[0]
        reading = Reading(spec, cached, filled, method, first, len(source.plan(0)), filler, manifest)
        return cls(_around(source, cached), reading)

    def facts(self, models: Mapping[str, nn.Module], samples: int) -> dict[str, Any]:
        """What the cache was worth to a training of `samples` samples, for the report; nothing without a cache."""
        return {} if self.reading is None else {"cache": self.reading.facts(models, samples)}


def _around(source: Source, inner: Replayed) -> Source:
    """`inner` where the data come from in `source`."""
    if not isinstance(source, LabelBudget):
        return inner
    source.inner = inner
    return source


def filled_store(filler: Filler, folder: Path, manifest: Manifest) -> tuple[dict[str, StoredSignal], Filled]:
    """Fill the store in `folder` with whatever it lacks, one run at a time. Returns the signals, and what was done.

    Where `folder` is not one for all ranks, each of them is filled by those that see it, with all that is to be known.

    Raises:
        UserError: the store is of another teacher or of other data, keeps a signal in another way, or knows a sample by
            another content.
    """
    ranks = filler.ranks
    filler.sharers = sharers(folder, ranks)
    leads = ranks.rank == filler.sharers[0]
    with alone(folder) if leads else nullcontext():
        found: list[str] | UserError = []
        micros = list(filler.plan())
        if ranks.main:
            try:
                if not micros:
                    raise UserError(f"cache: no batch has the {filler.shares} samples that ranks x accumulate ask for")
                manifest.adopt(folder)
                found = list(filler.kept(manifest, micros))
                manifest.write(folder)
            except UserError as error:
                found = error
        found = ranks.share(found)
        if isinstance(found, UserError):
            raise found
        signals: dict[str, StoredSignal] = ranks.share(manifest.signals)
        fault: UserError | None = None
        if leads and not ranks.main:
            try:
                manifest.follow(signals, folder)
            except UserError as error:
                fault = error
        raise_first(ranks, fault)
        manifest.signals = signals
        kept = {name: manifest.signals[name] for name in found}
        filled = filler.fill(folder, list(kept.values()), filler.mine(micros))
        ranks.barrier()
    return kept, filled


@dataclass(frozen=True)
class Reading:
    """A store in use."""

    spec: CacheSpec
    source: CachedSource
    filled: Filled
    method: Distil
    first: list[Key]
    """Samples of the first micro-batch, on which it is measured."""
    batches: int
    """In an epoch."""
    filler: Filler
    manifest: Manifest

    def samples(self) -> list[Any]:
        """Of the first micro-batch."""
        return [self.source.seen(index, epoch).sample for epoch, index in self.first]

    def facts(self, models: Mapping[str, nn.Module], samples: int) -> dict[str, Any]:
        worth: Worth = measure(self.source, self.method, models, self.first)
        store, filled = self.source.store, self.filled
        saved = worth.live_seconds - worth.cached_seconds
        return {
            "path": str(store.folder),
            "view": self.spec.view,
            "epochs_drawn": self.spec.epochs,
            "bytes": store.bytes_on_disk(),
            "signals": worth.signals,
            "computed": filled.computed,
            "found": filled.found,
            "hit_rate": max(0.0, 1 - filled.computed / max(1, samples)),
            "fill_seconds": filled.seconds,
            "live_ms": 1000 * worth.live_seconds,
            "cached_ms": 1000 * worth.cached_seconds,
            "epochs": samples / max(1, len(self.source)),
            "paid_after_epochs": filled.seconds / (saved * self.batches) if saved > 0 else None,
            "loss_error": worth.loss_error,
        }
