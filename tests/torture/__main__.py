"""``make torture``: a seed drawn from the system, new cases of every kind until the time is up, counts into the docs.

    python -m torture [--seed N] [--minutes 20] [--jobs N] [--smoke] [--only KIND] [--write]

Exit status 1 if anything fell short: a traceback, a bare error, a status other than promised, other bytes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import disks, hostile, kills, ranks, received, recipes
from .processes import command, fork_here, run_of

ROOT = Path(__file__).parents[2]
PAGE, MARK = ROOT / "docs" / "reliability.md", "<!-- torture -->"
#: Cases of a kind that a run should reach, and the share of the time that each kind gets at most before others come.
WANTED = {
    "malformed recipes": 200,
    "kills": 50,
    "hostile folders": 40,
    "received files": 40,
    "full disks": 8,
    "dead ranks": 2,
}
#: Seconds that must be left for a case of dead ranks.
RANKS = 300
SMOKE = ("smoke/speech", "smoke/points", "smoke/diffusion")


@dataclass
class Tally:
    """What was done, and what of it fell short."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WANTED, 0))
    short: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in WANTED})

    def add(self, kind: str, what: str, short: str | None, count: int = 1) -> None:
        self.counts[kind] += count
        if short is not None:
            self.short[kind].append(f"{what}: {short}")
            print(f"SHORT {kind}: {what}: {short}", flush=True)


class Torture:
    """All kinds of cases, each drawn from its own stream of the seed."""

    def __init__(self, seed: int, job: int, folder: Path, smoke: bool) -> None:
        self.folder, self.tally = folder, Tally()
        self.draws = {kind: random.Random(f"{seed} {job} {kind}") for kind in WANTED}
        self.recipe = kills.toy_recipe(folder)
        self.bases: dict[str, kills.Baseline] = {}
        self.two: tuple[kills.Baseline, float] | None = None
        self.found = recipes.bases(SMOKE, folder)
        self.smoke = smoke
        self.kinds: dict[str, Callable[[random.Random], None]] = {
            "malformed recipes": self.malformed, "kills": self.killed, "hostile folders": self.hostile,
            "received files": self.received, "full disks": self.full, "dead ranks": self.dead,
        }  # fmt: skip

    def base(self, draw: random.Random) -> kills.Baseline:
        if self.smoke and draw.random() < 0.1:
            return self._base("speech", "smoke/speech", ("trackers=[]",))
        name = draw.choice(sorted(kills.VARIANTS))
        return self._base(name, self.recipe, kills.VARIANTS[name])

    def _base(self, name: str, recipe: str, sets: tuple[str, ...]) -> kills.Baseline:
        if name not in self.bases:
            self.bases[name] = kills.Baseline.of(recipe, sets, self.folder / "bases" / name.replace(" ", "-"))
        return self.bases[name]

    def malformed(self, draw: random.Random) -> None:
        case = recipes.malformed(draw, self.found)
        path, out = self.folder / "case.yaml", self.folder / "case"
        shutil.rmtree(out, ignore_errors=True)
        path.write_bytes(case.text)
        more = [word for one in case.sets for word in ("--set", one)] + ([] if case.full else ["--max-minutes", "0.02"])
        said = command(run_of(path, out, *more), seconds=150)
        short = said.short()
        self.tally.add("malformed recipes", case.what, f"{short} | {said.errors[-200:]}" if short else None)

    def killed(self, draw: random.Random) -> None:
        base = self.base(draw)
        count, short = kills.killed(draw, base, self.folder / "killed")
        self.tally.add("kills", f"{Path(base.recipe).stem} {' '.join(base.sets)}", short, count)

    def hostile(self, draw: random.Random) -> None:
        self.tally.add("hostile folders", *hostile.damaged(draw, self.base(draw), self.folder / "hostile" / "run"))

    def received(self, draw: random.Random) -> None:
        self.tally.add("received files", *received.received(draw, self.folder / "received"))

    def full(self, draw: random.Random) -> None:
        self.tally.add("full disks", *disks.full(draw, self.base(draw), self.folder / "disk"))

    def dead(self, draw: random.Random) -> None:
        base = self._base("plain", self.recipe, kills.VARIANTS["plain"])
        if self.two is None:
            start = time.monotonic()
            self.two = ranks.of_two(base, self.folder), time.monotonic() - start
        self.tally.add("dead ranks", *ranks.dead(draw, self.two[0], self.folder / "dead", self.two[1]))

    def run(self, minutes: float, only: Sequence[str]) -> None:
        """Always the kind that is furthest from what is wanted, until the time is up."""
        end = time.monotonic() + 60 * minutes
        while (left := end - time.monotonic()) > 0:
            # two processes take minutes to start, be killed and end again: not at the last moment
            kinds = [one for one in only or WANTED if one != "dead ranks" or left > RANKS]
            if not kinds:
                return
            kind = min(kinds, key=lambda one: self.tally.counts[one] / WANTED[one])
            try:
                self.kinds[kind](self.draws[kind])
            except Exception as error:  # of ours: a case that cannot be made is none, and is told
                self.tally.add(kind, "the case itself", f"{type(error).__name__}: {error}")


