"""MeanFlow and shortcut models: the mean velocity between two times, by its derivative or by halves of the way.

Both in the time s of straight paths (see `intervals`), of whatever process, and both of a teacher: where their papers
have the velocity eps - x of a sample, they have the one that the teacher sees, of which that is a noisy estimate.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import METHODS, Context, Roles

from ..models.denoiser import Denoiser
from ..models.process import Process, expand
from .few_step import denoisers
from .intervals import IntervalParams, Intervals, level, mean_velocity, straight, time_at

#: Of what all passes of a step share: the units that they drop.
DROPOUT = "dropout of all"


class MeanFlowParams(IntervalParams):
    derivative: Literal["difference", "jvp"] = "difference"
    """Of the mean velocity along the path: by differences, for which any network will do, or exact (torch.func.jvp).

    The exact one is no guide where a network sees timesteps: that of its embedding's fastest wave is hundreds over s.
    """
    difference: float = Field(0.1, gt=0, lt=0.5)
    """How far in s a difference reaches to either side, cut off where the interval and the process end."""
    times: Literal["uniform", "lognormal"] = "uniform"
    """How s is drawn, twice for each sample: the later one is t, the other r. The paper has logit(s) normal."""
    mean: float = -0.4
    std: float = Field(1.0, gt=0)
    """Of logit(s)."""
    instant: float = Field(0.25, ge=0, le=1)
    """Share of the samples whose r is t: they learn the velocity itself."""
    own: float = Field(0.3, ge=0, le=1)
    """Share of the samples whose t and r are those of a step of the student's sampler."""
    power: float = Field(0.5, ge=0)
    """p of the weight 1 / (squared error + c)^p of a sample; 0: none."""
    constant: float = Field(0.01, gt=0)
    """c of the weight."""


