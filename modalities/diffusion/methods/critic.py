"""What methods share whose student is moved by a critic, which learns in turns with it.

Mostly that is a second denoiser, the fake one, that follows the student's samples, and perhaps a discriminator on it.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.recipe.recipe import Optimizer as Config
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import Context, Roles, Stage
from xmodal_kd.training.optim import build_optimizer

from ..models.denoiser import Denoiser
from ..models.lora import share_frozen
from ..models.process import Process, expand
from .few_step import STUDENT, Multistep, MultistepParams, denoisers, masked, same_network

STAGE = "matching"


class CriticParams(MultistepParams):
    steps: int = Field(1, ge=1)
    """Of the student. Each is trained on what its own sampler makes of the steps before (backward simulation)."""
    critic: int = Field(5, ge=1)
    """Steps of the critic for one of the student: the two time scales."""
    critic_lr: float = Field(1.0, gt=0)
    """Its learning rate, as a multiple of the student's."""
    start: Path | None = None
    """A saved few-step student of the teacher's shape, by any method, as which this one starts; else as the teacher.

    A fake denoiser starts as the teacher in any case. What another method has learnt in few steps takes distribution
    matching many, which is better at the last part of the way.
    """


class FakeParams(CriticParams):
    low: float = Field(0.02, ge=0, lt=1)
    """Share of the timesteps below which the two denoisers are not compared: they differ by errors alone."""
    high: float = Field(0.98, gt=0, le=1)
    """And above which: nothing is left there to compare."""


