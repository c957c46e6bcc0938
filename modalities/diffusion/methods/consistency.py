"""Consistency models on a variance-preserving process: by distillation, or from data alone.

The consistency function and its sampler are those that diffusers' LCMScheduler applies (see `Denoiser.consistency`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.training.method import METHODS, Context, Ema, Roles, Stage

from ..data.condition import Condition
from ..models.denoiser import Denoiser, consistency_grid
from ..models.process import Process, expand
from ..models.solvers import ddim_step, heun_step
from .few_step import STUDENT, Multistep, MultistepParams, denoisers

STAGE = "consistency"


class ConsistencyParams(MultistepParams):
    """The model is made consistent on the times of the grid, and can be sampled in any number of steps up to it."""

    distance: Literal["l2", "huber"] = "huber"
    """Squared error, or pseudo-Huber with c = 0.00054 sqrt(dimensions) (Song and Dhariwal, 2023)."""


class DistillationParams(ConsistencyParams):
    decay: float = Field(0.95, ge=0, lt=1)
    """Of the target, an average of the student's weights."""
    solver: Literal["ddim", "heun"] = "ddim"
    """By which the teacher goes one step down."""
    compare: Literal["sample", "network"] | None = None
    """In what both sides are compared: the samples that they see, or what a network says whose process sees these.

    Unless said, ``network`` on EDM. There a network says sigma times less of x the lower the noise is: compared in x,
    the levels near the data, which hold all others to the truth, count for next to nothing, and a mistake that all
    levels share grows without end. Elsewhere ``sample``, as Song et al. (2023) have it.
    """


class EasyParams(ConsistencyParams):
    q: float = Field(2.0, gt=1)
    """How far apart t and r are: r / t starts at about 1 - 1/q and moves towards 1 as q^-(stage + 1).

    Where q^-doublings falls far below 1/256 the loss divides rounding errors by nearly nothing.
    """
    doublings: int = Field(8, ge=1)
    """Stages, of equal length."""
    mean: float = -1.1
    std: float = Field(2.0, gt=0)
    """Of log(sigma / alpha), which is drawn normal."""


class ImprovedParams(ConsistencyParams):
    first: int = Field(10, ge=2)
    """Noise levels at the start; they double in stages of equal length."""
    last: int = Field(1280, ge=2)
    """The most there may be; see `EasyParams.q` for when neighbours are too near."""
    mean: float = -1.1
    std: float = Field(2.0, gt=0)
    """Of log(sigma / alpha), of whose normal distribution each level has its part."""
    rho: float = Field(7.0, gt=0)
    """Levels are equally far apart in the rho-th root of sigma / alpha."""
    highest: float = Field(80.0, gt=0)
    """sigma / alpha of the highest level, where the process goes as far."""


class _Consistency(Multistep):
    def own_stages(self) -> Sequence[Stage]:
        return [Stage(STAGE, self.train.steps, STUDENT)]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """``(b,)`` distances of samples ``(b, ...)``."""
        squares = (a - b).flatten(1).square()
        return squares.mean(dim=1) if self.params.distance == "l2" else pseudo_huber(squares)


@METHODS.register("consistency")
class Consistency(_Consistency):
    """Consistency distillation: neighbours on the teacher's path map to one sample (Song et al., 2023, algorithm 2)."""

    Params: ClassVar[type[Strict]] = DistillationParams

    def own_stages(self) -> Sequence[Stage]:
        return [Stage(STAGE, self.train.steps, STUDENT, ema={"target": Ema("student", self.params.decay)})]

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        (teacher, student), labels = denoisers(roles), batch.get("labels")
        target = roles["target"]
        assert isinstance(target, Denoiser)
        with ctx.timer.time("teacher"), torch.no_grad():
            z, t, z_after, after = neighbours(teacher, batch, self.grid(teacher.process), self.params.solver)
            aim = target.consistency(z_after, after, labels)
        with ctx.timer.time("student"):
            said = student.consistency(z, t, labels)
        if (self.params.compare or ("network" if student.process.kind == "edm" else "sample")) == "network":
            said, aim = (in_network(student.process, seen, z, t) for seen in (said, aim))
        return self.distance(said, aim)