@METHODS.register("meanflow")
class MeanFlow(Intervals):
    """MeanFlow (Geng et al., 2025) of a teacher: u is v less the interval times its own derivative along the path."""

    Params: ClassVar[type[Strict]] = MeanFlowParams

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        (teacher, student), labels = denoisers(roles), batch.get("labels")
        t, r = self.times(student.process, batch["u"], ctx)
        y = straight(student.process, batch, t)
        with ctx.timer.time("teacher"), torch.no_grad():
            v = mean_velocity(teacher, y, t, labels)
        with ctx.timer.time("student"):
            aim = self.aim(student, y, v, t, r, labels, ctx)
            ctx.streams.seed_torch(DROPOUT, ctx.stage.name, ctx.step, ctx.micro)
            errors = (self.said(student, y, t, r, labels) - aim).flatten(1).square().mean(dim=1)
        weighted: Tensor = errors / (errors.detach() + self.params.constant) ** self.params.power
        return weighted

    def times(self, process: Process, u: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """t and r ``(b,)``, real times in float64; r is at most t."""
        p, last = self.params, process.T - 1
        draws = torch.rand(3, len(u), generator=ctx.generator("times"), dtype=torch.float64).to(u.device)
        s = torch.stack([u.double(), draws[0]]).clamp(1e-6, 1 - 1e-6)
        if p.times == "lognormal":
            s = (p.mean + p.std * torch.special.ndtri(s)).sigmoid()
        s = s.clamp(max=float(level(process, torch.tensor(last))))
        t = time_at(process, s.amax(dim=0)).clamp(0, last)
        r = torch.where(draws[1] < p.instant, t, torch.minimum(time_at(process, s.amin(dim=0)), t))
        length, own = process.T / p.steps, draws[2] < p.own
        step = last - (u.double() * p.steps).floor().clamp(max=p.steps - 1) * length
        return torch.where(own, step, t), torch.where(own, step - length, r)

    @torch.no_grad()
    def aim(
        self, student: Denoiser, y: Tensor, v: Tensor, t: Tensor, r: Tensor, labels: Tensor | None, ctx: Context
    ) -> Tensor:
        """v - (s - s_r) du/ds (the paper's eq. 10), of the student as it is."""
        slope = self.exact if self.params.derivative == "jvp" else self.differences
        length = level(student.process, t) - level(student.process, r)
        return v - expand(length, y) * slope(student, y, v, t, r, labels, ctx)

    def exact(
        self, student: Denoiser, y: Tensor, v: Tensor, t: Tensor, r: Tensor, labels: Tensor | None, ctx: Context
    ) -> Tensor:
        """du/ds along (v, 1, 0) of (y, s, r) by forward differentiation."""

        def u(point: Tensor, time: Tensor) -> Tensor:
            with ctx.streams.forked(DROPOUT, ctx.stage.name, ctx.step, ctx.micro):
                return self.said(student, point, time, r, labels)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of the scripts that it differentiates by
            pace = torch.func.jvp(lambda time: level(student.process, time), (t,), (torch.ones_like(t),))[1]
            slope: Tensor = torch.func.jvp(u, (y, t), (v, 1 / pace))[1]
        return slope

    def differences(
        self, student: Denoiser, y: Tensor, v: Tensor, t: Tensor, r: Tensor, labels: Tensor | None, ctx: Context
    ) -> Tensor:
        """du/ds along the tangent of the path, to both sides as far as there is room; 0 where there is none."""
        process, h = student.process, self.params.difference
        s, last = level(process, t), process.T - 1
        sides = ((s + h).clamp(max=float(level(process, torch.tensor(last)))), torch.maximum(s - h, level(process, r)))
        said = []
        for side in sides:
            time = time_at(process, side).clamp(0, last)
            with ctx.streams.forked(DROPOUT, ctx.stage.name, ctx.step, ctx.micro):
                said.append(self.said(student, y + expand(side - s, y) * v, time, torch.minimum(r, time), labels))
        return (said[0] - said[1]) / expand((sides[0] - sides[1]).clamp(min=1e-9), y)


class ShortcutParams(IntervalParams):
    finest: int = Field(64, ge=2)
    """Steps of the shortest length, a power of 2, which learn the teacher's velocity."""
    bootstrap: float = Field(0.75, gt=0, lt=1)
    """Share of the samples that learn longer steps; the paper's is 1/8 of a network that starts from nothing."""

    @field_validator("finest")
    @classmethod
    def _power_of_two(cls, finest: int) -> int:
        if finest & (finest - 1):
            raise ValueError(f"{finest} is no power of 2: take {1 << (finest.bit_length() - 1)}")
        return finest


@METHODS.register("shortcut")
class Shortcut(Intervals):
    """Shortcut models (Frans et al., 2025) of a teacher: a step goes where two of half its length go."""

    Params: ClassVar[type[Strict]] = ShortcutParams

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the shortest step, whose half is still one between timesteps."""
        super().check(roles)
        if (T := denoisers(roles)[0].process.T) < 2 * self.params.finest:
            most = 1 << ((T // 2).bit_length() - 1)
            raise UserError(f"method.params.finest: {self.params.finest} steps of {T} timesteps: take {most} or fewer")

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        (teacher, student), labels = denoisers(roles), batch.get("labels")
        t, length, shortest = self.times(student.process, batch["u"], ctx)
        y = straight(student.process, batch, t)
        with ctx.timer.time("teacher"), torch.no_grad():
            v = mean_velocity(teacher, y, t, labels)
        with ctx.timer.time("student"):
            aim = torch.where(expand(shortest, y).bool(), v, self.halves(student, y, t, length, labels, ctx))
            ctx.streams.seed_torch(DROPOUT, ctx.stage.name, ctx.step, ctx.micro)
            return (self.said(student, y, t, t - length, labels) - aim).flatten(1).square().mean(dim=1)

    def times(self, process: Process, u: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """t and the length of a step ``(b,)`` in timesteps, float64, and whether it is the shortest.

        As many steps as a power of 2 below `finest` takes, each power as often; t is on the grid of so many.
        """
        p = self.params
        draws = torch.rand(2, len(u), generator=ctx.generator("times"), dtype=torch.float64).to(u.device)
        shortest = draws[0] >= p.bootstrap
        powers = (draws[1] * (p.finest.bit_length() - 1)).floor()
        steps = torch.where(shortest, float(p.finest), 2**powers)
        length = process.T / steps
        return process.T - 1 - (u.double() * steps).floor().clamp(max=steps - 1) * length, length, shortest

    @torch.no_grad()
    def halves(
        self, student: Denoiser, y: Tensor, t: Tensor, length: Tensor, labels: Tensor | None, ctx: Context
    ) -> Tensor:
        """The mean of the velocities of two half steps, each weighted by how far in s it goes (the paper's eq. 5)."""
        middle, end = t - length / 2, t - length
        first_part, second_part = (
            level(student.process, a) - level(student.process, b) for a, b in ((t, middle), (middle, end))
        )
        said, at, place = [], t, y
        for to, part in ((middle, first_part), (end, second_part)):
            with ctx.streams.forked(DROPOUT, ctx.stage.name, ctx.step, ctx.micro):
                said.append(self.said(student, place, at, to, labels))
            place, at = place - expand(part, y) * said[-1], to
        return (y - place) / expand(first_part + second_part, y)
