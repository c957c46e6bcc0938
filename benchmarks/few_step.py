"""All few-step methods on one teacher and one budget of CPU seconds: handwritten digits in 1, 2 and 4 evaluations.

    python benchmarks/few_step.py

The teacher is the one in ``assets/teachers/diffusion``, sampled in 64 DDIM steps. Steps of each method are such that
its training takes as many CPU seconds as another's on one thread; the table says what it took. One judge measures all
with the same noise: 1,000 samples against the test split, means over three draws; students are of seeds 1, 2, 3.
Nothing is chosen on the way: a student is what its last step left. Cells that the results hold already are not made
again. Writes ``benchmarks/results/few_step.json`` and prints a table.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any, cast

import torch
from cells import shown, t_interval
from torch import nn

from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.evaluate.guard import COUNT, compared
from xmodal_kd.modalities.diffusion.methods.intervals import Intervals
from xmodal_kd.modalities.diffusion.models.denoiser import FEW_STEP, Denoiser, Sampling
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Term, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import METHODS, Stage

HERE = Path(__file__).parent
BUDGETS = (1, 2, 4)
#: Of the noise that everything is measured with, whatever a student's seed.
NOISE_SEED = 1
BATCH = 64
GAN = {"gan": 0.03, "gan_critic": 0.03}
#: As ``recipes/diffusion/digits.yaml``, so that the test images are those of its tables.
DATA = {
    "sources": "digits", "dev": 297, "test": 500, "samples": 1000, "draws": 3,
    "sampling": {"solver": "ddim", "steps": 64},
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A method, steps of each of its stages, and its optimizer."""

    method: str
    steps: int
    params: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 5e-4
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    ema: float | None = None
    budgets: tuple[int, ...] = BUDGETS
    first: int | None = None
    """Steps a stage of a progressive distillation, whose student of one step it starts as; its seconds count."""


MATCHING: dict[str, Any] = {"lr": 2e-4, "betas": (0.0, 0.99), "ema": 0.98, "budgets": (1,)}
FIRST, LONG = "progressive, then dmd2 with GAN", "the same, four times as long"
LONGEST = "the same, eleven times as long"
ARMS = {
    "progressive": Arm("progressive", 33, lr=1e-3),
    "consistency": Arm("consistency", 250, optimizer="radam", ema=0.99),
    "ect": Arm("ect", 330, optimizer="radam", ema=0.99),
    "scm": Arm("scm", 220, lr=2e-4, optimizer="radam", ema=0.99),
    "shortcut": Arm("shortcut", 220, {"steps": 1}, lr=1e-3, ema=0.98),
    "dmd2 with GAN": Arm("dmd2", 120, {"critic": 1, **GAN}, **MATCHING),
    FIRST: Arm("dmd2", 65, {"critic": 1, **GAN}, first=15, **MATCHING),
    LONG: Arm("dmd2", 400, {"critic": 1, **GAN}, first=25, **MATCHING),
    "add": Arm("add", 150, {"steps": 4}, **MATCHING | {"budgets": BUDGETS}),
    "progressive, then add": Arm("add", 100, {"steps": 1, "distil": 0.5}, first=15, **MATCHING),
    LONGEST: Arm("dmd2", 1500, {"critic": 1, "gan": 0.1, "gan_critic": 0.1}, first=200, **MATCHING | {"ema": 0.995}),
}


class Room:
    """The data, the teacher and the judge that all cells share."""

    def __init__(self, teacher: Path, split: str) -> None:
        self.data, self.split = DiffusionData.model_validate(DATA), split
        self.judge = self.adapter(NOISE_SEED)
        self.path = teacher
        self.teacher = cast(Denoiser, self.judge.load("teacher", teacher)).eval()

    def adapter(self, seed: int) -> DiffusionAdapter:
        return DiffusionAdapter(self.data, Streams(seed), BATCH)

    def measured(self, model: Denoiser) -> dict[str, Any]:
        found = self.judge.measure(model, self.split).metrics
        theirs, made = (self.judge.sample(one, 0, COUNT) for one in (self.teacher, model))
        return found | compared(made, theirs)

    def distil(self, arm: Arm, seed: int) -> tuple[dict[int, Denoiser], float]:
        """Students by number of evaluations, and the CPU seconds of their training."""
        adapter, kind, params = self.adapter(seed), METHODS[arm.method], dict(arm.params)
        roles: dict[str, nn.Module] = {"teacher": copy.deepcopy(self.teacher)}
        adapter.teacher = cast(Denoiser, roles["teacher"])
        roles["student"] = adapter.build("student", "like_teacher", {})
        train = Train(
            steps=arm.steps, batch_size=BATCH, optimizer=Optimizer(name=arm.optimizer, lr=arm.lr, betas=arm.betas),
            ema=arm.ema, schedule=Schedule(kind="linear"), checkpoint_every=1_000_000,
        )  # fmt: skip
        objective = Objective([Term(loss="denoising", on="prediction")])
        found: dict[int, Denoiser] = {}

        def keep(stage: Stage, model: nn.Module) -> None:
            made = cast(Denoiser, copy.deepcopy(model)).eval()
            if isinstance(method, Intervals):
                found.update((n, method.of_steps(made, n)) for n in arm.budgets)
                return
            for how in samplings(made.sampling, arm.budgets):
                found[how.nfe] = copy.copy(made)
                found[how.nfe].sampling = how

        with tempfile.TemporaryDirectory() as folder:
            seconds = 0.0
            if arm.first is not None:
                students, seconds = self.distil(Arm("progressive", arm.first, lr=1e-3), seed)
                params["start"] = Path(folder) / "start"
                adapter.save("student", students[1], params["start"])
            begun = process_time()
            method = kind(adapter, objective, train, Streams(seed), params=kind.Params(**params))
            method.check(roles)
            Engine(
                method, adapter.data("train"), roles, train, streams=Streams(seed), folder=Path(folder) / "training",
                finished=keep, accelerator=make_accelerator("cpu", "fp32"), quiet=True,
            ).fit()  # fmt: skip
        return found, seconds + process_time() - begun


