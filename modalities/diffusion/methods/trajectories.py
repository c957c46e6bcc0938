"""Phased and trajectory consistency: neighbours on the teacher's path lead to one point farther down it.

A jump f(z, t -> s) goes from z at t to s in one DDIM step, with the x that the network sees in z. Where consistency
models jump to the clean sample alone, the jumps of PCM end at the next of a few edges, and those of TCD anywhere
below. A jump is linear in x: so what is compared is the x that the student sees and the one it would have to see to
arrive where the two jumps lead that its teacher and then its target make.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import METHODS, Context, Ema, Roles, Stage

from ..models.denoiser import TCD, Denoiser, Sampling
from ..models.process import Process, expand
from ..models.solvers import ddim_step, joined_steps
from .consistency import mean_distance
from .few_step import MOST_TIMES, STUDENT, Multistep, MultistepParams, denoisers

STAGE = "trajectory"


class TrajectoryParams(MultistepParams):
    steps: int = Field(4, ge=1)
    decay: float = Field(0.95, ge=0, lt=1)
    """Of the target, an average of the student's weights."""
    compare: Literal["sample", "network"] = "sample"
    """In what both sides are compared: the points that they arrive at, as the papers have it, which differ the less the
    nearer the end is, or what a network says that arrives there, in which every end counts as much."""
    distance: Literal["l2", "huber"] = "l2"
    """A mean over values of d^2, or of sqrt(d^2 + c^2) - c."""
    c: float = Field(1e-3, gt=0)
    """Of ``huber``."""


