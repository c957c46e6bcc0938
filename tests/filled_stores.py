"""Stores of the toy teacher's signals, for tests of the teacher's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toy import TERMS, ToyAdapter, roles

from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.cache_spec import CacheSpec
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.teacher_cache.entries import StoredSignal
from xmodal_kd.teacher_cache.fill import Filled, Filler
from xmodal_kd.teacher_cache.manifest import Manifest
from xmodal_kd.teacher_cache.session import filled_store
from xmodal_kd.teacher_cache.source import Seeing
from xmodal_kd.teacher_cache.store import Store


def filler(toy: ToyAdapter, ranks: Ranks | None = None, total: int = 4, **settings: Any) -> Filler:
    spec = CacheSpec(**settings)
    return Filler(
        spec, toy.data("train"), Seeing(toy.data("train"), spec, 1, toy), toy, roles(toy)["teacher"].eval(),
        Objective(TERMS), toy.streams, make_accelerator("cpu", "fp32"), ranks or Ranks(), total,
        (ranks or Ranks()).world, quiet=True,
    )  # fmt: skip


def fill(made: Filler, folder: Path, data: str = "toy") -> tuple[dict[str, StoredSignal], Filled]:
    return filled_store(made, folder, Manifest.of(made.teacher, {"path": data}, "fp32"))


def content(folder: Path) -> dict[bytes, bytes]:
    """Everything in a store."""
    store, found = Store(folder), {}
    for environment in store._environments():
        with environment.begin() as transaction:
            found |= {key: store._opened(key, value) for key, value in transaction.cursor()}
    store.close()
    return found
