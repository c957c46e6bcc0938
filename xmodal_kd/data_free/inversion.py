"""Inputs that gradients make of noise, by the statistics that a teacher's BatchNorm keeps: `deepinversion`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Input, Strict
from ..losses.base import full_precision
from ..objective.parts import LossOut
from ..runtime.errors import UserError
from ..training.method import METHODS, Context, Roles
from ..training.modes import evaluating, frozen
from .base import DataFree, MadeParams, like_of


class InversionParams(MadeParams):
    every: int = Field(10, ge=1)
    """Steps of the training between two batches that are made."""
    bank: int = Field(16, ge=1, le=4096)
    """Batches that are kept for the student to learn from; a new one takes the oldest one's place."""
    steps: int = Field(100, ge=1)
    """Steps by which a batch is made of noise."""
    input_lr: float = Field(0.1, gt=0)
    """Their learning rate, of Adam, in shares of half the input's range."""
    tv: float = Field(1e-4, ge=0)
    """Weight of the norms of the differences of neighbours."""
    l2: float = Field(1e-5, ge=0)
    """Weight of the mean norm of an input."""
    statistics: float = Field(0.05, ge=0)
    """Weight of the distance from the statistics of the teacher's BatchNorm."""
    first: float = Field(1.0, ge=0)
    """What the first layer's is multiplied by; the release for ImageNet has 10."""
    compete: float = Field(1.0, ge=0)
    """Weight of Adaptive DeepInversion: that the student answers otherwise than the teacher; 0: it is not asked."""


