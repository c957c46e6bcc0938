"""What a run says of itself while it is at work, in files that a page or another program reads: see ``watch``.

``status.json`` in the run folder is of the whole run, ``progress.json`` beside the checkpoints of a training of that
one. Both are for people who look on: nothing goes on from them, and a run does not stop where they cannot be written.
Their readers know nothing of torch, and take a folder for what a stranger may have put there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .bounded_files import inside
from .errors import UserError
from .run_lock import at_work
from .whole_files import read_json, write_bytes

STATUS, PROGRESS = "status.json", "progress.json"
#: Bytes of either, and evaluations that are kept of one training.
MOST, MOST_EVALUATIONS = 1 << 24, 100_000

#: What a run folder is in: `Status.state`, and of one that says no more because its process is gone, ``killed``.
State = Literal["running", "finished", "failed", "stopped", "killed"]
Text = Annotated[str, Field(max_length=4000)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 60)]


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Training(_File):
    """One training that a run plans; `steps` is 0 for a model that is loaded."""

    role: Text
    steps: Count


class Status(_File):
    """A run: what it is, what it plans, how it ended.

    Attributes:
        began, ended: seconds since 1970; of the last start where it went on.
        why: of one that failed or stopped.
    """

    state: Literal["running", "finished", "failed", "stopped"]
    began: Number
    ended: Number | None = None
    why: Text = ""
    recipe: Text
    modality: Text
    method: Text
    seed: Count
    metric: Text
    lower_is_better: bool
    plan: Annotated[list[Training], Field(max_length=1000)]


class Machine(_File):
    """Memory in bytes: now (None on a CPU, where only the peak is known), at most so far, and all there is."""

    device: Text
    name: Text
    memory: Count | None = None
    peak: Count
    capacity: Count | None = None
    utilisation: Annotated[float, Field(ge=0, le=1)] | None = None


class Evaluated(_File):
    step: Count
    value: Number


class Progress(_File):
    """A training: `step` of `steps` over all its stages.

    Attributes:
        seconds: of this training so far, evaluations included, over all its starts.
        step_seconds: of a step since the last start, evaluations included; None before there is one.
        written: seconds since 1970.
    """

    step: Count
    steps: Count
    stage: Count
    stages: Count
    seconds: Number
    step_seconds: Number | None = None
    best_at: Count | None = None
    dev: Annotated[list[Evaluated], Field(max_length=MOST_EVALUATIONS)]
    machine: Machine
    written: Number

    @property
    def seconds_left(self) -> float | None:
        return None if self.step_seconds is None else max(0, self.steps - self.step) * self.step_seconds


F = TypeVar("F", bound=_File)


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Whole or not at all; what a full disk or a number that is none refuses is left out without a word."""
    with suppress(UserError, ValueError):
        write_bytes(path, json.dumps({"schema": 1, **found}, allow_nan=False).encode(), lasting=False)


def began(folder: Path, about: Mapping[str, Any], plan: Iterable[tuple[str, int]]) -> None:
    """The run in `folder` is at work; `about` has what `Status` says of its recipe."""
    trainings = [{"role": role, "steps": steps} for role, steps in plan]
    write(folder / STATUS, {"state": "running", "began": time(), **about, "plan": trainings})


def ended(folder: Path, state: Literal["finished", "failed", "stopped"], why: str = "") -> None:
    """The run in `folder` is at work no more."""
    status = read_status(folder)
    if status is not None:
        told = " ".join(why.split())[:2000]
        write(folder / STATUS, {**status.model_dump(mode="json"), "state": state, "ended": time(), "why": told})


def read_status(folder: Path) -> Status | None:
    """None where there is none that can be read: a run of an earlier version, or a damaged file."""
    return _read(folder, STATUS, Status)


def read_progress(folder: Path, role: str) -> Progress | None:
    """As `read_status`, of one training."""
    return _read(folder, f"checkpoints/{role}/{PROGRESS}", Progress)


def _read(folder: Path, name: str, kind: type[F]) -> F | None:
    path = inside(folder, name)
    if path is None:
        return None
    try:
        return kind.model_validate(read_json(path, MOST))
    except (UserError, ValidationError):
        return None


def condition(folder: Path) -> tuple[State, str]:
    """What a run folder is in, and why: from the lock of a process that lives, then from what the run has said."""
    if at_work(folder):
        return "running", ""
    status = read_status(folder)
    if status is not None and status.state != "running":
        return status.state, status.why
    if (folder / "report.json").is_file():
        return "finished", ""
    return "killed", "its process ended without a word: the same command with --resume goes on"


def is_run(folder: Path) -> bool:
    """Whether a run was begun in `folder`, by this version or an earlier one."""
    if (folder / STATUS).is_file():
        return True
    return (folder / "recipe.yaml").is_file() and any((folder / n).is_file() for n in ("state.json", "report.json"))


__all__ = [
    "PROGRESS",
    "STATUS",
    "Machine",
    "Progress",
    "State",
    "Status",
    "began",
    "condition",
    "ended",
    "is_run",
    "read_progress",
    "read_status",
    "write",
]
