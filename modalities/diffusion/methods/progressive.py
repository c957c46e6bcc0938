"""Progressive distillation: one step of the student does what two of its teacher's do, then it becomes the teacher.

Salimans and Ho (2022), algorithm 2. A stage halves the step count; its optimizer is fresh.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import METHODS, Context, Roles, Stage

from ..models.denoiser import Denoiser, Sampling
from ..models.process import Process
from ..models.solvers import ddim_step, joined_steps
from .few_step import STUDENT, FewStep, FewStepParams, denoisers

PREFIX = "steps-"


class ProgressiveParams(FewStepParams):
    end: int = Field(1, ge=1)
    """Steps of the last student: the teacher's ``data.sampling.steps``, halved as often as it takes."""
    last: float = Field(2.0, ge=1)
    """How much longer the last two stages are."""


@METHODS.register("progressive")
class Progressive(FewStep):
    """Progressive distillation: halve a sampler's steps, stage by stage (Salimans and Ho, 2022)."""

    Params: ClassVar[type[Strict]] = ProgressiveParams

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the grids of all stages, before anything is trained."""
        super().check(roles)
        for count in self.counts():
            check_grids(denoisers(roles)[0].process, count)

    def counts(self) -> list[int]:
        """Steps of each stage's student."""
        sampling = self.adapter.config.sampling  # type: ignore[attr-defined]
        if sampling.solver != "ddim":
            raise UserError(f"data.sampling.solver: progressive distillation is of ddim, not of {sampling.solver}")
        count, found = int(sampling.steps), []
        while count > self.params.end:
            if count % 2:
                break
            count //= 2
            found.append(count)
        if not found or found[-1] != self.params.end:
            raise UserError(
                f"method.params.end: {sampling.steps} steps (data.sampling.steps) cannot be halved to {self.params.end}"
            )
        return found

    def own_stages(self) -> Sequence[Stage]:
        counts = self.counts()
        return [
            Stage(
                f"{PREFIX}{count}",
                round(self.train.steps * (self.params.last if count in counts[-2:] else 1)),
                STUDENT,
                saves=frozenset({"teacher"}),
            )
            for count in counts
        ]

    def prepare(self, stage: Stage, roles: Roles) -> None:
        teacher, student = denoisers(roles)
        if stage.name != self.own_stages()[0].name:
            roles["teacher"] = copy.deepcopy(student).eval().requires_grad_(False)
        student.sampling = Sampling("ddim", steps_of(stage))
        check_grids(teacher.process, student.sampling.steps)

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        teacher, student = denoisers(roles)
        with ctx.timer.time("teacher"), torch.no_grad():
            z, t, target = progressive_target(teacher, batch, steps_of(ctx.stage))
        with ctx.timer.time("student"):
            x = student.predict_x(z, t, batch.get("labels"))
        return truncated_snr(student.process, t, x) * (x - target).flatten(1).square().mean(dim=1)


def steps_of(stage: Stage) -> int:
    return int(stage.name.removeprefix(PREFIX))


def check_grids(process: Process, steps: int, times: int = 2) -> None:
    """Raises `UserError` where a student's times are not among its teacher's, of which there are `times` as many, as
    T / steps rounded may have it."""
    if process.grid(steps) != process.grid(times * steps)[::times]:
        every = "every other one" if times == 2 else f"one of every {times}"
        raise UserError(f"{steps} steps of {process.T} timesteps are not {every} of {times * steps}: take a power of 2")


# docs/decisions/011-diffusion.md
def progressive_target(teacher: Denoiser, batch: Batch, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """z_t, t and the x that a student of `steps` steps must see in z_t to arrive where two DDIM steps lead."""
    process, x, labels = teacher.process, batch["x"], batch.get("labels")
    times = torch.tensor(process.grid(2 * steps)[::-1], device=x.device)  # rising: times[0] = -1 is the clean sample
    i = (batch["u"] * steps).long().clamp(max=steps - 1)
    t, middle, after = times[2 * i + 2], times[2 * i + 1], times[2 * i]
    z = process.add_noise(x, batch["noise"], t)
    x1 = teacher.predict_x(z, t, labels)
    x2 = teacher.predict_x(ddim_step(process, z, x1, t, middle), middle, labels)
    return z, t, joined_steps(process, x1, x2, t, middle, after)


def truncated_snr(process: Process, t: Tensor, like: Tensor) -> Tensor:
    """max(1, SNR): with it the squared error of x is the larger one of x's and eps's (the paper's eq. 9)."""
    return process.log_snr(t).exp().clamp(min=1).to(like)
