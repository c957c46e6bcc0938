"""Adversarial distillation: a student of few steps is told from the data by what its frozen teacher makes of both.

LADD (Sauer et al., 2024b) has heads on features that the teacher has of samples made noisy anew, at levels drawn with a
logit that is normal: high ones ask for the whole, low ones for texture. ADD (Sauer et al., 2023) before it read a
network of pixels (`add`), and had the teacher's own view of the student's samples as a second loss: here `distil`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.recipe.recipe import Optimizer as Config
from xmodal_kd.training.method import METHODS, Context, Roles
from xmodal_kd.training.modes import frozen
from xmodal_kd.training.optim import build_optimizer, scaling

from ..data.condition import Condition
from ..models.asked import is_told
from ..models.denoiser import Denoiser
from ..models.process import Process
from .critic import Critic, CriticParams
from .discriminator import features_at, heads_for, hinge, read_all
from .few_step import denoisers, masked, same_network
from .intervals import time_at


class LaddParams(CriticParams):
    critic: int = Field(1, ge=1)
    """Steps of the heads for one of the student."""
    at: tuple[str, ...] = ("net.down_blocks.?", "net.mid_block", "net.up_blocks.?")
    """Modules whose output has a head each, by name or pattern: the teacher's where the student has its network, else
    those of the student as it is when this stage begins."""
    mean: float = 1.0
    std: float = Field(1.0, gt=0)
    """Of the logit of sigma / (alpha + sigma), the level at which heads look at samples, which is drawn normal."""
    r1: float = Field(0.0, ge=0)
    """Weight of the squared gradient of the heads by features of real data (ADD has 1e-5)."""
    distil: float = Field(0.0, ge=0)
    """Weight of the distance from what the teacher sees in the student's samples, made noisy (ADD has 2.5)."""


