"""Where the seconds of a run go, of each shipped recipe that runs here.

    python benchmarks/profile_recipes.py [RECIPE ...] [--steps 60] [--set KEY=VALUE ...]

Each recipe runs in a process of its own, as ``xmodal-kd run`` does, with `--steps` steps for whoever trains. Seconds
are the processor's, of all threads, so that others on the machine disturb them little; what a part calls that is a part
itself counts there alone. A recipe whose data are not here, or which takes longer than `--limit`, is left out, and the
results say which. Start-up is what the program imports until a run begins; the rehearsal is the run in small before
it; scores are latency and operations of each role; curves, pictures and page are what the report shows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

STARTED = process_time()
#: Of the recipes of a run's own; smoke recipes are tests.
SHIPPED = ("quickstart", "speech", "images", "points", "diffusion")
#: What is timed: module, class (or none), function, and under which name.
PARTS = (
    ("xmodal_kd.run.runner", "Run", "__init__", "opening"),
    ("xmodal_kd.run.rehearsal", "Rehearsal", "go", "rehearsal"),
    ("xmodal_kd.training.loader", "Supply", "__next__", "data"),
    ("xmodal_kd.training.engine", "Engine", "_step", "rest of the step"),
    ("xmodal_kd.training.engine", "Engine", "_measure", "evaluation on dev"),
    ("xmodal_kd.training.engine", "Engine", "save", "checkpoints"),
    ("xmodal_kd.training.engine", "Engine", "_end", "checkpoints"),
    ("xmodal_kd.teacher_cache.session", "Session", "of", "cache"),
    ("xmodal_kd.run.runner", "Run", "_score", "evaluation at the end"),
    ("xmodal_kd.run.runner", "Run", "_step_flops", "latency and operations"),
    ("xmodal_kd.run.runner", "Run", "_latency", "latency and operations"),
    ("xmodal_kd.run.runner", "Run", "_export", "export"),
    ("xmodal_kd.run.runner", "Run", "_overview", "curves"),
    ("xmodal_kd.run.runner", "Run", "_card", "page"),
    ("xmodal_kd.report", None, "write", "page"),
    ("xmodal_kd.adapter.panels", None, "write", "pictures"),
)
#: What training is made of; the rest is around it.
STEP = ("data", "teacher", "student", "loss", "backward", "optimizer", "rest of the step")


class Clock:
    """Seconds by part; the one that is entered last has them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside, self._since = ["other"], process_time()

    def _count(self) -> None:
        now = process_time()
        part = self._inside[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def __call__(self, part: str) -> Inside:
        return Inside(self, part)

    def enter(self, part: str) -> None:
        self._count()
        self._inside.append(part)

    def leave(self) -> None:
        self._count()
        self._inside.pop()

    def at(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(part):
                return call(*args, **kwargs)

        return timed


class Inside:
    def __init__(self, clock: Clock, part: str) -> None:
        self.clock, self.part = clock, part

    def __enter__(self) -> None:
        self.clock.enter(self.part)

    def __exit__(self, *_: object) -> None:
        self.clock.leave()


def one(recipe: str, steps: int, sets: list[str]) -> dict[str, Any]:
    """Run a recipe in this process. Returns seconds by part."""
    import importlib

    from xmodal_kd.recipe.recipe import load
    from xmodal_kd.run.options import Options
    from xmodal_kd.run.runner import Run
    from xmodal_kd.runtime.timing import StepTimer

    start_up = process_time() - STARTED
    clock = Clock()
    for module, owner, name, part in PARTS:
        place: Any = importlib.import_module(module)
        place = place if owner is None else getattr(place, owner)
        held = vars(place)[name]
        timed = clock.at(part, held.__func__ if isinstance(held, classmethod) else held)
        setattr(place, name, classmethod(timed) if isinstance(held, classmethod) else timed)  # type: ignore[arg-type]
    rehearsing = lambda: "rehearsal" in clock._inside  # noqa: E731

    def time(self: StepTimer, part: str) -> Inside:
        return clock("rehearsal" if rehearsing() else "rest of the step" if part == "step" else part)

    StepTimer.time = time  # type: ignore[assignment]
    few = [f"train.steps={steps}", *(["teacher.train.steps=" + str(steps)] if _trains_teacher(recipe, sets) else [])]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            load(recipe, [*few, "train.eval_every=null", *sets]), Options(Path(folder) / "run", "cpu", quiet=True)
        )
        run.execute()
    clock.enter("end")
    found = {"start-up": start_up, **clock.seconds}
    return {"seconds": found, "whole": sum(found.values()), "steps": steps, "set": sets}


def _trains_teacher(recipe: str, sets: list[str]) -> bool:
    from xmodal_kd.recipe.recipe import load

    teacher = load(recipe, sets).recipe.teacher
    return teacher is not None and teacher.path is None


def apart(recipe: str, steps: int, sets: list[str], limit: float) -> dict[str, Any]:
    """The same in a process of its own; why not, where it does not run."""
    command = [
        sys.executable,
        __file__,
        "--one",
        recipe,
        "--steps",
        str(steps),
        *(x for s in sets for x in ("--set", s)),
    ]
    began = perf_counter()
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"left_out": f"took longer than {limit:.0f} s"}
    if done.returncode:
        return {"left_out": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"clock": perf_counter() - began}


def table(cells: dict[str, Any]) -> str:
    """Markdown: shares of a run's seconds, the largest first."""
    lines = ["| recipe | s | where they go |", "| --- | --- | --- |"]
    for name, cell in cells.items():
        if "left_out" in cell:
            lines.append(f"| {name} | | left out: {cell['left_out']} |")
            continue
        parts = {part: s for part, s in cell["seconds"].items() if s > 0.03 * cell["whole"]}
        told = ", ".join(
            f"{part} {100 * s / cell['whole']:.0f} %" for part, s in sorted(parts.items(), key=lambda x: -x[1])
        )
        lines.append(f"| {name} | {cell['whole']:.0f} | {told} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="else all that are shipped")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds by the clock for each recipe")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "profile_recipes.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        from xmodal_kd.runtime.errors import UserError

        try:
            print(json.dumps(one(args.recipes[0], args.steps, args.sets)))
        except UserError as error:
            raise SystemExit(str(error)) from None
        return
    from xmodal_kd.runtime.device import versions

    folder = Path(__file__).parents[1] / "recipes"
    shipped = [f"{kind}/{path.stem}" for kind in SHIPPED for path in sorted((folder / kind).glob("*.yaml"))]
    found: dict[str, Any] = json.loads(args.results.read_text()) if args.results.exists() else {"cells": {}}
    for recipe in args.recipes or shipped:
        found["cells"][recipe] = apart(recipe, args.steps, args.sets, args.limit)
        found |= {"versions": versions(), "load": os.getloadavg()[0]}
        args.results.write_text(json.dumps(found, indent=1) + "\n")
        print(recipe, json.dumps(found["cells"][recipe]), flush=True)
    print(table(found["cells"]))


if __name__ == "__main__":
    main()
