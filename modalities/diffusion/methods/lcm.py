"""Latent consistency models: consistency distillation of a guided teacher, in steps that skip timesteps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import METHODS, Context, Ema, Roles, Stage

from ..models.asked import is_told
from ..models.denoiser import Denoiser
from .consistency import STAGE, mean_distance, neighbours
from .few_step import STUDENT, Multistep, MultistepParams, denoisers


class LcmParams(MultistepParams):
    """The grid is that of the skipping steps: k = T / grid timesteps are skipped at once, 20 of 1,000."""

    steps: int = Field(4, ge=1)
    guidance: tuple[float, float] | None = None
    """Least and greatest scale that is drawn for each sample, uniformly; the student is told it, and sampled at any of
    them. It needs ``student.params.guidance``, and the teacher's own scale among them. None: the teacher's own
    (``data.sampling.guidance``) alone, which the student is not told."""
    decay: float = Field(0.95, ge=0, lt=1)
    """Of the target, an average of the student's weights."""
    distance: Literal["l2", "huber"] = "l2"
    """A mean over values of d^2, or of sqrt(d^2 + c^2) - c (benchmarks/results/mixture_guided.json has both)."""
    c: float = Field(1e-3, gt=0)
    """Of ``huber``."""

    @model_validator(mode="after")
    def _check_range(self) -> LcmParams:
        if self.guidance is not None and not 1 <= self.guidance[0] < self.guidance[1] <= 1000:
            raise ValueError(f"guidance: {list(self.guidance)}: two rising scales from 1 on are expected, as [3, 15]")
        return self


@METHODS.register("lcm")
class Lcm(Multistep):
    """Latent consistency distillation with guidance in the teacher's step (LCM: Luo et al., 2023, algorithm 1)."""

    Params: ClassVar[type[Strict]] = LcmParams

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        teacher, student = denoisers(roles)
        told, wanted = is_told(student.net), self.params.guidance
        if wanted is not None and not told:
            raise UserError(
                "method.params.guidance: the student is not told the scale: set student.params.guidance to a width "
                "(256), or leave the range out: data.sampling.guidance alone is then distilled"
            )
        if wanted is None and told and not is_told(teacher.net):
            raise UserError(
                "student.params.guidance: nothing draws scales that the student could be told: give their range, as "
                "method.params.guidance: [3, 15]"
            )
        if wanted is not None and not wanted[0] <= teacher.guidance <= wanted[1]:
            raise UserError(
                f"data.sampling.guidance: {teacher.guidance:g} is not within method.params.guidance {list(wanted)}, "
                "which the student is measured at"
            )

    def own_stages(self) -> Sequence[Stage]:
        return [Stage(STAGE, self.train.steps, STUDENT, ema={"target": Ema("student", self.params.decay)})]

    def prepare(self, stage: Stage, roles: Roles) -> None:
        super().prepare(stage, roles)
        teacher, student = denoisers(roles)
        if self.params.guidance is not None:
            student.guidance = teacher.guidance

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        (teacher, student), labels = denoisers(roles), batch.get("labels")
        target = roles["target"]
        assert isinstance(target, Denoiser)
        scale = self.scales(batch, ctx)
        with ctx.timer.time("teacher"), torch.no_grad():
            z, t, z_after, after = neighbours(teacher, batch, self.grid(teacher.process), "ddim", scale)
            aim = target.consistency(z_after, after, labels, scale)
        with ctx.timer.time("student"):
            said = student.consistency(z, t, labels, scale)
        return mean_distance(said - aim, self.params.distance, self.params.c)

    def scales(self, batch: Batch, ctx: Context) -> Tensor | None:
        """``(b,)`` drawn for each sample; None for the teacher's own."""
        if self.params.guidance is None:
            return None
        low, high = self.params.guidance
        u = torch.rand(len(batch["x"]), generator=ctx.generator("guidance")).to(batch["x"].device)
        scales: Tensor = low + (high - low) * u
        return scales


__all__ = ["Lcm", "LcmParams"]
