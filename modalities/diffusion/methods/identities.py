"""Score identity distillation and moment matching: two more ways in which a fake denoiser moves a student."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.training.method import METHODS, Context
from xmodal_kd.training.modes import frozen

from ..models.denoiser import Denoiser
from .critic import Critic, FakeParams
from .few_step import masked


class IdentityParams(FakeParams):
    steps: int = Field(1, ge=1, le=1)
    """One: the loss is of samples that are made at once."""
    critic: int = Field(3, ge=1)
    """Steps of the fake denoiser for one of the student; the paper has 1, at rates a hundred times lower."""
    high: float = Field(0.95, gt=0, le=1)
    """Share of the timesteps above which nothing is compared."""
    alpha: float = Field(1.0, ge=0)
    """Of the loss: 0.5 is the Fisher divergence with no identity used, the paper's are 1 and 1.2."""


@METHODS.register("sid")
class Sid(Critic):
    """Score identity distillation (Zhou et al., 2024): the Fisher divergence of two denoisers, through both of them."""

    Params: ClassVar[type[Strict]] = IdentityParams

    def student_loss(self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context) -> LossOut:
        noise, u = self.noisy(batch, ctx, "student")
        with ctx.timer.time("teacher"):
            return masked("sid", self.divergence(teacher, fake, made, batch.get("labels"), noise, u))

    def divergence(
        self, teacher: Denoiser, fake: Denoiser, x: Tensor, labels: Tensor | None, noise: Tensor, u: Tensor
    ) -> Tensor:
        """``(b,)`` means of (f - g) ((f - x) - alpha (f - g)) / mean|x - f|, f and g the x seen in noisy samples.

        f is the teacher's, g the fake one's; the gradient goes through both to the samples and is not theirs (eq. 23).
        """
        t = self.times(teacher.process.T, u)
        z = teacher.process.add_noise(x, noise, t)
        with frozen(fake):
            real, fooled = teacher.predict_x(z, t, labels), fake.predict_x(z, t, labels)
        apart = real - fooled
        size = (x - real).detach().flatten(1).abs().mean(dim=1).clamp(min=1e-5)
        values: Tensor = (apart * ((real - x) - self.params.alpha * apart)).flatten(1).mean(dim=1) / size
        return values


class MomentParams(FakeParams):
    critic: int = Field(3, ge=1)
    """Steps of the auxiliary denoiser for one of the student; the paper has 1."""
    low: float = Field(0.0, ge=0, lt=1)
    """Share of the way up from the next of the student's times to its own below which moments are not compared."""
    high: float = Field(1.0, gt=0, le=1)
    """And above which."""


@METHODS.register("moment_matching")
class MomentMatching(Critic):
    """Moment matching (Salimans et al., 2024): x is to be expected of z in the student's samples as in the data.

    By the paper's alternating form, whose auxiliary denoiser stays near the teacher. Noise between the steps is fresh,
    as in the student's sampler, where the paper draws it given the step before.
    """

    Params: ClassVar[type[Strict]] = MomentParams

    def made(self, student: Denoiser, batch: Batch, ctx: Context, turn: int | str) -> Tensor:
        return self.made_of_data(student, batch, ctx, turn)

    def lower(self, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context, turn: int | str) -> tuple[Tensor, Tensor]:
        """The samples made noisy at times ``(b,)`` between a step's and the next one's, and those times."""
        t, after = self.step(fake, batch, ctx, turn)
        noise, u = self.noisy(batch, ctx, turn)
        up = self.params.low + (self.params.high - self.params.low) * u
        s = (after + up * (t - after)).round().long().clamp(min=0)
        return fake.process.add_noise(made, noise, s), s

    def critic_loss(
        self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context, turn: int
    ) -> LossOut:
        """How far the auxiliary denoiser is from the samples and from the teacher, in what networks say."""
        labels, natural = batch.get("labels"), fake.process.natural
        z, s = self.lower(fake, made, batch, ctx, turn)
        with torch.no_grad():
            real = teacher.predict(natural, z, s, labels)
        said, true = fake.predict(natural, z, s, labels), fake.process.convert(made, z, s, "sample", natural)
        return masked("fake", ((said - true).square() + (said - real).square()).flatten(1).mean(dim=1))

    def student_loss(self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context) -> LossOut:
        labels = batch.get("labels")
        z, s = self.lower(fake, made.detach(), batch, ctx, "student")
        with ctx.timer.time("teacher"), torch.no_grad():
            off = fake.predict_x(z, s, labels) - teacher.predict_x(z, s, labels)
        return masked("moments", (made * off).flatten(1).mean(dim=1))


__all__ = ["IdentityParams", "MomentMatching", "MomentParams", "Sid"]
