"""Kills at operations on files: a run that was killed goes on to the very bytes of one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toy import RECIPE

from xmodal_kd.runtime.checkpoint import read_json

from .processes import Said, command, run_of

#: Operations on files that Python tells of; those inside the run folder are counted.
WATCHED = frozenset({"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.utime", "os.truncate", "os.listdir"})

#: Toy runs that leave different things on the disk.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": ("trackers=[]",),
    "tracked": (),
    "cached": ("trackers=[]", "cache={view: replay, epochs: 2}", "teacher.train.steps=4"),
    "no average": ("trackers=[]", "train.ema=null", "train.keep=1"),
    "often": ("trackers=[]", "train.checkpoint_every=1", "train.eval_every=1", "teacher.train.checkpoint_every=1"),
    "early": ("trackers=[]", "train.early_stop={patience: 1}", "train.eval_every=2"),
    "chain": ("trackers=[]", "scheme={name: born_again, params: {generations: 2}}", "train.steps=4"),
    "mutual": ("trackers=[]", "scheme=dml", "teacher=null", "objective=[{loss: test_ce}, {loss: kd}]"),
}


def watch(out: str, number: int, note: str) -> None:
    """In the process: count operations in `out`, kill it at the `number`-th; 0: write how many there were to `note`."""
    count = 0

    def seen(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in WATCHED or not args or not _is_in(args[0], out):
            return
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 0:
            Path(note).write_text(str(count))

    sys.addaudithook(seen)


def _is_in(path: Any, out: str) -> bool:
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(out)


def contents(out: Path) -> dict[str, bytes]:
    """What must be the same to the byte: every file of every role's folder."""
    roles = [folder for folder in sorted(out.iterdir()) if (folder / "card.json").is_file()]
    files = [path for folder in roles for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def numbers(out: Path) -> dict[str, Any]:
    """What a report says that no clock decides."""
    found = read_json(out / "report.json")
    cost = {role: one for role, one in found["cost"].items() if isinstance(one, dict)}
    return {
        "metrics": {role: entry["metrics"] for role, entry in found["roles"].items()},
        "gap": found["gap_closed"], "gain": found["gain"],
        "cost": {role: {key: one[key] for key in ("steps", "samples", "flops_per_step", "best_step", "dev")}
                 for role, one in cost.items()},
        "flops": {role: entry["flops_per_sample"] for role, entry in found["roles"].items()},
    }  # fmt: skip


@dataclass
class Baseline:
    """An undisturbed run of a recipe, and how many operations it took."""

    recipe: str
    sets: tuple[str, ...]
    out: Path
    operations: int
    files: dict[str, bytes] = field(repr=False)
    told: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, recipe: str, sets: tuple[str, ...], folder: Path) -> Baseline:
        out, note = folder / "whole", folder / "operations"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        said = command(arguments(recipe, sets, out), watch, str(out), 0, str(note), seconds=600)
        if said.status != 0:
            raise RuntimeError(f"{recipe} {sets}: {said}")
        return cls(recipe, sets, out, int(note.read_text()), contents(out), numbers(out))

    def difference(self, out: Path) -> str | None:
        """The first file or number in which a run in `out` is not the undisturbed one."""
        files = contents(out)
        for name in sorted(self.files.keys() | files.keys()):
            if self.files.get(name) != files.get(name):
                return (
                    f"{name} {'is missing' if name not in files else 'is new' if name not in self.files else 'differs'}"
                )
        told = numbers(out)
        return next((f"the report's {key} differ" for key in told if told[key] != self.told[key]), None)


def arguments(recipe: str, sets: tuple[str, ...], out: Path, *more: str) -> list[str]:
    return run_of(recipe, out, *(word for one in sets for word in ("--set", one)), *more)


def toy_recipe(folder: Path) -> str:
    path = folder / "toy.yaml"
    path.write_text(RECIPE)
    return str(path)


def killed(draw: random.Random, base: Baseline, out: Path) -> tuple[int, str | None]:
    """Kill a run at drawn operations, up to three times, and let it end. Returns the kills, and what fell short."""
    shutil.rmtree(out, ignore_errors=True)
    places: list[int] = []
    for _ in range(draw.randint(1, 3)):
        places.append(draw.randint(1, base.operations))
        said = command(arguments(base.recipe, base.sets, out, "--resume"), watch, str(out), places[-1], "", seconds=300)
        if said.status == 0:
            places.pop()
            break
        if said.status != -signal.SIGKILL:
            return len(places), f"killed at {places}: {_ended(said)}"
    said = command(arguments(base.recipe, base.sets, out, "--resume"), seconds=300)
    if said.status != 0:
        return len(places), f"killed at {places}, --resume: {_ended(said)}"
    if (what := base.difference(out)) is not None:
        return len(places), f"killed at {places}: {what}"
    rest = [path for path in out.rglob("*") if path.name.endswith(".tmp") or path.name in (".lock",)]
    return len(places), f"killed at {places}: {rest[0].name} stays" if rest else None


def _ended(said: Said) -> str:
    return said.short() or f"status {said.status}: {said.errors[-300:]}"
