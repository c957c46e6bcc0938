"""Adversarial diffusion distillation: a student of few steps is told from the data by a frozen network of pixels.

ADD (Sauer et al., 2023) has heads on several layers of a network that was trained to see (DINOv2), which look at images
without noise, and what the frozen teacher sees in the student's samples as a second loss. Where the teacher makes
latents both losses are of decoded images, as are the real ones, so that the decoder's own marks tell nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.recipe.recipe import Optimizer as Config
from xmodal_kd.signals.capture import find_modules
from xmodal_kd.training.method import METHODS, Context, Roles
from xmodal_kd.training.optim import build_optimizer, scaling

from ..data.condition import Condition
from ..models.denoiser import Denoiser
from ..models.pixel_network import CLASSIFIER, PixelNetwork, load_network, trained, untrained
from .adversarial import Ladd, add_distance
from .critic import Critic, CriticParams
from .discriminator import Head, ToldHead
from .few_step import denoisers, masked


class AddParams(CriticParams):
    steps: int = Field(4, ge=1)
    """Of the student, which learns at their times from data made noisy: no step starts from what another made."""
    critic: int = Field(1, ge=1)
    """Steps of the heads for one of the student."""
    network: str = CLASSIFIER
    """Whose layers the heads read: ``classifier``, a small one that is trained on the training images first, or the
    folder of a network of transformers (DINOv2, ViT) or torchvision."""
    at: tuple[str, ...] | None = None
    """Its modules whose output has a head each, by name or pattern; None: five blocks of a transformer, all activations
    of ``classifier``."""
    told: bool = True
    """Whether heads are told what the samples are conditioned on, where they are."""
    r1: float = Field(1e-5, ge=0)
    """Weight of the squared gradient of the heads by features of real data."""
    distil: float = Field(2.5, ge=0)
    """Weight of the distance from what the teacher sees in the student's samples, made noisy."""


@METHODS.register("add")
class Add(Ladd):
    """Adversarial diffusion distillation (ADD: Sauer et al., 2023): a GAN on a frozen network of pixels."""

    Params: ClassVar[type[Strict]] = AddParams

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the network: that it is there, sees such samples, and has the modules."""
        Critic.check(self, roles)
        teacher, at = denoisers(roles)[1], self.params.at
        shape = teacher.shape if teacher.parts is None else teacher.parts.image_shape(teacher.shape)
        if self.params.network == CLASSIFIER:
            for pattern in at or ():
                find_modules(untrained(shape, 2), pattern)
            return
        load_network(Path(self.params.network).expanduser(), at).seen(torch.zeros(1, *shape))

    def critic_optimizer(self, config: Config, roles: Roles, batch: Batch) -> Optimizer:
        """Of the heads alone, which no pattern of lr_scale knows."""
        teacher, device = denoisers(roles)[0], batch["x"].device
        if self.params.network == CLASSIFIER:
            source: Any = self.adapter.data("train")
            self.fake = trained(source.images, self.params.at, device)
        else:
            self.fake = load_network(Path(self.params.network).expanduser(), self.params.at).to(device)
        labels = batch.get("labels")
        with torch.no_grad():
            shapes = [feature.shape[1:] for feature in self.layers(teacher, batch["x"])]
        with self.distil.streams.forked("discriminator"):
            self.head = nn.ModuleList(self.head_of(shape, teacher, labels) for shape in shapes).to(device)
        return build_optimizer(scaling(config, lambda pattern: False), {"discriminator": self.head})

    def head_of(self, shape: torch.Size, teacher: Denoiser, labels: Condition | None) -> Head:
        """With fresh weights from the global generator."""
        if labels is None or not self.params.told:
            return Head(shape)
        if isinstance(labels, Tensor):
            return ToldHead(shape, teacher.classes)
        return ToldHead(shape, None, labels.embedding.shape[-1])

    def asked(self, teacher: Denoiser) -> Denoiser:
        """None but the teacher: the heads ask no denoiser."""
        return teacher

    def layers(self, teacher: Denoiser, x: Tensor) -> list[Tensor]:
        """Of samples ``(b, ...)`` as the teacher makes them."""
        return self.seen(self.images(teacher, x))

    def seen(self, images: Tensor) -> list[Tensor]:
        assert isinstance(self.fake, PixelNetwork)
        found: list[Tensor] = self.fake(images)
        return found

    def images(self, teacher: Denoiser, x: Tensor) -> Tensor:
        """Of samples, with a gradient by them."""
        return x if teacher.parts is None else teacher.parts.decode(x, gradient=True)

    # ---------------------------------------------------------------- what is minimised

    def critic_loss(
        self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context, turn: int
    ) -> LossOut:
        """Of the heads on samples ``(b, ...)`` and on as many of the data, none of them noisy."""
        with torch.no_grad():
            of_made, of_real = self.layers(teacher, made), self.layers(teacher, batch["x"])
        return self.told_apart(of_real, of_made, batch.get("labels"))

    def student_loss(self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context) -> LossOut:
        """-D of samples ``(b, ...)``, a mean over heads, and the distance from what the teacher sees in them."""
        labels = batch.get("labels")
        with ctx.timer.time("critic"):
            images = self.images(teacher, made)
            found = self.logits(self.seen(images), labels, learns=False)
        out = masked("add", -found.mean(dim=0))
        if self.params.distil:
            with ctx.timer.time("teacher"):
                t, seen = self.teacher_sees(teacher, made, labels, *self.noisy(batch, ctx, "student"))
                values = add_distance(teacher.process, images, self.images(teacher, seen), t)
            out += masked("distil", values, self.params.distil)
        return out


__all__ = ["Add", "AddParams"]
