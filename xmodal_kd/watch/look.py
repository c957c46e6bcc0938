"""What a run folder says of a run now, whoever wrote it and however far it came: files are read, no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapter import moments, panels
from ..adapter.moments import Moment
from ..adapter.panels import Panel
from ..report import load
from ..report.learning import Dev, Log, log_of
from ..report.plots import ROLES
from ..runtime.bounded_files import inside
from ..runtime.errors import UserError
from ..runtime.run_status import (
    PROGRESS,
    STATUS,
    Progress,
    State,
    Status,
    condition,
    is_run,
    read_progress,
    read_status,
)
from ..runtime.whole_files import read_json

#: Roles of a run that are looked at, and files whose change is noticed.
MOST_ROLES, MOST_FILES = 60, 500


@dataclass(frozen=True)
class Training:
    """One training, as far as it came.

    Attributes:
        steps: planned or done, 0 where nothing says; of a model that is loaded, 0 of 0.
        progress: None where an earlier version trained it, or where it has not begun.
    """

    role: str
    step: int
    steps: int
    done: bool
    dev: Dev
    log: Log
    progress: Progress | None
    seconds: float | None
    moments: Sequence[Moment]


@dataclass(frozen=True)
class Look:
    """A run folder at one moment.

    Attributes:
        report: of a finished run; None where there is none that can be shown.
        broken: what cannot be shown of it, a line each.
    """

    folder: Path
    state: State
    why: str
    status: Status | None
    metric: str
    lower: bool
    trainings: Mapping[str, Training]
    report: Mapping[str, Any] | None
    panels: Sequence[Panel]
    broken: Sequence[str]

    @property
    def learning(self) -> Training | None:
        """The training that is under way, or was when the run ended early."""
        begun = [one for one in self.trainings.values() if one.step and not one.done]
        return begun[-1] if begun else None

    @property
    def seconds_left(self) -> float | None:
        """Of all trainings that are planned, as if those to come took as long a step as the one that learns."""
        now = self.learning
        if now is None or now.progress is None or now.progress.step_seconds is None:
            return None
        rest = sum(one.steps - one.step for one in self.trainings.values() if not one.done)
        return max(0, rest) * now.progress.step_seconds


def look(folder: Path) -> Look:
    """All that a page shows of the run in `folder`. Raises `UserError` where there is none."""
    if not is_run(folder):
        raise UserError(f"{folder} is no run folder: it has neither status.json nor recipe.yaml beside a state.json")
    state, why = condition(folder)
    status, broken = read_status(folder), list[str]()
    finished = _tried(broken, lambda: load(folder)) if (folder / "report.json").is_file() else None
    known = finished["cost"] if finished else _trained(folder)
    metric, lower = _metric(status, finished, known)
    roles = _roles(folder, status, known)
    trainings = {role: _training(folder, role, status, known, metric) for role in roles}
    shown = _tried(broken, lambda: panels.read(folder)) or ()
    return Look(folder, state, why, status, metric, lower, trainings, finished, shown, broken)


def signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when anything that `look` reads does: name, time and size of its files."""
    names = (STATUS, "state.json", "report.json", "panels.json", "recipe.yaml", ".lock")
    found = []
    for path in (*(folder / name for name in names), *_files(folder)):
        try:
            stat = path.stat()
        except OSError:
            continue
        touched = 0 if path.name == ".lock" else stat.st_mtime_ns  # which lives by being touched
        found.append((str(path.relative_to(folder)), touched, stat.st_size))
    return tuple(found)


def _files(folder: Path) -> Iterator[Path]:
    for role in _listed(folder / "checkpoints"):
        yield folder / "checkpoints" / role / "log.jsonl"
        yield folder / "checkpoints" / role / PROGRESS
    for name in _listed(folder / moments.FOLDER):
        yield folder / moments.FOLDER / name


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())[:MOST_FILES]
    except OSError:
        return []


def _tried(broken: list[str], read: Any) -> Any:
    try:
        return read()
    except UserError as error:
        broken.append(str(error))
        return None


def _trained(folder: Path) -> dict[str, Any]:
    """What the state of a run that is not finished says of the trainings that are, as a report says it."""
    path = inside(folder, "state.json")
    try:
        roles = {} if path is None else read_json(path)["roles"]
        return {str(role): dict(entry.get("training", {})) for role, entry in roles.items()}
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _metric(status: Status | None, finished: Any, known: Mapping[str, Any]) -> tuple[str, bool]:
    if finished:
        return finished["metric"]["name"], finished["metric"]["lower_is_better"]
    if status is not None:
        return status.metric, status.lower_is_better
    names = [key for cost in known.values() for entry in _entries(cost) for key in entry if key != "step"]
    return (names or ["metric"])[0], True


def _roles(folder: Path, status: Status | None, known: Mapping[str, Any]) -> list[str]:
    """Those that are planned, in order; of a run that says no plan those of which there is anything."""
    if status is not None:
        return [one.role for one in status.plan][:MOST_ROLES]
    found = [role for role, cost in known.items() if isinstance(cost, Mapping)] + _listed(folder / "checkpoints")
    order = {role: i for i, role in enumerate(ROLES)}
    return sorted(dict.fromkeys(found), key=lambda role: order.get(role, 1))[:MOST_ROLES]


def _training(folder: Path, role: str, status: Status | None, known: Mapping[str, Any], metric: str) -> Training:
    progress, cost, log = read_progress(folder, role), known.get(role), log_of(folder, role)
    planned = next((one.steps for one in status.plan if one.role == role), 0) if status is not None else 0
    done = isinstance(cost, Mapping)
    cost = cost if isinstance(cost, Mapping) else {}
    logged = int(log[-1]["step"]) if log else 0
    step = max(progress.step if progress else 0, logged, _whole(cost.get("steps")))
    steps = step if done else max(progress.steps if progress else planned, step)
    if progress is not None:
        dev = Dev([(one.step, one.value) for one in progress.dev], progress.best_at)
    else:
        points = [(one["step"], one[metric]) for one in _entries(cost) if _number(one.get(metric))]
        dev = Dev(points, cost.get("best_step"))
    seconds = progress.seconds if progress else cost.get("seconds")
    return Training(role, step, steps, done, dev, log, progress, seconds if _number(seconds) else None,
                    moments.read(folder, role))  # fmt: skip


def _entries(cost: Any) -> list[Mapping[str, Any]]:
    """The evaluations of one training that are such."""
    dev = cost.get("dev") if isinstance(cost, Mapping) else None
    return (
        [one for one in dev if isinstance(one, Mapping) and _number(one.get("step"))] if isinstance(dev, list) else []
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _whole(value: Any) -> int:
    return int(value) if _number(value) else 0


__all__ = ["Look", "Training", "look", "signature"]