class Critic(Multistep):
    """Base of the methods with a critic, which takes several turns for one of the student's."""

    Params: ClassVar[type[Strict]] = CriticParams

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        #: The fake denoiser, as the student starts; there is none before the stage begins.
        self.fake: nn.Module = nn.Module()
        #: A discriminator's, on the fake denoiser's features; empty without one.
        self.head: nn.Module = nn.Module()

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        if self.params.start is not None:
            self.started(self.params.start, denoisers(roles)[1])

    def own_stages(self) -> Sequence[Stage]:
        return [Stage(STAGE, self.train.steps, STUDENT)]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        optimizers = super().begin(stage, roles, batch)
        if stage.name != STAGE:
            return optimizers
        config = self.train.optimizer
        config = config.model_copy(update={"lr": config.lr * self.params.critic_lr})
        critic = self.critic_optimizer(config, roles, batch)
        if self.params.start is not None:
            roles["student"].load_state_dict(self.started(self.params.start, denoisers(roles)[1]))
        for net, other in ((roles["student"], roles["teacher"]), (self.fake, roles["student"])):
            share_frozen(net, other)  # of adapters' students the base, which is one for all three networks
        return {**optimizers, "fake": critic}

    def critic_optimizer(self, config: Config, roles: Roles, batch: Batch) -> Optimizer:
        """Makes what the critic is and what learns of it, and returns its optimizer."""
        self.fake = copy.deepcopy(roles["student"])
        self.head = self.discriminator(batch)
        # patterns of lr_scale know it as the student, whose network it has
        return build_optimizer(config, {"student": self.fake, "discriminator": self.head})

    def discriminator(self, batch: Batch) -> nn.Module:
        """What learns beside the fake denoiser; empty unless a method has one."""
        return nn.Module()

    def asked(self, teacher: Denoiser) -> Denoiser:
        """The denoiser that the critic asks: the fake one."""
        assert isinstance(self.fake, Denoiser)
        return self.fake

    def started(self, folder: Path, student: Denoiser) -> Mapping[str, Tensor]:
        """The weights of a saved student. Raises `UserError` where they are not of `student`'s network and process."""
        found = self.adapter.load("student", folder)
        assert isinstance(found, Denoiser)
        if not same_network(found, student) or not same_levels(found.process, student.process):
            raise UserError(
                f"method.params.start: {folder} is not of the student's network, prediction type and process: it "
                "needs the same teacher"
            )
        return found.state_dict()

    def turns(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        """The critic's, each on samples of their own, then the student's."""
        teacher, student = denoisers(roles)
        fake = self.asked(teacher)
        for turn in range(self.params.critic):
            with ctx.timer.time("student"), torch.no_grad():
                made = self.made(student, batch, ctx, turn)
            with ctx.timer.time("critic"):
                out = self.critic_loss(teacher, fake, made, batch, ctx, turn)
            yield "fake", out
        with ctx.timer.time("student"):
            made = self.made(student, batch, ctx, "student")
        yield "student", self.student_loss(teacher, fake, made, batch, ctx)

    def made(self, student: Denoiser, batch: Batch, ctx: Context, turn: int | str) -> Tensor:
        """The student's samples in a turn; from the batch's own noise in its own."""
        noise = batch["noise"] if turn == "student" else self.normal(batch, ctx, "start", turn)
        return self.generate(student, noise, batch.get("labels"), ctx, turn)

    def made_of_data(self, student: Denoiser, batch: Batch, ctx: Context, turn: int | str) -> Tensor:
        """What the student sees in the data made noisy, at each of its times as often: no backward simulation."""
        t, _ = self.step(student, batch, ctx, turn)
        noise = batch["noise"] if turn == "student" else self.normal(batch, ctx, "start", turn)
        return student.consistency(student.process.add_noise(batch["x"], noise, t), t, batch.get("labels"))

    def step(self, student: Denoiser, batch: Batch, ctx: Context, turn: int | str) -> tuple[Tensor, Tensor]:
        """A time of the sampler and the next one ``(b,)``, the clean sample's being -1."""
        times = torch.tensor(student.sampling.times(student.process), device=batch["x"].device)
        first = int(torch.randint(len(times) - 1, (), generator=ctx.generator("index", turn)))
        index = (torch.arange(len(batch["x"]), device=times.device) + first) % (len(times) - 1)
        return times[index], times[index + 1]

    # ---------------------------------------------------------------- what is minimised

    @abstractmethod
    def student_loss(self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context) -> LossOut:
        """Of samples that have the student's gradient."""

    def critic_loss(
        self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context, turn: int
    ) -> LossOut:
        """Of the fake denoiser on samples ``(b, ...)``: it learns to denoise them."""
        return masked("fake", self.fake_errors(fake, made, batch.get("labels"), *self.noisy(batch, ctx, turn)))

    def generate(
        self, student: Denoiser, noise: Tensor, labels: Tensor | None, ctx: Context, turn: int | str
    ) -> Tensor:
        """Samples as the student's sampler has them after one of its steps, of each step as many in a batch.

        Only the last evaluation has a gradient. What its sampler makes, not noisy data, is what later steps start from.
        """
        process, times = student.process, student.sampling.times(student.process)[:-1]
        first = int(torch.randint(len(times), (), generator=ctx.generator("index", turn)))
        index = (torch.arange(len(noise), device=noise.device) + first) % len(times)
        z = starts = process.start * noise
        with torch.no_grad():
            for k, (t, after) in enumerate(pairwise(times)):
                x = student.consistency(z, torch.full((len(z),), t, device=z.device), labels)
                fresh = torch.randn(z.shape, generator=ctx.generator("between", turn, k)).to(z)
                z = process.add_noise(x, fresh, after)
                starts = torch.where(expand(index > k, z).bool(), z, starts)
        return student.consistency(starts, torch.tensor(times, device=z.device)[index], labels)

    def fake_errors(self, fake: Denoiser, x: Tensor, labels: Tensor | None, noise: Tensor, u: Tensor) -> Tensor:
        """``(b,)`` squared errors of the fake denoiser on samples, in what its process's networks are compared in.

        Of one that predicts epsilon in that: its v has an error larger by 1 / alpha, and little else would be learnt.
        """
        process, (z, t) = fake.process, noised(fake, x, noise, u)
        target = fake.prediction if fake.prediction == "epsilon" else process.natural
        said = fake.predict(target, z, t, labels)
        return (said - process.truth(target, x, noise, t)).flatten(1).square().mean(dim=1)

    def times(self, T: int, u: Tensor) -> Tensor:
        """``(b,)`` timesteps between the parameters `low` and `high`."""
        low, high = int(self.params.low * T), max(int(self.params.high * T), int(self.params.low * T) + 1)
        return (low + (u * (high - low)).long()).clamp(max=T - 1)

    def noisy(self, batch: Batch, ctx: Context, turn: int | str) -> tuple[Tensor, Tensor]:
        """Noise of a sample's shape, and u ``(b,)`` that decides the time, of their own for each turn."""
        u = torch.rand(len(batch["x"]), generator=ctx.generator("time", turn)).to(batch["x"].device)
        return self.normal(batch, ctx, "noise", turn), u

    def normal(self, batch: Batch, ctx: Context, *path: int | str) -> Tensor:
        return torch.randn(batch["x"].shape, generator=ctx.generator(*path)).to(batch["x"])

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "fake": self.fake, "head": self.head}


def same_levels(a: Process, b: Process) -> bool:
    """Whether times mean the same noise; what a scheduler's file says of it is rounded."""
    if (a.kind, a.T) != (b.kind, b.T):
        return False
    times = torch.arange(a.T)
    tables = ((a.alpha(times), b.alpha(times)), (a.sigma(times), b.sigma(times)))
    return all(torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4) for mine, theirs in tables)


def noised(model: Denoiser, x: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Samples ``(b, ...)`` at times that u ``(b,)`` decides, of all there are, and the times."""
    t = (u * model.process.T).long().clamp(max=model.process.T - 1)
    return model.process.add_noise(x, noise, t), t


__all__ = ["Critic", "CriticParams", "FakeParams", "noised"]