@METHODS.register("deepinversion")
class DeepInversion(DataFree):
    """Inputs made of noise by gradients, whose features have the statistics of the teacher's data (Yin et al., 2020).

    "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, eq. 2 to 8: Adam on the inputs,
    for classes drawn evenly, of CE(t, y) + tv R_TV + l2 R_l2 + statistics R_feature + compete (1 - JS(t, s));
    R_feature is the sum over the teacher's BatchNorm layers of the norms of what mean and variance of their input lack
    from the kept ones. Values stay within the input's range. A batch of inputs is made at every ``every``th step, for
    the student as it then is, and it learns from a bank of the last ones. The jitter and the mirroring of inputs while
    they are made are not built. A teacher without BatchNorm has no such statistics and is refused.
    """

    Params: ClassVar[type[Strict]] = InversionParams
    paper, year = "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", 2020

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        #: Holds the kept inputs as a buffer, so that a checkpoint does.
        self.bank = nn.Module()

    @classmethod
    def draw(cls, params: Any, asked: Input, generator: torch.Generator) -> dict[str, Tensor]:
        """Noise, and for each of the student's steps which of the bank it learns from, as a number in [0, 1)."""
        return {
            "x": torch.randn(asked.shape, generator=generator),
            "class": torch.rand((), generator=generator),
            "pick": torch.rand(params.student_steps, generator=generator),
        }

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        if not kept_statistics(roles[self.teacher]):
            raise UserError(
                "method deepinversion reads the statistics of the teacher's BatchNorm, and this teacher has none: give "
                "one with BatchNorm, or use the method dafl, zskt or dfad"
            )

    def prepare(self, roles: Roles) -> Mapping[str, Optimizer]:
        if not hasattr(self.bank, "inputs"):
            asked, like = self.asked(self.adapter), like_of(roles[self.role])
            room = self.params.bank * self.train.batch_size
            self.bank.register_buffer("inputs", like.new_zeros(room, *asked.shape))
            self.bank.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        return {}

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "bank": self.bank}

    def inputs(self, batch: Batch, turn: int = 0) -> Tensor:
        bank: Any = self.bank
        kept = min(int(bank.filled), len(bank.inputs))
        found: Tensor = bank.inputs[(batch["pick"][:, turn].to(bank.inputs.device) * kept).long()]
        return found

    def turns(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        if ctx.step % self.params.every == 0:
            with ctx.timer.time("teacher"):
                self.keep(ctx.ranks.gather_rows(self.make(batch, roles)))
        for turn in range(self.params.student_steps):
            yield self.role, self.learns(self.inputs(batch, turn), roles, ctx)

    def keep(self, made: Tensor) -> None:
        """Into the bank, in the place of the oldest."""
        bank: Any = self.bank
        places = (int(bank.filled) + torch.arange(len(made), device=made.device)) % len(bank.inputs)
        bank.inputs[places] = made
        bank.filled += len(made)

    def make(self, batch: Batch, roles: Roles) -> Tensor:
        """``(b, *shape)``: inputs of noise, for a student in eval mode."""
        asked, like, student = self.asked(self.adapter), like_of(roles[self.role]), roles[self.role]
        half, middle = (asked.high - asked.low) / 2, (asked.high + asked.low) / 2
        x: Tensor = (middle + half * batch["x"].to(like)).clamp(asked.low, asked.high)
        classes: Tensor | None = None
        moments = torch.zeros_like(x), torch.zeros_like(x)
        with torch.enable_grad(), evaluating(student), frozen(student):
            for step in range(1, self.params.steps + 1):
                x.requires_grad_()
                value, classes = self.value(x + 0, batch, roles, classes)
                (slope,) = torch.autograd.grad(value, x)
                x = adam(x.detach(), slope, moments, step, half * self.params.input_lr).clamp(asked.low, asked.high)
        return x

    def value(self, x: Tensor, batch: Batch, roles: Roles, classes: Tensor | None) -> tuple[Tensor, Tensor]:
        """What inputs are made to minimise, and the class of each row."""
        p, teacher = self.params, roles[self.teacher]
        layers = kept_statistics(teacher)
        with fed(layers) as given:
            rows, layout = self.said(self.teacher, roles, x)["logits"]
        logits = full_precision(rows[layout.mask])
        if classes is None:
            share = batch["class"].to(x.device)[layout.item[layout.mask]]
            classes = (share * logits.shape[1]).long()
        value = F.cross_entropy(logits, classes) + p.tv * total_variation(x) + p.l2 * x.flatten(1).norm(dim=1).mean()
        for place, layer in enumerate(layers):
            value = value + p.statistics * (p.first if place == 0 else 1.0) * apart(layer, given[place])
        if p.compete > 0:
            own, mask = self.said(self.role, roles, x)["logits"]
            value = value + p.compete * (1 - jensen_shannon(logits, full_precision(own[mask.mask])))
        return value, classes


def kept_statistics(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep a mean and a variance."""
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]


@contextmanager
def fed(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What each layer is given last within the block."""
    given: list[Any] = [None] * len(layers)
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, i=i: given.__setitem__(i, args[0]))
        for i, layer in enumerate(layers)
    ]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def apart(layer: _BatchNorm, x: Tensor) -> Tensor:
    """``||var - kept var||_2 + ||mean - kept mean||_2`` over the channels of ``(b, c, ...)``, variances biased."""
    assert layer.running_mean is not None and layer.running_var is not None
    rows = full_precision(x).transpose(0, 1).flatten(1)
    variance = rows.var(dim=1, unbiased=False)
    found: Tensor = (layer.running_var - variance).norm() + (layer.running_mean - rows.mean(dim=1)).norm()
    return found


def total_variation(x: Tensor) -> Tensor:
    """Sum over four directions of the norm of the differences of neighbours, of a whole batch ``(b, c, h, w)``."""
    along = (
        x[..., :-1] - x[..., 1:], x[..., :-1, :] - x[..., 1:, :],
        x[..., 1:, :-1] - x[..., :-1, 1:], x[..., :-1, :-1] - x[..., 1:, 1:],
    )  # fmt: skip
    return torch.stack([one.norm() for one in along]).sum()


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """Mean over rows of ``1/2 KL(p || m) + 1/2 KL(q || m)``, m the mean of both; natural logarithm, 0 to ln 2."""
    log_p, log_q = one.log_softmax(dim=1), other.log_softmax(dim=1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(log_p.new_tensor(2.0))
    apart = [F.kl_div(log_m, side, reduction="batchmean", log_target=True) for side in (log_p, log_q)]
    return torch.stack(apart).mean()


def adam(x: Tensor, slope: Tensor, moments: tuple[Tensor, Tensor], step: int, lr: float) -> Tensor:
    """One step of Adam (betas 0.5 and 0.9, as in the release for ImageNet), whose moments it changes."""
    first, second = moments
    first.lerp_(slope, 0.5)
    second.lerp_(slope.square(), 0.1)
    return x - lr * (first / (1 - 0.5**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-8)


__all__ = ["DeepInversion", "InversionParams", "apart", "jensen_shannon", "kept_statistics", "total_variation"]