def worker(pipe: Any, seed: int, job: int, minutes: float, only: Sequence[str], smoke: bool) -> None:
    """One of several processes that share the work; sends its tally."""
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    torture = Torture(seed, job, folder, smoke)
    try:
        torture.run(minutes, only if job == 0 else [one for one in only or WANTED if one != "dead ranks"])
    except KeyboardInterrupt:
        print("interrupted")
    if not any(torture.tally.short.values()):
        shutil.rmtree(folder, ignore_errors=True)
    pipe.send(torture.tally)


def shared(given: argparse.Namespace) -> Tally:
    """The tally of all jobs."""
    whole, context = Tally(), multiprocessing.get_context("fork")
    pairs = []
    for job in range(given.jobs):
        ours, theirs = context.Pipe(duplex=False)
        made = context.Process(target=worker, args=(theirs, given.seed, job, given.minutes, given.only, given.smoke))
        made.start()
        theirs.close()
        pairs.append((made, ours))
    for process, pipe in pairs:
        one: Tally = pipe.recv()
        for kind in WANTED:
            whole.counts[kind] += one.counts[kind]
            whole.short[kind] += one.short[kind]
        process.join()
    return whole


def page(tally: Tally, seed: int, minutes: float) -> str:
    """What is put into the docs."""
    rows = [f"| {kind} | {tally.counts[kind]} | {WANTED[kind]} | {len(tally.short[kind])} |" for kind in WANTED]
    lines = [f"- {kind}: {' '.join(one.split())[:300]}" for kind, found in tally.short.items() for one in found]
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    return "\n".join([
        MARK, f"The last run: {when}, seed {seed}, {minutes:.0f} minutes, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores.", "", "| kind | cases | wanted | short |", "|---|---|---|---|", *rows, "",
        *(["What fell short:", "", *lines] if lines else ["Nothing fell short."]), "",
    ])  # fmt: skip


def write(text: str) -> None:
    before = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(before + text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(6)), help="else drawn from the system")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that share the work")
    parser.add_argument("--smoke", action="store_true", help="kill smoke runs too, which take longer")
    parser.add_argument("--only", action="append", choices=WANTED, default=[], help="a kind of cases; repeatable")
    parser.add_argument("--write", action="store_true", help=f"put the counts into {PAGE.relative_to(ROOT)}")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    start = time.monotonic()
    fork_here()
    tally = shared(given)
    text = page(tally, given.seed, (time.monotonic() - start) / 60)
    print(text)
    if given.write:
        write(text)
    return int(any(tally.short.values()))


if __name__ == "__main__":
    sys.exit(main())
