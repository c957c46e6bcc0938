"""The checkpoints of one training, each of which knows its own bytes and whose it is.

A checkpoint is a folder ``step-00000120`` with ``tensors.safetensors`` and ``state.json``; it is written under a
temporary name, flushed to the disk and renamed, so a kill at any moment leaves the last complete one. Its
``state.json`` holds the digest of every file, itself included, and the training that wrote it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from . import leftovers
from .bounded_files import regular
from .checkpoint import disk_errors, read_json, read_tensors, sync_folder, write_json, write_tensors
from .errors import UserError

TENSORS, STATE = "tensors.safetensors", "state.json"
#: What a checkpoint says of itself: the digest of each file, and whose it is.
DIGESTS, OWNER = "digests", "owner"


@dataclass
class Progressed:
    """Where a training is; all of it goes into a checkpoint's JSON."""

    stage: int = 0
    step: int = 0
    """Within the stage."""
    total: int = 0
    """Over all stages: the data's position."""
    samples: int = 0
    seconds: float = 0.0
    stepping: float = 0.0
    """Seconds of the steps alone: no evaluation, no checkpoint."""
    waited: float = 0.0
    """Of these, seconds in which a step waited for its data."""
    best: float | None = None
    best_at: int | None = None
    bad: int = 0
    """Evaluations since the best."""
    stopped_early: bool = False
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    split: dict[str, float] = field(default_factory=dict)
    """Milliseconds a step by part."""
    notes: list[str] = field(default_factory=list)
    """What was not as it should have been when it went on, for the report."""

    def told(self) -> dict[str, Any]:
        """For the report."""
        return {
            "steps": self.total, "samples": self.samples, "seconds": self.seconds, "best_step": self.best_at,
            "stopped_early": self.stopped_early, "dev": self.evaluations, "milliseconds": self.split,
            "waited_for_data": self.waited / self.stepping if self.stepping else None, "notes": self.notes,
        }  # fmt: skip

    @classmethod
    def read(cls, content: Any, path: Path) -> Progressed:
        """Raises `UserError` where `content`, of the checkpoint at `path`, does not say where a training is."""
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, ("at", *first["loc"])))
            raise UserError(f"{path / STATE}: {where}: {first['msg']}: remove {path}, then --resume") from None

    def check(self, steps: Sequence[int], path: Path) -> None:
        """Raises `UserError` where stages of so many `steps` have no such place."""
        if not 0 <= self.stage < len(steps):
            told = f"it is in stage {self.stage + 1} of a training of {len(steps)}"
        elif not 0 <= self.step <= steps[self.stage]:
            told = f"it is at step {self.step} of a stage of {steps[self.stage]}"
        elif not self.step <= self.total <= sum(steps[: self.stage]) + self.step:
            told = f"it is at step {self.total} of all, and at {self.step} of stage {self.stage + 1}"
        elif path.name != f"step-{self.total:08d}":
            told = f"it is of step {self.total}"
        else:
            return
        raise UserError(f"{path / STATE}: {told}: not a checkpoint of this training: remove {path}, then --resume")


def file_digest(path: Path) -> str:
    """Of a regular file's bytes."""
    regular(path)
    hasher = blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                hasher.update(block)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return hasher.hexdigest()


