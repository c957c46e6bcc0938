"""Consistency trajectory models: jumps of every length, held to each other where they lead, at the clean sample.

CTM (Kim et al., 2024). A jump G(z, t, s) goes from t to s in one DDIM step with the x that the network sees, which here
is told how far it goes (see `intervals`), g(z, t, s). Two ways from z at t to s, the student's own jump and the
teacher's steps to u with a jump from there, are carried on to the clean sample by a jump that no longer learns, and
compared there: softly, as s and u are anywhere below t. Beside it the network learns to denoise, g(z, t, t) being the
diffusion model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import METHODS, Context, Roles
from xmodal_kd.training.modes import frozen

from ..data.condition import Condition
from ..models.denoiser import Denoiser
from ..models.process import Process, expand
from ..models.solvers import ddim_step
from .consistency import mean_distance, moved_on
from .few_step import denoisers
from .intervals import IntervalParams, Intervals, lengthened

#: Of what all passes of a step share: the units that they drop.
DROPOUT = "dropout of all"
#: g(z, t, s) of z ``(b, ...)`` and times ``(b,)``: the x that the network sees for a jump.
Jump = Callable[[Tensor, Tensor, Tensor], Tensor]


class CtmParams(IntervalParams):
    grid: int = Field(16, ge=2)
    """Times among which t, u and s are drawn; must divide the teacher's timesteps."""
    most: int = Field(8, ge=1)
    """Steps of the teacher from t to u, as many in a batch, drawn anew for each: up to so many."""
    solver: Literal["ddim", "heun"] = "ddim"
    """Of these."""
    dsm: float = Field(0.1, ge=0)
    """Weight of denoising score matching, of what a network says (Karras et al.'s weights where that is EDM). The paper
    balances both losses by the gradients of the last layer."""
    own: float = Field(0.3, ge=0, le=1)
    """Share of the samples whose t and s are those of a step of the student's sampler."""
    distance: Literal["l2", "huber"] = "l2"
    """A mean over values of d^2, or of sqrt(d^2 + c^2) - c; the paper's is LPIPS."""
    c: float = Field(1e-3, gt=0)
    """Of ``huber``."""


@METHODS.register("ctm")
class Ctm(Intervals):
    """Consistency trajectory models (CTM: Kim et al., 2024): jumps of every length, and denoising beside them."""

    Params: ClassVar[type[Strict]] = CtmParams

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the grid."""
        super().check(roles)
        grid, steps, T = self.params.grid, self.params.steps, denoisers(roles)[0].process.T
        if T % grid or grid % steps:
            near = min((n for n in range(steps, T + 1, steps) if T % n == 0), key=lambda n: abs(n - grid))
            raise UserError(
                f"method.params.grid: {grid} must divide the teacher's {T} timesteps and be a multiple of "
                f"method.params.steps ({steps}): take {near}"
            )

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        (teacher, student), labels, p = denoisers(roles), batch.get("labels"), self.params
        process = student.process

        def jump(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
            ctx.streams.seed_torch(DROPOUT, ctx.stage.name, ctx.step, ctx.micro)
            return self.seen(student, z, t, s, labels)

        def still(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
            with frozen(student, self.interval):
                return jump(z, t, s)

        with ctx.timer.time("teacher"), torch.no_grad():
            z, reached, times = self.ways(teacher, batch, ctx)
        with ctx.timer.time("student"):
            values = ctm_loss(process, jump, still, z, reached, times, p.distance, p.c)
            if not p.dsm:
                return values
            u = torch.rand(len(z), generator=ctx.generator("denoising")).to(z.device)
            t = (u * process.T).long().clamp(max=process.T - 1)
            noise = torch.randn(z.shape, generator=ctx.generator("denoising noise")).to(z)
            noisy = process.add_noise(batch["x"], noise, t)
            denoises = dsm_loss(process, jump(noisy, t, t), batch["x"], noise, t)
            both: Tensor = values + p.dsm * denoises
            return both

    def seen(self, student: Denoiser, z: Tensor, t: Tensor, s: Tensor, labels: Condition | None) -> Tensor:
        """g(z, t, s) of z ``(b, ...)`` at times t ``(b,)`` from 0 on, down to s."""
        with lengthened(student, self.params.at, self.interval, (t - s).double() / student.process.T):
            return student.predict_x(z, t, labels)

    def ways(self, teacher: Denoiser, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """z at t, where the teacher's steps lead from it at u, and t, u and s ``(b,)``, each at most the one before."""
        p, process, u = self.params, teacher.process, batch["u"]
        count = 1 + int(torch.randint(min(p.most, p.grid // p.steps), (), generator=ctx.generator("teacher steps")))
        times = torch.tensor(process.grid(p.grid)[::-1], device=u.device)  # rising: times[0] = -1 is the clean sample
        draws = torch.rand(2, len(u), generator=ctx.generator("times"), dtype=torch.float64).to(u.device)
        phase, own = p.grid // p.steps, draws[0] < p.own
        step = (u * p.steps).long().clamp(max=p.steps - 1) * phase
        i = count + (u * (p.grid + 1 - count)).long().clamp(max=p.grid - count)
        i = torch.where(own, step + phase, i)
        end = torch.where(own, step, (draws[1] * (i - count + 1)).long().clamp(max=i - count))
        z = reached = process.add_noise(batch["x"], batch["noise"], times[i])
        for k in range(count):
            reached = moved_on(teacher, reached, times[i - k], times[i - k - 1], batch.get("labels"), p.solver)
        return z, reached, (times[i], times[i - count], times[end])


def ctm_loss(
    process: Process, jump: Jump, still: Jump, z: Tensor, reached: Tensor, times: Sequence[Tensor],
    distance: str = "l2", c: float = 1e-3,
) -> Tensor:  # fmt: skip
    """``(b,)`` distances of still(G(z, t, s), s, 0) from still(G(reached, u, s), s, 0): soft consistency (section 3).

    The first has its gradient through `still`, whose weights do not learn, to the jump inside it; the second has none.

    Args:
        jump: g of the student, as which the jump that learns is made.
        still: the same of weights that do not learn: the student's as they are, where the paper has an average.
        z: ``(b, ...)`` at t.
        reached: where the teacher's path leads from z at u.
        times: t, u and s ``(b,)``; -1 is the clean sample, where a jump from it is none.
    """
    t, u, s = times
    clean = torch.full_like(s, -1)

    def go(by: Jump, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        at = t.clamp(min=0)
        moved = ddim_step(process, z, by(z, at, s), at, s)
        return torch.where(expand(t <= s, z).bool(), z, moved)

    estimate = go(still, go(jump, z, t, s), s, clean)
    with torch.no_grad():
        aim = go(still, go(still, reached, u, s), s, clean)
    return mean_distance(estimate - aim, distance, c)


def dsm_loss(process: Process, said: Tensor, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``(b,)`` mean squares of g(z, t, t) - x, in what the process's networks say of z = alpha x + sigma noise.

    Of EDM that is Karras et al.'s weight of (g - x)^2 (2022), 1 / sigma^2 + 1 / sigma_data^2, as CTM's release has it.
    """
    z = process.add_noise(x, noise, t)
    off = process.convert(said, z, t, "sample", process.natural) - process.truth(process.natural, x, noise, t)
    return off.flatten(1).square().mean(dim=1)


__all__ = ["Ctm", "CtmParams", "ctm_loss", "dsm_loss"]
