"""Distribution matching: the student's samples are moved to where the teacher finds them likelier than a critic does.

DMD2 (Yin et al., 2024b): no pairs of noise and sample to regress on. A second denoiser, the fake one, follows the
student's samples at a faster pace; the difference of the two is the gradient of the divergence between what the
student makes and what the teacher models. The discriminator of section 4.3 is not built: the teacher alone saw data.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.training.method import METHODS, Context, Roles, Stage
from xmodal_kd.training.optim import build_optimizer

from ..models.denoiser import Denoiser
from ..models.process import expand
from .few_step import STUDENT, Multistep, MultistepParams, denoisers, masked

STAGE = "matching"


class MatchingParams(MultistepParams):
    steps: int = Field(1, ge=1)
    """Of the student. Each is trained on what its own sampler makes of the steps before (backward simulation)."""
    critic: int = Field(5, ge=1)
    """Steps of the fake denoiser for one of the student: the two time scales."""
    critic_lr: float = Field(1.0, gt=0)
    """Its learning rate, as a multiple of the student's."""
    low: float = Field(0.02, ge=0, lt=1)
    """Share of the timesteps below which the two denoisers are not compared: they differ by errors alone."""
    high: float = Field(0.98, gt=0, le=1)
    """And above which: nothing is left there to compare."""


@METHODS.register("dmd2")
class Dmd2(Multistep):
    """Distribution matching with a faster critic and no regression (DMD2: Yin et al., 2024), without its GAN."""

    Params: ClassVar[type[Strict]] = MatchingParams

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        #: The fake denoiser, as the student starts; there is none before the stage begins.
        self.fake: nn.Module = nn.Module()

    def own_stages(self) -> Sequence[Stage]:
        return [Stage(STAGE, self.train.steps, STUDENT)]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        optimizers = super().begin(stage, roles, batch)
        if stage.name != STAGE:
            return optimizers
        self.fake = copy.deepcopy(roles["student"])
        config = self.train.optimizer
        config = config.model_copy(update={"lr": config.lr * self.params.critic_lr})
        # patterns of lr_scale know it as the student, whose network it has
        return {**optimizers, "fake": build_optimizer(config, {"student": self.fake})}

    def turns(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        """The fake denoiser's, each on samples of their own, then the student's."""
        (teacher, student), labels = denoisers(roles), batch.get("labels")
        assert isinstance(self.fake, Denoiser)
        for turn in range(self.params.critic):
            with ctx.timer.time("student"), torch.no_grad():
                made = self.generate(student, self.normal(batch, ctx, "start", turn), labels, ctx, turn)
            with ctx.timer.time("critic"):
                errors = self.fake_errors(self.fake, made, labels, *self.noisy(batch, ctx, turn))
            yield "fake", masked("fake", errors)
        with ctx.timer.time("student"):
            made = self.generate(student, batch["noise"], labels, ctx, "student")
        with ctx.timer.time("teacher"):
            pull = self.gradient(teacher, self.fake, made.detach(), labels, *self.noisy(batch, ctx, "student"))
        yield "student", masked("dmd2", 0.5 * (made - (made.detach() - pull)).flatten(1).square().mean(dim=1))

    # ---------------------------------------------------------------- what is minimised

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

    def gradient(
        self, teacher: Denoiser, fake: nn.Module, x: Tensor, labels: Tensor | None, noise: Tensor, u: Tensor
    ) -> Tensor:
        """d KL / dx of samples ``(b, ...)``: (x_fake - x_real) / mean|x - x_real| at the noisy sample (eq. 7 and 8)."""
        assert isinstance(fake, Denoiser)
        process = teacher.process
        t = self.times(process.T, u)
        with torch.no_grad():
            z = process.add_noise(x, noise, t)
            real, made = teacher.predict_x(z, t, labels), fake.predict_x(z, t, labels)
            size = (x - real).flatten(1).abs().mean(dim=1).clamp(min=1e-6)
            return (made - real) / size.reshape(-1, *[1] * (x.ndim - 1))

    def fake_errors(self, fake: Denoiser, x: Tensor, labels: Tensor | None, noise: Tensor, u: Tensor) -> Tensor:
        """``(b,)`` squared errors of the fake denoiser on samples, in what its process's networks are compared in."""
        process = fake.process
        t = (u * process.T).long().clamp(max=process.T - 1)
        z = process.add_noise(x, noise, t)
        said = fake.predict(process.natural, z, t, labels)
        return (said - process.truth(process.natural, x, noise, t)).flatten(1).square().mean(dim=1)

    def times(self, T: int, u: Tensor) -> Tensor:
        """``(b,)`` timesteps between `low` and `high`."""
        low, high = int(self.params.low * T), max(int(self.params.high * T), int(self.params.low * T) + 1)
        return (low + (u * (high - low)).long()).clamp(max=T - 1)

    def noisy(self, batch: Batch, ctx: Context, turn: int | str) -> tuple[Tensor, Tensor]:
        """Noise of a sample's shape, and u ``(b,)`` that decides the time, of their own for each turn."""
        u = torch.rand(len(batch["x"]), generator=ctx.generator("time", turn)).to(batch["x"].device)
        return self.normal(batch, ctx, "noise", turn), u

    def normal(self, batch: Batch, ctx: Context, *path: int | str) -> Tensor:
        return torch.randn(batch["x"].shape, generator=ctx.generator(*path)).to(batch["x"])

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "fake": self.fake}


__all__ = ["Dmd2", "MatchingParams"]