def samplings(own: Sampling, budgets: Sequence[int]) -> list[Sampling]:
    """Its own, or those of `budgets` where one network serves any number."""
    if own.solver not in FEW_STEP:
        return [own]
    return [Sampling(own.solver, steps, own.original) for steps in budgets]


def teacher_cells(room: Room) -> list[dict[str, Any]]:
    """At its own steps, and by the solvers that users have at few evaluations."""
    hows = [Sampling("ddim", 64), *(Sampling("dpmpp_2m", n) for n in BUDGETS)]
    found = []
    for how in hows:
        model = copy.copy(room.teacher)
        model.sampling = how
        found.append({"method": f"teacher, {how.solver}", "seed": None, "nfe": how.nfe, **kept(room.measured(model))})
    return found


def kept(metrics: Mapping[str, Any]) -> dict[str, Any]:
    names = ("fd_clf", "kid_clf", "precision", "recall", "density", "coverage", "sliced_wasserstein", "nearest_train",
             "diversity", "drift")  # fmt: skip
    return {name: metrics[name] for name in names}


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """FD over the teacher's own at each number of evaluations, and recall and coverage at the least."""
    full = next(cell for cell in cells if cell["method"] == "teacher, ddim")
    head = [f"{n} evaluation{'s' * (n > 1)}" for n in BUDGETS]
    lines = [
        f"| sampler | {' | '.join(head)} | recall at the fewest | coverage | CPU seconds |", "| --- " * 7 + "|",
    ]  # fmt: skip
    for name in dict.fromkeys(cell["method"] for cell in cells):
        own = [cell for cell in cells if cell["method"] == name]
        ratios = [[cell["fd_clf"] / full["fd_clf"] for cell in own if cell["nfe"] == n] for n in BUDGETS]
        row = [shown(t_interval(r), 2) if len(r) > 1 else f"{r[0]:.2f}" if r else "" for r in ratios]
        least = [cell for cell in own if cell["nfe"] == min(c["nfe"] for c in own)]
        recall, coverage = (sum(cell[key] for cell in least) / len(least) for key in ("recall", "coverage"))
        seconds = [cell["cpu_seconds"] for cell in least if "cpu_seconds" in cell]
        took = f"{sum(seconds) / len(seconds):.0f}" if seconds else ""
        lines.append(f"| {name} | {' | '.join(row)} | {recall:.3f} | {coverage:.3f} | {took} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=HERE.parent / "assets" / "teachers" / "diffusion")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "few_step.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    room = Room(args.teacher, args.split)
    cells: list[dict[str, Any]] = json.loads(args.results.read_text())["cells"] if args.results.exists() else []
    if not cells:
        cells = teacher_cells(room)
    for seed in args.seeds:
        for name in args.arms:
            if any((cell["method"], cell["seed"]) == (name, seed) for cell in cells):
                continue
            arm = ARMS[name]
            students, seconds = room.distil(arm, seed)
            about = {
                "steps": arm.steps, "params": dict(arm.params), "lr": arm.lr, "optimizer": arm.optimizer,
                "betas": arm.betas, "ema": arm.ema, "first": arm.first, "cpu_seconds": round(seconds, 1),
            }  # fmt: skip
            for nfe in BUDGETS:
                if nfe in students:
                    cells.append(
                        {"method": name, "seed": seed, "nfe": nfe, **kept(room.measured(students[nfe]))} | about
                    )
                    print(json.dumps(cells[-1]), flush=True)
            content = {"split": args.split, "facts": room.judge.judge(args.split, torch.device("cpu")).facts()}
            args.results.write_text(json.dumps({**content, "cells": cells}, indent=1) + "\n")
    print(table(cells))


if __name__ == "__main__":
    main()