class Still(nn.Module):
    """A model that does not learn and is always in eval mode, kept in checkpoints."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.eval()

    model: Denoiser

    def train(self, mode: bool = True) -> Still:
        super().train(False)
        return self


@METHODS.register("ladd")
class Ladd(Critic):
    """Latent adversarial distillation (LADD: Sauer et al., 2024): a GAN on the frozen teacher's own features."""

    Params: ClassVar[type[Strict]] = LaddParams

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the modules that are read."""
        super().check(roles)
        read_all(denoisers(roles)[1], self.params.at)

    def critic_optimizer(self, config: Config, roles: Roles, batch: Batch) -> Optimizer:
        """Of the heads alone, which no pattern of lr_scale knows."""
        teacher, student = denoisers(roles)
        if not same_network(teacher, student, prediction=False):
            self.fake = Still(copy.deepcopy(student))
        reader = self.asked(teacher)
        with self.distil.streams.forked("discriminator"):
            self.head = heads_for(reader, read_all(reader, self.params.at), batch["x"], batch.get("labels"))
        return build_optimizer(scaling(config, lambda pattern: False), {"discriminator": self.head})

    def asked(self, teacher: Denoiser) -> Denoiser:
        """Whose features are read: unguided, as guidance would ask about all twice, unless its network is told it."""
        reader = copy.copy(self.fake.model if isinstance(self.fake, Still) else teacher)
        reader.guidance = reader.guidance if is_told(reader.net) else 1.0
        return reader

    def made(self, student: Denoiser, batch: Batch, ctx: Context, turn: int | str) -> Tensor:
        return self.made_of_data(student, batch, ctx, turn)

    # ---------------------------------------------------------------- what is minimised

    def critic_loss(
        self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context, turn: int
    ) -> LossOut:
        """Of the heads on samples ``(b, ...)`` and on as many of the data, at the same levels."""
        labels, (noise, u) = batch.get("labels"), self.noisy(batch, ctx, turn)
        with torch.no_grad():
            of_made = self.read(fake, made, labels, noise, u)
            of_real = self.read(fake, batch["x"], labels, self.normal(batch, ctx, "real", turn), u)
        return self.told_apart(of_real, of_made, labels)

    def told_apart(self, of_real: list[Tensor], of_made: list[Tensor], labels: Condition | None) -> LossOut:
        """The hinge loss of the heads on features without a gradient, and their penalty."""
        if not self.params.r1:
            return masked("discriminator", hinge(self.logits(of_real, labels), self.logits(of_made, labels)))
        leaves = [feature.requires_grad_() for feature in of_real]
        # no leaves themselves: what counts a step's operations hooks the inputs of modules, and may hook no leaf there
        real = self.logits([leaf.view_as(leaf) for leaf in leaves], labels)
        out = masked("discriminator", hinge(real, self.logits(of_made, labels)))
        return out + masked("r1", gradient_penalty(real, leaves), self.params.r1)

    def student_loss(self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context) -> LossOut:
        """-D of samples ``(b, ...)``, a mean over heads, and what the teacher adds."""
        labels, (noise, u) = batch.get("labels"), self.noisy(batch, ctx, "judged")
        with ctx.timer.time("critic"):
            found = self.logits(self.read(fake, made, labels, noise, u), labels, learns=False)
        out = masked("ladd", -found.mean(dim=0))
        if self.params.distil:
            with ctx.timer.time("teacher"):
                values = self.distilled(teacher, made, labels, *self.noisy(batch, ctx, "student"))
            out += masked("distil", values, self.params.distil)
        return out

    def distilled(
        self, teacher: Denoiser, x: Tensor, labels: Condition | None, noise: Tensor, u: Tensor
    ) -> Tensor:  # fmt: skip
        """``(b,)`` of `add_distance` at times that u decides."""
        t, seen = self.teacher_sees(teacher, x, labels, noise, u)
        return add_distance(teacher.process, x, seen, t)

    def teacher_sees(
        self, teacher: Denoiser, x: Tensor, labels: Condition | None, noise: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Times ``(b,)`` that u decides, and the teacher's x, without a gradient, in samples made noisy there."""
        process = teacher.process
        t = (u * process.T).long().clamp(max=process.T - 1)
        with torch.no_grad():
            return t, teacher.predict_x(process.add_noise(x.detach(), noise, t), t, labels)

    def read(
        self, reader: Denoiser, x: Tensor, labels: Condition | None, noise: Tensor, u: Tensor
    ) -> list[Tensor]:  # fmt: skip
        """Of samples ``(b, ...)`` made noisy at levels that u decides."""
        process = reader.process
        t = self.times_of(process, u)
        return features_at(reader, read_all(reader, self.params.at), process.add_noise(x, noise, t), t, labels)

    def times_of(self, process: Process, u: Tensor) -> Tensor:
        """``(b,)`` real times, float64, whose level's logit is normal of u ``(b,)``."""
        normal = torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))
        level = (self.params.mean + self.params.std * normal).sigmoid()
        return time_at(process, level).clamp(0, process.T - 1)

    def logits(self, features: list[Tensor], labels: Condition | None = None, *, learns: bool = True) -> Tensor:
        """``(k, b)`` of the k heads."""
        heads = self.head
        assert isinstance(heads, nn.ModuleList)
        if learns:
            return torch.stack([head(feature, labels) for head, feature in zip(heads, features, strict=True)])
        with frozen(heads):
            return self.logits(features, labels)


def gradient_penalty(logits: Tensor, features: list[Tensor]) -> Tensor:
    """``(b,)`` means over k heads of the squared gradient of logits ``(k, b)`` by the features ``(b, ...)`` of each.

    ADD's R1 (Sauer et al., 2023, section 3.2), on what a head reads, not on the data.
    """
    gradients = torch.autograd.grad(logits.sum(), features, create_graph=True)
    return torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients]).mean(dim=0)


def add_distance(process: Process, x: Tensor, seen: Tensor, t: Tensor) -> Tensor:
    """``(b,)`` means of c (x - seen)^2, c = alpha / sqrt(alpha^2 + sigma^2) at the times t ``(b,)`` of `seen`.

    ADD's loss of score distillation with exponential weights (Sauer et al., 2023, eq. 4), alpha of a process that
    preserves the variance; `seen` is the teacher's x in the sample made noisy, and has no gradient.
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    weight: Tensor = (alpha / (alpha.square() + sigma.square()).sqrt()).to(x)
    return weight * (x - seen).flatten(1).square().mean(dim=1)


__all__ = ["Ladd", "LaddParams", "add_distance", "gradient_penalty"]
