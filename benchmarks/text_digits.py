"""Text to image, small and real: a prompted latent model of digits, guided, distilled to 4, 2 and 1 evaluations.

    python benchmarks/text_digits.py [--only-teacher] [--arms lcm "lcm, LoRA" ...]

The teacher is trained by ``text_digits_teacher.py`` with diffusers and transformers alone, on the training split, and
is sampled by DDIM in 25 steps at a guidance of 2: 50 evaluations. Students are judged as it is: 1,000 samples from the
same noise, prompted by the captions of the dev images; FD in a classifier's features against the test images, and the
share of samples in which that classifier sees the digit that the prompt names. Students are what their last step left.
Cells that the results hold already are not made again. Writes ``benchmarks/results/text_digits.json`` and prints a
table.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple, cast

import torch
from cells import shown, t_interval
from text_digits_teacher import PLAIN, STEPS, train, write_images
from torch import nn

from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.data.source import load_split
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Term, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.device import make_accelerator
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.method import METHODS, Stage

HERE = Path(__file__).parent
NOISE_SEED, BATCH, GUIDANCE, TEACHER_STEPS = 1, 64, 2.0, 25
BUDGETS = (4, 2, 1)


class Arm(NamedTuple):
    """A method as it is measured here.

    Attributes:
        params: ``method.params``.
        student: ``student.params``.
        lr: of Adam, falling to 0.
        steps: of the training, as a share of ``--steps``.
        budgets: evaluations that its student is measured at.
        start: the arm whose student this one starts as, of the same seed.
    """

    method: str
    params: Mapping[str, Any]
    student: Mapping[str, Any] = {}
    lr: float = 5e-4
    steps: float = 1.0
    budgets: tuple[int, ...] = BUDGETS
    start: str | None = None


GAN = {"gan": 0.1, "gan_critic": 0.1, "critic": 1}
ARMS: dict[str, Arm] = {
    "lcm": Arm("lcm", {"steps": 4}),
    "lcm, grid of 8": Arm("lcm", {"steps": 4, "grid": 8}),
    "lcm, told the scale": Arm("lcm", {"steps": 4, "guidance": (1.0, 4.0)}, {"guidance": 32}),
    "lcm, LoRA": Arm("lcm", {"steps": 4}, {"lora": 16}, lr=2e-3),
    "lcm, LoRA, then dmd2": Arm("dmd2", {"steps": 4, **GAN}, lr=2e-4, steps=0.2, budgets=(4,), start="lcm, LoRA"),
    # one step needs x where the noise is alone, which cannot be told from epsilon: v is learnt first
    "dmd2, 1 step": Arm(
        "dmd2", {"steps": 1, "features": 200, **GAN}, {"prediction": "v_prediction"}, lr=4e-4, steps=0.25, budgets=(1,)
    ),
    # pairs of noise and the guided teacher's sample keep what distribution matching alone leaves out
    "dmd2 with pairs, 1 step": Arm(
        "dmd2",
        {"steps": 1, "features": 400, "regression": 1.0, **GAN},
        {"prediction": "v_prediction"},
        lr=4e-4,
        steps=1.5,
        budgets=(1,),
    ),
}
KEPT = ("fd_clf", "label_agreement", "kid_clf", "precision", "recall", "coverage", "sliced_wasserstein")


class Room:
    """The data, the teacher and the judge that all cells share."""

    def __init__(self, folder: Path, network: Mapping[str, Any] = PLAIN) -> None:
        images = folder / "images"
        if not (images / "metadata.jsonl").exists():
            write_images(images)
        self.data = DiffusionData.model_validate(
            {"sources": "folder", "path": images, "captions": True, "dev": 297, "test": 500, "samples": 1000,
             "draws": 1, "cache": folder / "encoded",
             "sampling": {"solver": "ddim", "steps": TEACHER_STEPS, "guidance": GUIDANCE}}
        )  # fmt: skip
        if not (folder / "teacher" / "model_index.json").exists():
            train(images, folder / "teacher", keep=load_split(self.data, "train").keys, network=network)
        self.path, self.judge = folder / "teacher", self.adapter(NOISE_SEED)
        self.teacher = cast(Denoiser, self.judge.load("teacher", self.path)).eval()
        self.made: dict[tuple[str, int], tuple[Denoiser, float]] = {}

    def adapter(self, seed: int) -> DiffusionAdapter:
        return DiffusionAdapter(self.data, Streams(seed), BATCH)

    def measured(self, model: Denoiser) -> dict[str, Any]:
        found = self.judge.measure(model, "test").metrics
        return {name: found[name] for name in KEPT}

    def reconstructed(self) -> dict[str, Any]:
        """Of real training images through the autoencoder: what no student or teacher can be better than."""
        latents = torch.from_numpy(self.judge.encoded("train").latents[0][: self.data.samples].copy())
        labels = torch.from_numpy(load_split(self.data, "train").labels[: len(latents)])  # type: ignore[index]
        images = self.judge.finished(latents)
        found = self.judge.judge("test", torch.device("cpu")).measure(images, labels)
        return {name: found[name] for name in KEPT}

    def distil(self, name: str, steps: int, seed: int) -> tuple[Denoiser, float]:
        """The student, and the CPU seconds of its training."""
        arm, adapter, params, before = ARMS[name], self.adapter(seed), dict(ARMS[name].params), 0.0
        if arm.start is not None:
            first, before = self.made.get((arm.start, seed)) or self.distil(arm.start, steps, seed)
            params["start"] = self.path.parent / "starts" / f"{arm.start}-{seed}"
            self.judge.save("student", first, params["start"])
        adapter.method = arm.method
        roles: dict[str, nn.Module] = {"teacher": copy.deepcopy(self.teacher)}
        adapter.teacher = cast(Denoiser, roles["teacher"])
        roles["student"] = adapter.build("student", "like_teacher", dict(arm.student))
        student, seconds = fitted(
            adapter, roles, arm.method, params, [Term(loss="denoising", on="prediction")],
            steps=round(steps * arm.steps), lr=arm.lr, seed=seed,
        )  # fmt: skip
        self.made[name, seed] = student, seconds  # another arm may start as it
        return student, before + seconds


def fitted(
    adapter: DiffusionAdapter, roles: dict[str, nn.Module], method: str, params: Mapping[str, Any],
    terms: Sequence[Term], *, steps: int, lr: float, seed: int,
) -> tuple[Denoiser, float]:  # fmt: skip
    """The student of the last stage, and the CPU seconds of the training."""
    kind = METHODS[method]
    setting = Train(
        steps=steps, batch_size=BATCH, optimizer=Optimizer(name="adam", lr=lr), ema=0.99,
        schedule=Schedule(kind="linear"), checkpoint_every=1_000_000,
    )  # fmt: skip
    found: list[Denoiser] = []
    begun = process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = kind(adapter, Objective(terms), setting, Streams(seed), params=kind.Params(**params))
        made.check(roles)

        def keep(stage: Stage, model: nn.Module) -> None:
            found.append(cast(Denoiser, copy.deepcopy(model)).eval())

        Engine(
            made, adapter.data("train"), roles, setting, streams=Streams(seed), folder=Path(folder) / "training",
            finished=keep, accelerator=make_accelerator("cpu", "fp32"), quiet=True,
        ).fit()  # fmt: skip
    return found[-1], process_time() - begun


def sampled(model: Denoiser, how: Sampling, guidance: float | None = None) -> Denoiser:
    other = copy.copy(model)
    other.sampling, other.guidance = how, model.guidance if guidance is None else guidance
    return other


def teacher_cells(room: Room) -> list[dict[str, Any]]:
    """Guided and not, at its own steps and in few of them by the solver that users have there."""
    dpm, few = "teacher, dpmpp_2m", [Sampling("dpmpp_2m", steps) for steps in BUDGETS]
    ways = [("teacher", TEACHER_STEPS, GUIDANCE, Sampling("ddim", TEACHER_STEPS))]
    ways += [("teacher, unguided", TEACHER_STEPS, 1.0, ways[0][3]), *((dpm, s.steps, GUIDANCE, s) for s in few)]
    found = []
    for name, steps, scale, how in ways:
        model = sampled(room.teacher, how, scale)
        found.append({"method": name, "seed": None, "steps": steps, "nfe": model.nfe, **room.measured(model)})
        print(json.dumps(found[-1]), flush=True)
    return [*found, {"method": "autoencoder alone", "seed": None, "steps": 0, "nfe": 0, **room.reconstructed()}]


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| sampler | steps | evaluations | FD | label agreement |", "| --- | --- | --- | --- | --- |"]
    for name, steps in dict.fromkeys((cell["method"], cell["steps"]) for cell in cells):
        own = [cell for cell in cells if (cell["method"], cell["steps"]) == (name, steps)]
        told = []
        for key, digits in (("fd_clf", 2), ("label_agreement", 3)):
            values = [cell[key] for cell in own]
            told.append(shown(t_interval(values), digits) if len(values) > 1 else f"{values[0]:.{digits}f}")
        lines.append(f"| {name} | {steps} | {own[0]['nfe']} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/text_digits"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "text_digits.json")
    parser.add_argument("--only-teacher", action="store_true", help="make images and teacher, and stop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    room = Room(args.folder)
    if args.only_teacher:
        return
    cells: list[dict[str, Any]] = json.loads(args.results.read_text())["cells"] if args.results.exists() else []
    facts = {**room.judge.judge("test", torch.device("cpu")).facts(), "guidance": GUIDANCE, "teacher_steps": STEPS}

    def write() -> None:
        args.results.write_text(json.dumps({"facts": facts, "cells": cells}, indent=1) + "\n")

    if not cells:
        cells += teacher_cells(room)
        write()
    for name in args.arms:
        for seed in args.seeds:
            if any((cell["method"], cell["seed"]) == (name, seed) for cell in cells):
                continue
            student, seconds = room.distil(name, args.steps, seed)
            arm = ARMS[name]
            about = {
                "trained": round(args.steps * arm.steps), "params": dict(arm.params), "student": dict(arm.student),
                "lr": arm.lr, "start": arm.start, "cpu_seconds": round(seconds, 1),
            }  # fmt: skip
            for steps in arm.budgets:
                model = sampled(student, Sampling("lcm", steps, student.sampling.original))
                cells.append(
                    {"method": name, "seed": seed, "steps": steps, "nfe": steps, **room.measured(model), **about}
                )
                print(json.dumps(cells[-1]), flush=True)
            write()
    print(table(cells))


if __name__ == "__main__":
    main()