class Trajectory(Multistep):
    """Base of both: one step of the teacher, and a jump of the target from where it leads."""

    Params: ClassVar[type[Strict]] = TrajectoryParams

    def own_stages(self) -> Sequence[Stage]:
        return [Stage(STAGE, self.train.steps, STUDENT, ema={"target": Ema("student", self.params.decay)})]

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        (teacher, student), labels = denoisers(roles), batch.get("labels")
        target, process = roles["target"], student.process
        assert isinstance(target, Denoiser)
        with ctx.timer.time("teacher"), torch.no_grad():
            t, after, end = self.times(process, batch["u"], ctx)
            z = process.add_noise(batch["x"], batch["noise"], t)
            first = teacher.predict_x(z, t, labels)
            second = target.predict_x(ddim_step(process, z, first, t, after), after.clamp(min=0), labels)
        with ctx.timer.time("student"):
            said = student.predict_x(z, t, labels)
        p = self.params
        return trajectory_loss(process, said, first, second, (t, after, end), p.compare, p.distance, p.c)

    def times(self, process: Process, u: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """A time of the grid, the next one down, and where the jumps end ``(b,)`` each; -1 is the clean sample."""
        steps = self.grid(process)
        times = torch.tensor(process.grid(steps)[::-1], device=u.device)
        i = (u * steps).long().clamp(max=steps - 1)
        return times[i + 1], times[i], times[self.ends(i, steps, ctx)]

    @abstractmethod
    def ends(self, i: Tensor, steps: int, ctx: Context) -> Tensor:
        """Indices ``(b,)`` of the rising grid, at most i, which is that of the lower neighbour."""


@METHODS.register("pcm")
class Pcm(Trajectory):
    """Phased consistency (PCM: Wang et al., 2024): consistency within each step of a deterministic sampler."""

    def grid(self, process: Process) -> int:
        """The recipe's, or the most times up to 64 that every phase has as many of."""
        whole = [n for n in range(1, MOST_TIMES + 1) if process.T % n == 0 and n % self.params.steps == 0]
        grid = int(self.params.grid or 0) or max(whole, default=0)
        if not grid or grid % self.params.steps:
            told = f"method.params.grid: {grid} times" if grid else f"a grid that divides {process.T} timesteps"
            raise UserError(
                f"method.params.steps: {self.params.steps} phases are not equally long on {told}: take a number of "
                "steps that divides both"
            )
        return grid

    def sampling(self, process: Process) -> Sampling:
        return Sampling("ddim", self.params.steps)

    def ends(self, i: Tensor, steps: int, ctx: Context) -> Tensor:
        """The lower edge of each phase."""
        phase = steps // int(self.params.steps)
        return i // phase * phase


class TcdParams(TrajectoryParams):
    sampler: Literal["tcd", "ddim"] = "tcd"
    """TCD's own with gamma = 0.3, diffusers' TCDScheduler, or with gamma = 0, which is DDIM. There is no TCDScheduler
    of EDM and flow matching, whose students take DDIM in any case."""
    segments: tuple[int, ...] = (1,)
    """Parts of the way that jumps do not leave, a stage each: [8, 4, 2, 1] as Hyper-SD has it (Ren et al., 2024).
    Each must divide the grid."""

    @field_validator("segments")
    @classmethod
    def _some(cls, segments: tuple[int, ...]) -> tuple[int, ...]:
        if not segments or min(segments) < 1 or list(segments) != sorted(set(segments), reverse=True):
            raise ValueError(f"{list(segments)}: falling numbers from 1 on are expected, as [8, 4, 2, 1]")
        return segments


@METHODS.register("tcd")
class Tcd(Trajectory):
    """Trajectory consistency (TCD: Zheng et al., 2024): jumps to any lower time, noise again for each further step."""

    Params: ClassVar[type[Strict]] = TcdParams

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the segments."""
        super().check(roles)
        grid = self.grid(denoisers(roles)[0].process)
        for segments in self.params.segments:
            if grid % segments:
                raise UserError(f"method.params.segments: {segments} does not divide the grid of {grid} times")

    def own_stages(self) -> Sequence[Stage]:
        (stage,), segments = super().own_stages(), self.params.segments
        return [replace(stage, name=f"{STAGE}-{n}") for n in segments]

    def sampling(self, process: Process) -> Sampling:
        if process.kind == "vp" and self.params.sampler == TCD:
            return Sampling(TCD, self.params.steps, self.grid(process))
        return Sampling("ddim", self.params.steps)

    def ends(self, i: Tensor, steps: int, ctx: Context) -> Tensor:
        """Any of the segment, each as often: the paper's m."""
        each = steps // int(ctx.stage.name.rpartition("-")[2])
        first = i // each * each
        draws = torch.rand(len(i), generator=ctx.generator("end"), dtype=torch.float64).to(i.device)
        return torch.minimum(first + (draws * (i - first + 1)).long(), i)


def trajectory_loss(
    process: Process, said: Tensor, first: Tensor, second: Tensor, times: tuple[Tensor, Tensor, Tensor],
    compare: str = "sample", distance: str = "l2", c: float = 1e-3,
) -> Tensor:  # fmt: skip
    """``(b,)`` distances of f(z, t -> s) from f(z', t' -> s), z' = f(z, t -> t') being the teacher's.

    That is PCM's phased consistency distillation with s the edge at or below t' (Wang et al., 2024, its L_PCM, section
    3.1), TCD's trajectory consistency distillation with any s up to t' (Zheng et al., 2024, its L_TCD, algorithm 1),
    and consistency distillation with s the clean sample. In ``sample`` both points are compared as they are, which
    differ by alpha_s - sigma_s alpha_t / sigma_t times what their x differ by; in ``network`` this factor is that of
    what a network says of z by what it says of x.

    Args:
        said: the student's x in z ``(b, ...)``.
        first: the teacher's x in z.
        second: the target's x in z', which counts for nothing where t' is the clean sample.
        times: t, t' and s ``(b,)``, falling.
    """
    t, after, end = times
    off = said - joined_steps(process, first, second, t, after, end)
    alpha, sigma = process.alpha(t), process.sigma(t)
    if compare == "network":
        on_x, on_noise = process.weights(process.natural, alpha, sigma)
        size = on_x - on_noise * alpha / sigma
    else:
        size = process.alpha(end) - process.sigma(end) * alpha / sigma
    return mean_distance(expand(size, off) * off, distance, c)


__all__ = ["Pcm", "Tcd", "TcdParams", "Trajectory", "TrajectoryParams", "trajectory_loss"]
