"""Teacher and students over the whole curve of step counts, and what they make of the same noise."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from xmodal_kd.adapter.adapter import Evaluation, Overview
from xmodal_kd.runtime.progress import console

from ..data.config import DiffusionData, Extent
from ..evaluate.judge import Judge
from ..export.pipeline import load_denoiser
from ..methods.progressive import PREFIX
from ..models.denoiser import FEW_STEP, Denoiser, Sampling
from ..models.solvers import SOLVERS, most_steps
from .curves import draw_curve
from .pictures import contact_sheet

#: Samples of the same noise shown of each.
SHOWN = 16
#: Beyond so many evaluations the better solvers no longer differ from the teacher's own.
MOST_NFE = 16
#: What a recipe's `data.curve` spares, as the report says it.
LEFT_OUT = {
    "students": "the teacher by other solvers and in fewer steps (data.curve: students)",
    "ends": "all but the teacher and the last student, each as it is sampled (data.curve: ends)",
}


class Judged(Protocol):
    """What draws samples of a denoiser and scores them: the adapter."""

    config: DiffusionData

    @property
    def metric(self) -> tuple[str, bool]: ...

    def judge(self, split: str, device: torch.device) -> Judge: ...

    def measure(self, model: Denoiser, split: str, against: Sequence[Tensor] = ()) -> Evaluation: ...

    def sample(self, model: Denoiser, draw: int = 0, count: int | None = None) -> Tensor: ...


def overview(adapter: Judged, models: Mapping[str, Denoiser], folder: Path) -> Overview:
    """All points of the curve on test, each with its paired error against the teacher at its full step count."""
    teacher, extent = models.get("teacher"), adapter.config.curve
    curve: list[dict[str, Any]] = []
    rows: list[tuple[str, Tensor]] = []
    full: list[Tensor] = []
    if teacher is not None:
        full = [adapter.sample(teacher, draw) for draw in range(adapter.config.draws)]
    for role, model in points(models, folder, extent):
        how = model.sampling
        console.print(f"curve  {role} {how.solver} {model.nfe} evaluations", highlight=False)
        found = adapter.measure(model, "test", full).metrics
        curve.append({"role": role, "solver": how.solver, "nfe": model.nfe, "metrics": found})
        rows.append((f"{role}, {how.solver}, {model.nfe}", adapter.sample(model, 0, SHOWN).cpu()))
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    judge = adapter.judge("test", next(models["student"].parameters()).device)
    heat = adapter.config.sources == "arrays"
    contact_sheet(pictures / "same_noise.png", rows, "The same noise through every sampler", heat=heat)
    floor = judge.facts()["floor"][adapter.metric[0]]
    draw_curve(pictures / "curve.png", curve, adapter.metric[0], floor=floor)
    left_out = {} if extent == "all" else {"left out of the curve": LEFT_OUT[extent]}
    return Overview(curve, {**judge.facts(), **left_out}, {
        "Quality against network evaluations": pictures / "curve.png",
        "The same noise through every sampler": pictures / "same_noise.png",
    })  # fmt: skip


def points(models: Mapping[str, Denoiser], folder: Path, extent: Extent = "all") -> Iterator[tuple[str, Denoiser]]:
    """Teacher by every solver at every power of two up to its own steps, then the students, as far as `extent` says."""
    teacher, student = models.get("teacher"), models["student"]
    device = next(student.parameters()).device
    if teacher is not None:
        yield "teacher", teacher
    if extent == "ends":
        yield "student", student
        return
    if teacher is not None and extent == "all":
        for solver in SOLVERS:
            for nfe in _powers(teacher.nfe if solver == teacher.sampling.solver else min(MOST_NFE, teacher.nfe)):
                how = Sampling(solver, most_steps(solver, max(1, nfe // teacher.cost)))
                if how != teacher.sampling and (solver == "ddim" or nfe > 1):  # with one step all solvers are DDIM
                    yield "teacher", sampled(teacher, how)
    if (own := student.sampling).solver in FEW_STEP:
        for steps in _powers(min(8, own.original)):
            yield "student", sampled(student, Sampling(own.solver, steps, own.original))
        return
    stages = sorted((folder / "student").glob(f"{PREFIX}*"), key=lambda path: -int(path.name.removeprefix(PREFIX)))
    for path in stages:
        yield "student", load_denoiser(path, quiet=True).to(device).eval()
    if not stages:
        yield "student", student


def sampled(model: Denoiser, how: Sampling) -> Denoiser:
    """The same network, sampled in another way."""
    other = copy.copy(model)
    other.sampling = how
    return other


def _powers(most: int) -> Sequence[int]:
    return [2**i for i in range(most.bit_length()) if 2**i <= most]
