"""How the roles of a run learned: the metric on dev with its best, and every term of the objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..runtime.bounded_files import inside
from ..runtime.run_log import read as read_log
from .plots import Line, line_plot, number, series

#: Entries of a log that its curves are drawn from: a mean over neighbours takes the square of them.
MOST_ENTRIES = 2000

Log = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Dev:
    """Evaluations on dev: step and value of each, and the step whose weights are kept."""

    points: Sequence[tuple[float, float]]
    best_at: int | None = None


def dev_of(training: Mapping[str, Any], metric: str) -> Dev:
    """Of what a report says of one training."""
    points = [(entry["step"], entry[metric]) for entry in training.get("dev", ()) if entry.get(metric) is not None]
    return Dev(points, training.get("best_step"))


def log_of(folder: Path, role: str) -> Log:
    """The log of one training of the run in `folder`, thinned out where it is long."""
    path = inside(folder, f"checkpoints/{role}/log.jsonl")
    entries = [] if path is None else read_log(path)
    step = math.ceil(len(entries) / MOST_ENTRIES) or 1
    kept = entries[::step]
    return kept if not entries or kept[-1] is entries[-1] else [*kept, entries[-1]]


def learning(metric: str, dev: Mapping[str, Dev], logs: Mapping[str, Log]) -> str:
    """The metric on dev, then a plot for each term of the objective; what the optimizer did is folded away."""
    lines = [Line(_with_best(role, one), role, one.points, dots=True, best=one.best_at) for role, one in dev.items()]
    keys = dict.fromkeys(key for entries in logs.values() for entry in entries for key in entry if key != "step")
    plots = [line_plot(lines, x="step", y=f"{metric} on dev"), *(_logged(logs, key) for key in keys if "/" not in key)]
    others = [_logged(logs, key) for key in keys if "/" in key]
    return grid(plots) + folded("Gradient norms and learning rates", [grid(others)] if any(others) else [])


def _with_best(role: str, dev: Dev) -> str:
    value = next((value for step, value in dev.points if step == dev.best_at), None)
    return role if value is None else f"{role}, best {number(value)} at step {dev.best_at}"


def _logged(logs: Mapping[str, Log], key: str) -> str:
    lines = []
    for role, entries in logs.items():
        raw, smooth = series(entries, key)
        lines += [Line(role, role, raw, raw=True), Line(role, role, smooth)]
    return line_plot(lines, x="step", y=key)


def grid(plots: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(plots)}</div>' if any(plots) else ""


def folded(title: str, blocks: Sequence[str]) -> str:
    return f"<details><summary>{escape(title)}</summary>{''.join(blocks)}</details>" if blocks else ""


__all__ = ["Dev", "dev_of", "folded", "grid", "learning", "log_of"]