def _state_digest(state: Mapping[str, Any]) -> str:
    content = {key: value for key, value in state.items() if key != DIGESTS}
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass
class Checkpoints:
    """The checkpoints of one training: the last `keep`, and ``best`` on dev.

    Args:
        owner: the training that writes them; another's are refused. Empty: anybody's.
    """

    folder: Path
    keep: int = 2
    owner: str = ""

    def steps(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / STATE).is_file())

    def latest(self) -> Path | None:
        return next(reversed(self.steps()), None)

    def sound(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is as it was written, and what is to be said of newer ones, which are removed.

        Raises:
            UserError: one is another training's, or none of several is sound.
        """
        damaged: dict[Path, str] = {}
        for path in reversed(self.steps()):
            if (what := self.damage(path)) is None:
                break
            damaged[path] = what
        else:
            if damaged:
                newest, what = next(iter(damaged.items()))
                raise UserError(
                    f"{newest}: {what}, and there is no sound one before it: remove {self.folder} to train anew"
                )
            return None, []
        for other in damaged:
            shutil.rmtree(other, ignore_errors=True)
        return path, [
            f"{other.name} of {self.folder.name} was damaged ({what}): went on from {path.name}"
            for other, what in damaged.items()
        ]

    def damage(self, path: Path) -> str | None:
        """What of the checkpoint is not as it was written. Raises `UserError` where it is another training's."""
        try:
            state = read_json(path / STATE)
            if not isinstance(state, dict):
                raise UserError(f"{path / STATE} is not a mapping")
            self._check_owner(path, state)
            self._check_digests(path, state)
        except _Foreign:
            raise
        except UserError as error:
            return " ".join(str(error).replace(f"{path}/", "").split())
        return None

    def _check_owner(self, path: Path, state: Mapping[str, Any]) -> None:
        owner = state.get(OWNER, "")
        if self.owner and owner and owner != self.owner:
            raise _Foreign(f"{path} is not of this training but of another ({owner}): remove it, then --resume")

    def _check_digests(self, path: Path, state: Mapping[str, Any]) -> None:
        known = state.get(DIGESTS)
        if known is None:  # of an older version
            read_tensors(path / TENSORS)
            return
        if not isinstance(known, dict) or known.get(STATE) != _state_digest(state):
            raise UserError(f"{STATE} is not what was written")
        for name, wanted in known.items():
            if name != STATE and file_digest(path / name) != wanted:
                raise UserError(f"{name} is not what was written")

    def best(self, stage: str = "") -> Path:
        """The best of the training, or of one of its stages."""
        return self.folder / (f"best-{stage}" if stage else "best")

    def read_best(self, at: Progressed, stage: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The best weights of the stage, which is at `at`.

        Raises:
            UserError: they are gone, damaged, another training's or of another step than the best was at. A best of a
                later step is one that a kill kept from being known: training comes there again.
        """
        path = self.best(stage)
        advice = f"remove {self.folder} to train anew, or say --accept-changes to go on without it"
        if not path.is_dir():
            raise UserError(f"{path} is gone, the best weights (of step {at.best_at}): {advice}")
        if (what := self.damage(path)) is not None:
            raise UserError(f"{path} is damaged: {what}: {advice}")
        tensors, state = self.read(path)
        step = state.get("step")
        if step != at.best_at and not (isinstance(step, int) and step > at.total):
            raise UserError(f"{path} is of step {step}, the best was at step {at.best_at}: {advice}")
        return tensors, state

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        target = self.folder / f"step-{step:08d}"
        self._write(target, tensors, state)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def save_best(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], stage: str = "") -> None:
        self._write(self.best(stage), tensors, state)

    def _write(self, target: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        half = leftovers.temporary(target)
        with disk_errors(target):
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            try:
                write_tensors(half / TENSORS, tensors)
                # as it will be read: JSON has no tuples, and names of keys only
                told = json.loads(json.dumps({OWNER: self.owner, **state}))
                digests = {TENSORS: file_digest(half / TENSORS), STATE: _state_digest(told)}
                write_json(half / STATE, {**told, DIGESTS: digests})
                if target.exists():  # a folder cannot be replaced in one move: step aside, then in
                    aside = self.folder / f".{target.name}.old"
                    shutil.rmtree(aside, ignore_errors=True)
                    target.rename(aside)
                    half.rename(target)
                    shutil.rmtree(aside, ignore_errors=True)
                else:
                    half.rename(target)
                sync_folder(self.folder)
            finally:
                shutil.rmtree(half, ignore_errors=True)

    def read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        state = read_json(path / STATE)
        if not isinstance(state, dict):
            raise UserError(f"{path / STATE} is not a mapping")
        return read_tensors(path / TENSORS), {k: v for k, v in state.items() if k not in (DIGESTS, OWNER)}

    def tidy(self) -> None:
        """Remove what a killed process left, and bring back a best that was stepping aside."""
        for aside in self.folder.glob(".*.old"):
            target = self.folder / aside.name[1 : -len(".old")]
            if target.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.rename(target)
        for rest in (*self.folder.glob(".*.tmp"), *self._halves()):
            shutil.rmtree(rest, ignore_errors=True)

    def _halves(self) -> Iterator[Path]:
        return (path for path in self.folder.glob("step-*") if not (path / STATE).is_file())


class _Foreign(UserError):
    """A checkpoint of another training."""


__all__ = ["STATE", "TENSORS", "Checkpoints", "Progressed", "file_digest"]
