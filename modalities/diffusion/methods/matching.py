"""Distribution matching: the student's samples are moved to where the teacher finds them likelier than a critic does.

DMD2 (Yin et al., 2024b). A second denoiser, the fake one, follows the student's samples at a faster pace; the
difference of the two is the gradient of the divergence between what the student makes and what the teacher models. It
needs no pairs of noise and sample to regress on, which DMD (Yin et al., 2024a) had: `regression` adds them. Beside it a
discriminator on the fake one's features may pull the samples towards the data (section 4.3), which is how a student
can pass its teacher. It knows the ratio of the densities too, by which the gradient is that of another divergence than
the reverse KL (f-distill: Xu et al., 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import METHODS, Context, Roles, Stage
from xmodal_kd.training.modes import frozen

from ..models.denoiser import Denoiser
from .critic import STAGE, Critic, FakeParams, noised
from .discriminator import head_for, judged, read_at
from .few_step import denoisers, masked
from .pairs import Pairs, draw_pairs

#: h(r) = f''(r) r^2 of f-divergences, r being the density of real over that of generated data (f-distill, table 1).
DIVERGENCES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": lambda r: r,
    "jensen_shannon": lambda r: r / (1 + r),
    "hellinger": torch.sqrt,
    "jeffreys": lambda r: 1 + r,
    "softened_reverse_kl": lambda r: 1 / (1 + r),
}
#: Bounds of the ratio, beyond which a discriminator is not believed.
RATIOS = (0.1, 20.0)


class MatchingParams(FakeParams):
    gan: float = Field(0.0, ge=0)
    """Weight of the student's adversarial loss beside the matching (the paper's is 0.003). 0: no discriminator."""
    gan_critic: float = Field(0.01, gt=0)
    """Weight of the discriminator's own loss beside the fake denoiser's, whose features it reads."""
    at: str = "net.mid_block"
    """The module of the fake denoiser whose output the discriminator reads."""
    divergence: Literal[
        "reverse_kl", "forward_kl", "jensen_shannon", "hellinger", "jeffreys", "softened_reverse_kl"
    ] = "reverse_kl"
    """Of which the gradient is followed; any but ``reverse_kl`` asks the discriminator for the ratio of densities."""
    regression: float = Field(0.0, ge=0)
    """Weight of the distance from what the teacher makes of the same noise, beside the matching (DMD has 0.25). 0: no
    pairs. Of students of one step."""
    pairs: int = Field(4096, ge=2)
    """Noise and samples of the teacher, drawn before the first step; held in memory and in checkpoints."""


@METHODS.register("dmd2")
class Dmd2(Critic):
    """Distribution matching with a faster critic and no regression (DMD2: Yin et al., 2024), its GAN if asked for."""

    Params: ClassVar[type[Strict]] = MatchingParams

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        #: There are none before the stage begins, and never without a regression.
        self.pairs: nn.Module = nn.Module()

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        if self.params.regression and self.params.steps > 1:
            raise UserError(
                f"method.params.regression: pairs start from noise, a student of {self.params.steps} steps does so "
                "once: set method.params.steps to 1, or leave the regression out"
            )
        if self.params.gan:
            read_at(denoisers(roles)[1], self.params.at)
        elif self.params.divergence != "reverse_kl":
            raise UserError(
                f"method.params.divergence: {self.params.divergence} needs the discriminator's ratio of densities: set "
                "method.params.gan above 0"
            )

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        optimizers = super().begin(stage, roles, batch)
        if stage.name == STAGE and self.params.regression:
            count = min(self.params.pairs, stage.steps * len(batch["x"]))  # a rehearsal sees few
            generator = self.distil.streams.torch("pairs", stage.name)
            self.pairs = draw_pairs(denoisers(roles)[0], count, batch["x"], generator, self.prompts())
        return optimizers

    def turns(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        """The critic's, then the student's, with the regression where there is one."""
        for name, out in super().turns(batch, roles, ctx):
            if name == "student" and self.params.regression:
                with ctx.timer.time("student"):
                    out += masked("regression", self.apart(denoisers(roles)[1], ctx), self.params.regression)
            yield name, out

    def discriminator(self, batch: Batch) -> nn.Module:
        if not self.params.gan:
            return nn.Module()
        assert isinstance(self.fake, Denoiser)
        with self.distil.streams.forked("discriminator"):
            return head_for(self.fake, self.params.at, batch["x"], batch.get("labels"))

    # ---------------------------------------------------------------- what is minimised

    def student_loss(self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context) -> LossOut:
        labels, noisy = batch.get("labels"), self.noisy(batch, ctx, "student")
        with ctx.timer.time("teacher"):
            pull = self.gradient(teacher, fake, made.detach(), labels, *noisy)
        if self.params.divergence != "reverse_kl":
            with ctx.timer.time("critic"):
                h = self.weights(fake, made.detach(), labels, *noisy)
            pull = pull * h.reshape(-1, *[1] * (pull.ndim - 1)).to(pull)
        out = masked("dmd2", 0.5 * (made - (made.detach() - pull)).flatten(1).square().mean(dim=1))
        if self.params.gan:
            with ctx.timer.time("critic"):
                doubts = self.doubts(fake, made, labels, *self.noisy(batch, ctx, "judged"))
            out += masked("gan", doubts, self.params.gan)
        return out

    def apart(self, student: Denoiser, ctx: Context) -> Tensor:
        """``(b,)`` mean squares of the student's samples less the teacher's of the same noise (DMD's regression)."""
        pairs, process = self.pairs, student.process
        assert isinstance(pairs, Pairs)
        noise, x, labels = pairs.some(self.train.batch_size, ctx.generator("pairs"))
        t = torch.full((len(x),), process.T - 1, device=x.device)
        return (student.consistency(process.start * noise, t, labels) - x).flatten(1).square().mean(dim=1)

    @torch.no_grad()
    def weights(self, fake: Denoiser, x: Tensor, labels: Tensor | None, noise: Tensor, u: Tensor) -> Tensor:
        """``(b,)`` h of the density ratios of samples made noisy as in `gradient`, over their mean (algorithm 1)."""
        t = self.times(fake.process.T, u)
        z = fake.process.add_noise(x, noise, t)
        _, logits = self.judged(fake, lambda: fake(z, t, labels))
        h = DIVERGENCES[self.params.divergence](logits.double().exp().clamp(*RATIOS))
        return h / h.mean()

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

    def critic_loss(
        self, teacher: Denoiser, fake: Denoiser, made: Tensor, batch: Batch, ctx: Context, turn: int
    ) -> LossOut:
        """Of the fake denoiser on samples ``(b, ...)``, and of its head on them and on as many of the data (eq. 5)."""
        labels, (noise, u), real = batch.get("labels"), self.noisy(batch, ctx, turn), batch["x"]
        if not self.params.gan:
            return super().critic_loss(teacher, fake, made, batch, ctx, turn)
        errors, of_made = self.judged(fake, lambda: self.fake_errors(fake, made, labels, noise, u))
        z, t = noised(fake, real, self.normal(batch, ctx, "real", turn), u)
        _, of_real = self.judged(fake, lambda: fake(z, t, labels))
        told = F.softplus(of_made) + F.softplus(-of_real)
        return masked("fake", errors) + masked("discriminator", told, self.params.gan_critic)

    def doubts(self, fake: Denoiser, x: Tensor, labels: Tensor | None, noise: Tensor, u: Tensor) -> Tensor:
        """``(b,)`` -log D of samples ``(b, ...)`` made noisy, the loss that does not saturate; it moves them alone."""
        z, t = noised(fake, x, noise, u)
        with frozen(fake, self.head):
            _, logits = self.judged(fake, lambda: fake(z, t, labels))
        return F.softplus(-logits)

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "pairs": self.pairs}

    def judged(self, fake: Denoiser, call: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        return judged(fake, self.head, self.params.at, call)


__all__ = ["DIVERGENCES", "STAGE", "Dmd2", "MatchingParams"]
