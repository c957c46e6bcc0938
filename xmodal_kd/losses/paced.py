"""Skewed divergences whose skew follows how far teacher and student are apart on each text."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import item_mean, loss, same_shape
from .logits import kl

Skew = Annotated[float, Field(gt=0, lt=1)]


class _Paced(nn.Module):
    """``a = 1 - (1 - alpha) m / g`` of each text, within `least` and `alpha`, and `alpha` where g is below 0.

    g is how much more probable the text is to the one whose it is, as geometric means over its tokens; m, the mean g of
    the first batch, which all have `alpha` of, stays and is in every checkpoint. No gradient goes through a.
    """

    #: 1 for the teacher's texts, -1 for the student's.
    sign: ClassVar[Literal[1, -1]]
    first: Tensor

    def __init__(self, student_width: int, teacher_width: int, *, alpha: Skew = 0.1, least: Skew = 0.01):
        super().__init__()
        if least > alpha:
            raise ValueError(f"least {least:g} is above alpha {alpha:g}, the most that the skew can be")
        self.alpha, self.least = alpha, least
        self.register_buffer("first", torch.full((), torch.nan))

    def forward(
        self, student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, ""]:  # fmt: skip
        same_shape(student, teacher)
        if not len(item):
            return 0.0 * student.sum()
        log_q, log_p = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
        texts, text = item.unique(return_inverse=True)
        with torch.no_grad():
            p, q = (item_mean(x.gather(1, labels[:, None]), text, len(texts)).exp().squeeze(1) for x in (log_p, log_q))
            gap = self.sign * (p - q)
            skew = self.skews(gap)[text, None]
            self.first.copy_(torch.where(self.first.isnan(), gap.mean(), self.first))
        return item_mean(self.apart(log_p, log_q, skew), text, len(texts)).mean()

    def skews(self, gap: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """a of each text."""
        moved = (1 - (1 - self.alpha) * self.first / (gap + 1e-5)).clamp(self.least, self.alpha)
        return torch.where((gap > 0) & ~self.first.isnan(), moved, torch.full_like(gap, self.alpha))

    @staticmethod
    def apart(log_p: Tensor, log_q: Tensor, skew: Tensor) -> Tensor:
        raise NotImplementedError


@loss(
    "distillm2_skl", reduction="batch", family="adaptive", year=2025, confidence="B",
    paper="Ko et al.: DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs (curriculum of alpha)",
    properties="zero_at_teacher shift_invariant held_weight",
)  # fmt: skip
class PacedSkew(_Paced):
    """``mean_texts mean_tokens KL(p_t || a p_t + (1 - a) p_s)`` on the teacher's texts, with a skew a of each text.

    As `skew_kl` by text, but that a falls where teacher and student agree less than they did in the first batch. The
    tokens of the texts are the labels, or the signal that the term's ``labels`` names (``tokens`` of decoders). The
    curriculum is off in the paper's release, which lets a gradient through a.
    """

    sign = 1

    @staticmethod
    def apart(log_p: Tensor, log_q: Tensor, skew: Tensor) -> Tensor:
        return kl(log_p, torch.logaddexp(log_p + skew.log(), log_q + (-skew).log1p()))


@loss(
    "distillm2_srkl", reduction="batch", family="adaptive", year=2025, confidence="B",
    paper="Ko et al.: DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs (curriculum of alpha)",
    properties="zero_at_teacher shift_invariant held_weight",
)  # fmt: skip
class PacedReverseSkew(_Paced):
    """``mean_texts mean_tokens KL(p_s || (1 - a) p_t + a p_s)`` on the student's own texts, with a skew a of each text.

    As `distillm2_skl`, g being how much more probable a text is to the student. The p_s of the mixture is held, as in
    the release.
    """

    sign = -1

    @staticmethod
    def apart(log_p: Tensor, log_q: Tensor, skew: Tensor) -> Tensor:
        return kl(log_q, torch.logaddexp(log_p + (-skew).log1p(), log_q.detach() + skew.log()))