@METHODS.register("ect")
class Ect(_Consistency):
    """Easy consistency tuning: consistency from data alone, started as the teacher (Geng et al., 2024)."""

    Params: ClassVar[type[Strict]] = EasyParams

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        (_, student), labels, process = denoisers(roles), batch.get("labels"), denoisers(roles)[1].process
        s, r = self.levels(process, batch["u"], ctx)
        z, t = at_level(process, batch, s)
        z_after, after = at_level(process, batch, r)
        dropout = ("dropout of both", ctx.stage.name, ctx.step, ctx.micro)  # both sides drop the same units
        with ctx.timer.time("teacher"), torch.no_grad(), ctx.streams.forked(*dropout):
            aim = student.consistency(z_after, after, labels)
        with ctx.timer.time("student"):
            ctx.streams.seed_torch(*dropout)
            said = student.consistency(z, t, labels)
        return self.distance(said, aim) / (s - r).to(said)

    def levels(self, process: Process, u: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """sigma / alpha of both sides, ``(b,)`` each in float64; 0 is the clean sample."""
        s = (self.params.mean + self.params.std * torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))).exp()
        top = process.sigma(process.T - 1) / process.alpha(process.T - 1)
        s = s.clamp(max=float(top))
        stage = min(self.params.doublings - 1, ctx.step * self.params.doublings // ctx.stage.steps)
        share = 1 - self.params.q ** -(stage + 1) * (1 + 8 * torch.sigmoid(-s))
        return s, (s * share).clamp(min=0)


@METHODS.register("ict")
class Ict(_Consistency):
    """Improved consistency training: from data alone, on levels whose number doubles (Song and Dhariwal, 2024)."""

    Params: ClassVar[type[Strict]] = ImprovedParams

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        (_, student), labels, process = denoisers(roles), batch.get("labels"), denoisers(roles)[1].process
        s, r = self.levels(process, batch["u"], self.count(ctx))
        z, t = at_level(process, batch, s)
        z_after, after = at_level(process, batch, r)
        dropout = ("dropout of both", ctx.stage.name, ctx.step, ctx.micro)
        with ctx.timer.time("teacher"), torch.no_grad(), ctx.streams.forked(*dropout):
            aim = student.consistency(z_after, after, labels)
        with ctx.timer.time("student"):
            ctx.streams.seed_torch(*dropout)
            said = student.consistency(z, t, labels)
        return self.distance(said, aim) / (s - r).to(said)

    def count(self, ctx: Context) -> int:
        """N of the step: min(first 2^floor(k / K'), last) + 1, with K' = floor(K / (log2 floor(last / first) + 1))."""
        first, last = self.params.first, self.params.last
        each = max(1, math.floor(ctx.stage.steps / (math.log2(max(1, last // first)) + 1)))
        return int(min(first * 2 ** (ctx.step // each), max(first, last))) + 1

    def levels(self, process: Process, u: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """sigma / alpha of both sides, neighbours among `count` levels: ``(b,)`` each in float64.

        The lowest is the first timestep's, at which the clean sample itself is the answer, so it is taken as 0.
        """
        p, ends = self.params, torch.tensor([0, process.T - 1])
        low, high = (process.sigma(ends) / process.alpha(ends)).clamp(max=p.highest) ** (1 / p.rho)
        levels = torch.lerp(low, high, torch.arange(count, dtype=torch.float64) / (count - 1)) ** p.rho
        below = torch.special.ndtr((levels.log() - p.mean) / p.std)
        shares = (below[1:] - below[:-1]).cumsum(0)
        levels[0] = 0.0
        i = torch.searchsorted(shares / shares[-1], u.double().cpu()).clamp(max=count - 2).to(u.device)
        return levels.to(u.device)[i + 1], levels.to(u.device)[i]


def in_network(process: Process, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """What a network says, in its process's own prediction, whose process sees x ``(b, ...)`` in z at t."""
    return process.convert(x, z, t, "sample", process.natural)


def neighbours(
    teacher: Denoiser, batch: Batch, steps: int, solver: str, guidance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A noisy sample z at a time t of the grid, and where the teacher's path goes from it in one step of the grid.

    `guidance` are scales ``(b,)`` in place of the teacher's own.
    """
    process, x, labels = teacher.process, batch["x"], batch.get("labels")
    times = torch.tensor(consistency_grid(process, steps)[::-1], device=x.device)
    i = (batch["u"] * steps).long().clamp(max=steps - 1)
    t, after = times[i + 1], times[i]
    z = process.add_noise(x, batch["noise"], t)
    return z, t, moved_on(teacher, z, t, after, labels, solver, guidance), after


def moved_on(
    teacher: Denoiser, z: Tensor, t: Tensor, after: Tensor, labels: Condition | None, solver: str,
    guidance: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Where the teacher's path goes from z ``(b, ...)`` at t ``(b,)`` in one step of `solver` to `after`."""
    process = teacher.process
    seen = teacher.predict_x(z, t, labels, guidance)
    euler = ddim_step(process, z, seen, t, after)
    if solver == "ddim":
        return euler
    corrected = teacher.predict_x(euler, after.clamp(min=0), labels, guidance)
    moved = heun_step(process, z, seen, euler, corrected, t, after.clamp(min=0))
    ends = (after < 0) | (t == process.T - 1)  # as in `solvers.solve`
    return torch.where(expand(ends, z).bool(), euler, moved)


def at_level(process: Process, batch: Batch, s: Tensor) -> tuple[Tensor, Tensor]:
    """The batch's samples with its noise at sigma / alpha = s, and their times; -1 where s is 0."""
    t = process.time_of(s)
    return process.add_noise(batch["x"], batch["noise"], t), t


def mean_distance(off: Tensor, kind: str, c: float) -> Tensor:
    """``(b,)`` means over the values of d^2 (``l2``) or of sqrt(d^2 + c^2) - c (``huber``), d being `off` ``(b, ...)``.

    The second is that of LCM's release and of PCM's (Wang et al., 2024).
    """
    squares = off.flatten(1).square()
    return squares.mean(dim=1) if kind == "l2" else ((squares + c**2).sqrt() - c).mean(dim=1)


def pseudo_huber(squares: Tensor) -> Tensor:
    """sqrt(sum of squares + c^2) - c of ``(b, d)``, c = 0.00054 sqrt(d)."""
    c = 0.00054 * math.sqrt(squares.shape[1])
    return (squares.sum(dim=1) + c**2).sqrt() - c
