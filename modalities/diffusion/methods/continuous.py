"""Consistency in continuous time (sCM: Lu and Song, 2024): neighbours on the teacher's path that are infinitely near.

Every process is a pace along the quarter circle z' = cos(a) x + sin(a) eps, with tan(a) = sigma / alpha and z' = z over
the root of alpha^2 + sigma^2; there F is what a network says of v, and x = f = cos(a) z' - sin(a) F.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.training.method import METHODS, Context, Roles, Stage

from ..models.denoiser import Denoiser
from ..models.process import Process, expand
from .few_step import STUDENT, Multistep, MultistepParams, denoisers

STAGE = "continuous"


class ContinuousParams(MultistepParams):
    mean: float = -1.0
    std: float = Field(1.4, gt=0)
    """Of log(sigma / alpha), which is drawn normal."""
    warmup: float = Field(0.5, ge=0, le=1)
    """Share of the steps over which the derivative of the network comes in, from none to all of it."""
    constant: float = Field(0.1, gt=0)
    """c of the tangent's length |g| / (|g| + c)."""
    difference: float = Field(0.02, gt=0, lt=0.1)
    """Angle on either side over which the derivative is taken: central differences, which any network has.

    The derivative itself is no guide where a network sees timesteps: that of its embedding's fastest wave is hundreds
    over the angle, and training by it diverges.
    """


@METHODS.register("scm")
class Scm(Multistep):
    """Consistency distillation in continuous time (sCD: Lu and Song, 2024), by central differences."""

    Params: ClassVar[type[Strict]] = ContinuousParams

    def own_stages(self) -> Sequence[Stage]:
        return [Stage(STAGE, self.train.steps, STUDENT)]

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        (teacher, student), labels, x = denoisers(roles), batch.get("labels"), batch["x"]
        a = self.angles(student.process, batch["u"])
        z = expand(a.cos(), x) * x + expand(a.sin(), x) * batch["noise"]
        with ctx.timer.time("teacher"), torch.no_grad():
            along = velocity(teacher, z, a, labels)
        with ctx.timer.time("student"):
            said = velocity(student, z, a, labels)
            warm = min(1.0, ctx.step / max(1.0, self.params.warmup * ctx.stage.steps)) if self.params.warmup else 1.0
            with torch.no_grad():
                g = self.tangent(student, z, a, said, along, labels, warm, ctx)
        return (said - said.detach() - g).flatten(1).square().mean(dim=1)

    def angles(self, process: Process, u: Tensor) -> Tensor:
        """``(b,)`` in float64, far enough from both ends for the differences."""
        log = self.params.mean + self.params.std * torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))
        highest = torch.atan2(process.sigma(process.T - 1), process.alpha(process.T - 1))
        angles: Tensor = log.exp().atan().clamp(2 * self.params.difference, float(highest) - 2 * self.params.difference)
        return angles

    def tangent(
        self, student: Denoiser, z: Tensor, a: Tensor, said: Tensor, along: Tensor, labels: Tensor | None,
        warm: float, ctx: Context,
    ) -> Tensor:  # fmt: skip
        """g / (|g| + c), g = -cos^2 (F - v) - warm cos sin (z + dF/da), v the teacher's velocity (section 4.1).

        g is cos(a) df/da along the teacher's path where `warm` is 1. Both sides of dF/da drop the same units.
        """
        h, sides = self.params.difference, []
        for sign in (1, -1):
            with ctx.streams.forked("dropout of both", ctx.stage.name, ctx.step, ctx.micro):
                sides.append(velocity(student, z + sign * h * along, a + sign * h, labels))
        slope = (sides[0] - sides[1]) / (2 * h)
        cos, sin = expand(a.cos(), z), expand(a.sin(), z)
        g = -cos.square() * (said.detach() - along) - warm * cos * sin * (z + slope)
        length = g.flatten(1).norm(dim=1)
        tangent: Tensor = g / expand(length + self.params.constant, g)
        return tangent


def velocity(model: Denoiser, z: Tensor, a: Tensor, labels: Tensor | None) -> Tensor:
    """F of points ``(b, ...)`` of the circle at angles ``(b,)``: what the model says of cos(a) eps - sin(a) x."""
    process = model.process
    t = process.time_of(a.tan())
    alpha, sigma = process.pair(t, z)
    radius = (alpha.square() + sigma.square()).sqrt()
    return model.predict("v_prediction", radius * z, t, labels) / radius


__all__ = ["ContinuousParams", "Scm", "velocity"]
