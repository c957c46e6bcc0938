"""Students of a mean velocity: one network learns steps of every length, and is saved for one length.

In y = z / (alpha + sigma) and s = sigma / (alpha + sigma) the paths of every process are those of flow matching, y =
(1 - s) x + s eps, and a step of DDIM is one of Euler's: y' = y - (s - s') u, with u = eps - x as the network sees them.
u as the mean velocity between two times hangs on both. A UNet of diffusers takes one: its class embedding could take
another, but no pipeline passes one that changes with the step. Of steps that are equally long, though, the length is a
constant. So an `Interval` learns beside the network what a length adds to the time's embedding over what the student's
own length adds: the network is at every moment the student of so many steps, and is saved as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture, find_modules, only_call
from xmodal_kd.training.method import Roles, Stage
from xmodal_kd.training.optim import build_optimizer

from ..models.denoiser import Denoiser, Sampling
from ..models.process import Process, expand
from .few_step import STUDENT, FewStep, FewStepParams, denoisers

STAGE = "intervals"
#: Waves of a length, and the width of what reads them.
WAVES, WIDTH = 6, 64


class IntervalParams(FewStepParams):
    steps: int = Field(2, ge=1)
    """Of the student, all equally long; must divide the teacher's timesteps. Other lengths are learnt beside it."""
    at: str = "net.time_embedding"
    """The module whose output is the embedding of the time, to which an interval's is added."""


class Interval(nn.Module):
    """What steps of a length add to a layer of `width` values: nothing at first, and never at the length `own`.

    Lengths are shares of the process, 0 for the velocity itself.
    """

    def __init__(self, width: int, own: float) -> None:
        super().__init__()
        self.own = own
        last = nn.Linear(WIDTH, width, bias=False)
        nn.init.zeros_(last.weight)
        self.read = nn.Sequential(nn.Linear(WAVES + 1, WIDTH), nn.SiLU(), last)

    def forward(self, length: Tensor) -> Tensor:
        """``(b, width)`` of lengths ``(b,)``."""
        own = torch.full_like(length[:1], self.own)
        added: Tensor = self.read(waves(length)) - self.read(waves(own))
        return added


def waves(length: Tensor) -> Tensor:
    """Slow functions of lengths ``(b,)``, whose derivatives stay small: ``(b, WAVES + 1)``."""
    angles = torch.pi / 2 * length[:, None] * torch.arange(1, WAVES + 1, device=length.device)
    return torch.cat([(length[:, None] + 1e-2).log(), angles.cos()], dim=1).to(length)


class Intervals(FewStep):
    """Base of the methods whose student learns steps of every length."""

    Params: ClassVar[type[Strict]] = IntervalParams

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        #: There is none before the stage begins.
        self.interval: nn.Module = nn.Module()

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the steps, and of the module that the interval is added to."""
        super().check(roles)
        check_divides(denoisers(roles)[0].process, self.params.steps)
        if len(found := find_modules(denoisers(roles)[1], self.params.at)) > 1:
            raise UserError(f"method.params.at: {self.params.at} names {len(found)} modules: name one")

    def own_stages(self) -> Sequence[Stage]:
        return [Stage(STAGE, self.train.steps, STUDENT)]

    def prepare(self, stage: Stage, roles: Roles) -> None:
        denoisers(roles)[1].sampling = Sampling("ddim", self.params.steps)

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        optimizers = super().begin(stage, roles, batch)
        if stage.name != STAGE:
            return optimizers
        student, x = denoisers(roles)[1], batch["x"]
        width = width_at(student, self.params.at, x, batch.get("labels"))
        with self.distil.streams.forked("interval"):
            self.interval = Interval(width, 1 / self.params.steps).to(x)
        return {"student": build_optimizer(self.train.optimizer, {"student": student, "interval": self.interval})}

    def said(self, student: Denoiser, y: Tensor, t: Tensor, r: Tensor, labels: Tensor | None) -> Tensor:
        """The mean velocity that the student sees at y ``(b, ...)`` from times t ``(b,)`` down to r."""
        with lengthened(student, self.params.at, self.interval, (t - r) / student.process.T):
            return mean_velocity(student, y, t, labels)

    def of_steps(self, student: Denoiser, steps: int) -> Denoiser:
        """The student of another number of steps, a copy with the interval's part in the time embedding's bias."""
        made = copy.deepcopy(student)
        made.sampling = Sampling("ddim", steps)
        bias = list(made.get_submodule(find_modules(made, self.params.at)[0]).parameters())[-1]
        with torch.no_grad():
            bias.add_(self.interval(bias.new_full((1,), 1 / steps))[0])
        return made

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "interval": self.interval}


def check_divides(process: Process, steps: int) -> None:
    """Raises `UserError` for steps that cannot be equally long."""
    if process.T % steps:
        near = min((n for n in range(1, process.T + 1) if process.T % n == 0), key=lambda n: abs(n - steps))
        raise UserError(f"method.params.steps: {steps} does not divide the {process.T} timesteps: take {near}")


def width_at(student: Denoiser, at: str, x: Tensor, labels: Tensor | None) -> int:
    """Raises `UserError` where the module `at` does not put out one vector a sample."""
    with torch.no_grad(), capture(student, [at]) as taken:
        student(x, torch.zeros(len(x), dtype=torch.long, device=x.device), labels)
    embedded = only_call(at, taken[find_modules(student, at)[0]])
    if embedded.shape[:-1] != x.shape[:1]:
        raise UserError(f"method.params.at: {at} puts out {tuple(embedded.shape)}, not one vector a sample")
    return embedded.shape[1]


@contextmanager
def lengthened(student: Denoiser, at: str, interval: nn.Module, length: Tensor) -> Iterator[None]:
    """Inside the block the student's steps are of `length` ``(b,)``."""

    def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        lengthened: Tensor = output + interval(length.to(output.dtype))
        return lengthened

    handle = student.get_submodule(find_modules(student, at)[0]).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


# ---------------------------------------------------------------- straight paths


def level(process: Process, t: Tensor) -> Tensor:
    """s = sigma / (alpha + sigma) at times ``(b,)``, in float64."""
    sigma = process.sigma(t)
    s: Tensor = sigma / (process.alpha(t) + sigma)
    return s


def time_at(process: Process, s: Tensor) -> Tensor:
    """The real time ``(b,)`` of levels s below 1."""
    return process.time_of(s / (1 - s))


def straight(process: Process, batch: Batch, t: Tensor) -> Tensor:
    """The batch's samples with its noise at times ``(b,)``: y = (1 - s) x + s eps."""
    s = expand(level(process, t), batch["x"])
    y: Tensor = (1 - s) * batch["x"] + s * batch["noise"]
    return y


def mean_velocity(model: Denoiser, y: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """eps - x of what the model sees in y ``(b, ...)`` at times ``(b,)``."""
    alpha, sigma = model.process.pair(t, y)
    z = (alpha + sigma) * y
    v = model.predict("v_prediction", z, t, labels)
    u: Tensor = ((sigma - alpha) * z + (alpha + sigma) * v) / (alpha.square() + sigma.square())
    return u


__all__ = ["Interval", "IntervalParams", "Intervals", "level", "mean_velocity", "straight", "time_at", "waves"]
