"""What a cache costs and spoils, measured on one batch: read against run, cached loss against live loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from ..adapter.adapter import CACHED, Batch
from ..objective.parts import safe
from ..signals.signals import Signals
from ..training.method import Distil
from .codecs import Basis, Int8, row_bytes, settings
from .entries import StoredSignal, restored
from .manifest import entry_key
from .source import CachedSource, Held, Seen

#: Times that each is done; the median counts.
REPEATS = 3


@dataclass(frozen=True)
class Worth:
    """Of one batch.

    Attributes:
        signals: of each signal, how it is kept and how many bytes a row takes.
        live_seconds: of the teacher.
        cached_seconds: of finding, unpacking and placing what it said.
        loss_error: of each term, how far the cached teacher's value is from the live one's, as a share of it.
    """

    signals: dict[str, dict[str, Any]]
    live_seconds: float
    cached_seconds: float
    loss_error: dict[str, float | None]


@torch.no_grad()
def measure(
    source: CachedSource, method: Distil, models: Mapping[str, nn.Module], keys: Sequence[tuple[int, int]]
) -> Worth:
    """On the samples of `keys`, each an epoch and an index, with the student as it is.

    Modes and random streams are left as they were.
    """
    device = next(models[method.role].parameters()).device
    seen = [source.seen(index, epoch) for epoch, index in keys]
    batch: Batch = send_to_device(source.source.collate([one.sample for one in seen]), device)
    training = {name: model.training for name, model in models.items()}
    try:
        for model in models.values():
            model.eval()
        with method.streams.forked("cache", "measure"):
            return _measured(source, method, models, seen, batch)
    finally:
        for name, model in models.items():
            model.train(training[name])


def _measured(
    source: CachedSource, method: Distil, models: Mapping[str, nn.Module], seen: Sequence[Seen], batch: Batch
) -> Worth:
    adapter, objective = method.adapter, method.objective
    device = next(models[method.role].parameters()).device

    def forward_role(role: str, side: str) -> Signals:
        outputs = adapter.signals(role, models[role], batch, objective.features(side))
        outputs.model = models[role]
        return outputs

    def read() -> Signals:
        contents = [source.contents.digest(adapter.teacher_sees(one.sample)) for one in seen]
        held = [Held(one.sample, _entries(source, content)) for one, content in zip(seen, contents, strict=True)]
        outputs = restored(
            source.kept, send_to_device({CACHED: source.pack(held)}, device)[CACHED], student, source.own
        )
        outputs.model = models[method.teacher]
        return outputs

    student = forward_role(method.role, "student")
    live, live_seconds = _timed(lambda: forward_role(method.teacher, "teacher"), device)
    cached, cached_seconds = _timed(read, device)
    error = loss_error(method, student, live, cached)
    return Worth({name: _signal(kept) for name, kept in source.kept.items()}, live_seconds, cached_seconds, error)


def _entries(source: CachedSource, content: bytes) -> list[bytes]:
    found = source.store.get([entry_key(kept.number, content) for kept in source.kept.values()])
    return [entry for entry in found if entry is not None]


def _timed(what: Callable[[], Signals], device: torch.device) -> tuple[Signals, float]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter()

    out, seconds = what(), []
    for _ in range(REPEATS):
        start = now()
        out = what()
        seconds.append(now() - start)
    return out, median(seconds)


def loss_error(method: Distil, student: Signals, live: Signals, cached: Signals) -> dict[str, float | None]:
    """``|cached - live| / |live|`` of each term that sees the teacher; None where the live value is 0."""
    values = []
    for teacher in (live, cached):
        objective = copy.deepcopy(method.objective).eval()  # some losses remember what they see
        with method.streams.forked("cache", "loss"):
            out = objective(student, teacher, step=objective.steps // 2)
        values.append({name: float(part.total / safe(part.count)) for name, part in out.parts.items()})
    teacher_signals = {term.name for term in method.objective if term.spec.needs_teacher}
    return {
        name: abs(values[1][name] - value) / abs(value) if value else None
        for name, value in values[0].items()
        if name in teacher_signals
    }


def _signal(kept: StoredSignal) -> dict[str, Any]:
    found = {**settings(kept.codec), "kind": kept.kind, "bytes_per_row": row_bytes(kept.codec)}
    if isinstance(kept.codec, Int8 | Basis) and kept.codec.seen:
        found["cut"] = kept.codec.cut / kept.codec.seen
    return found
