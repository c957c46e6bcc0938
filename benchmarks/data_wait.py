"""What a thread that makes the next step's samples is worth at ``workers: 0``, and how long steps wait without it.

    python benchmarks/data_wait.py [--rounds 8] [--steps 40]

The students of shipped recipes, taught by the shipped teachers, are trained for some steps from the same weights, with
and without ``train.ahead``, in turns, in a drawn order; "again" is the arm without it once more (A/A). Losses of all
arms are asserted to be the same. Told are milliseconds a step, the share of it that waited for data, and the ratio of
the arms' times, paired by round, with its 95 % bootstrap interval. One thread for the arithmetic, so that a second core
is what the loading thread has. Where others use the machine, say ``--shared``: then p10 says more than the median.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import interval

from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.options import Options
from xmodal_kd.run.roles import make_method, models_of, training_source
from xmodal_kd.run.runner import Run
from xmodal_kd.runtime.device import versions
from xmodal_kd.runtime.saved_steps import Progressed
from xmodal_kd.training.engine import Engine

#: Recipes, and what is set in them.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "speech, as shipped": ("quickstart/speech", ()),
    "speech, speed and noise anew in each epoch": (
        "quickstart/speech", ("data.augment.speed=[0.9,1.1]", "data.augment.noise_snr_db=[5,20]"),
    ),
    "points, as shipped": ("quickstart/points", ()),
    "diffusion, as shipped": ("quickstart/diffusion", ()),
}  # fmt: skip
ARMS = {"waiting": False, "waiting again": False, "ahead": True}


class Case:
    """The training of a recipe's student, ready to be begun again and again."""

    def __init__(self, recipe: str, sets: tuple[str, ...], steps: int, folder: Path) -> None:
        own = ("trackers=[]", f"train.steps={steps}", "threads=1")
        self.run = run = Run(load(recipe, [*own, *sets]), Options(folder / "run", "cpu", False, quiet=True))
        self.plan = next(plan for plan in run.role_plans if plan.role == "student")
        self.source = training_source(run.adapter, run.recipe, "student")
        run.models = {role: run._load(role) for role in self.plan.teachers}
        self.models = models_of(run.adapter, run.loaded, self.plan, run.streams, run.models)
        run.adapter.begin("student", range(len(self.source)))
        assert run.lock is not None
        run.lock.release()
        self.folder, self.turns = folder, 0

    def turn(self, ahead: bool) -> tuple[Progressed, float]:
        """Train anew. Returns where it ended, and a number that all of the student's weights decide."""
        self.turns += 1
        run, models = self.run, copy.deepcopy(self.models)
        train = self.plan.steps.model_copy(update={"ahead": ahead})
        engine = Engine(
            make_method(run.loaded, run.adapter, self.plan, run.streams), self.source, models, train,
            streams=run.streams, accelerator=run.accelerator, folder=self.folder / str(self.turns), quiet=True,
        )  # fmt: skip
        at = engine.fit()
        return at, sum(float(p.detach().double().sum()) for p in models["student"].parameters())


def measure(case: Case, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    shares: dict[str, list[float]] = {arm: [] for arm in ARMS}
    first = case.turn(False)[1]  # and memories are filled
    for i in range(rounds):
        for arm in np.random.default_rng(i).permutation(list(ARMS)):
            at, weights = case.turn(ARMS[arm])
            assert weights == first, f"{arm}: other weights"
            seconds[arm].append(at.stepping / at.total)
            shares[arm].append(at.waited / at.stepping)
    base = np.array(seconds["waiting"])
    return {
        arm: {
            "median_ms": 1e3 * float(np.median(values)),
            "p10_ms": 1e3 * float(np.percentile(values, 10)),
            "waited": float(np.median(shares[arm])),
            **({} if arm == "waiting" else {"of_waiting": interval(np.array(values) / base)}),
        }
        for arm, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--shared", action="store_true", help="say in the results that others used the machine")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "data_wait.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "rounds": args.rounds, "steps": args.steps, "machine_shared": args.shared, "cores": os.cpu_count(),
        "load": os.getloadavg()[0], "versions": versions(), "cases": {},
    }  # fmt: skip
    for name in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            recipe, sets = CASES[name]
            found["cases"][name] = measure(Case(recipe, sets, args.steps, Path(folder)), args.rounds)
        print(name, json.dumps(found["cases"][name]), flush=True)
        args.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
