"""Divergences between class distributions beside the forward KL: symmetric, skewed, for independent labels."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, loss, same_shape
from .logits import kl

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]


def _tempered(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both sides."""
    same_shape(student, teacher)
    return F.log_softmax(student / temperature, dim=-1), F.log_softmax(teacher / temperature, dim=-1)


def _log_mixture(a: Tensor, b: Tensor, share: float) -> Tensor:
    """``log(share e^a + (1 - share) e^b)``, never through a probability that underflows."""
    return torch.logaddexp(a + math.log(share), b + math.log1p(-share))


@loss(
    "gjsd", reduction="rows", family="logits", year=2024,
    paper="Agarwal et al.: On-Policy Distillation of Language Models (generalised Jensen-Shannon divergence)",
    properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def gjsd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, beta: Share = 0.5, temperature: Positive = 1.0
) -> Float[Tensor, " n"]:
    """``T^2 [beta KL(p_t || m) + (1 - beta) KL(p_s || m)]`` with ``m = beta p_t + (1 - beta) p_s``.

    It vanishes at both ends, so `beta` 0 is the forward KL(p_t || p_s) and 1 the reverse KL(p_s || p_t), which are the
    limits of the value divided by beta, and by 1 - beta.
    """
    log_s, log_t = _tempered(student, teacher, temperature)
    if beta in (0.0, 1.0):
        return temperature**2 * (kl(log_t, log_s) if beta == 0 else kl(log_s, log_t))
    log_m = _log_mixture(log_t, log_s, beta)
    return temperature**2 * (beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m))


@loss(
    "skew_kl", reduction="rows", family="logits", year=2024,
    paper="Ko et al.: DistiLLM: Towards Streamlined Distillation for Large Language Models",
    properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def skew_kl(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, alpha: OpenShare = 0.1, temperature: Positive = 1.0,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``T^2 KL(p_t || alpha p_t + (1 - alpha) p_s)``: bounded gradients, for peaky teachers."""
    log_s, log_t = _tempered(student, teacher, temperature)
    return temperature**2 * kl(log_t, _log_mixture(log_t, log_s, alpha))


@loss(
    "skew_rkl", reduction="rows", family="logits", year=2024,
    paper="Ko et al.: DistiLLM: Towards Streamlined Distillation for Large Language Models",
    properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def skew_rkl(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, alpha: OpenShare = 0.1, temperature: Positive = 1.0, held: bool = False,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``T^2 KL(p_s || (1 - alpha) p_t + alpha p_s)``: the reverse of `skew_kl`, seeking the teacher's modes.

    Args:
        held: whether no gradient goes through the p_s of the mixture, as in the release of DistiLLM-2.
    """
    log_s, log_t = _tempered(student, teacher, temperature)
    mixed = log_s.detach() if held else log_s
    return temperature**2 * kl(log_s, _log_mixture(mixed, log_t, alpha))


@loss(
    "abkd", reduction="rows", family="logits", year=2025, properties="zero_at_teacher shift_invariant",
    paper="Wang et al.: ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via "
    "alpha-beta-Divergence",
)  # fmt: skip
def abkd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, alpha: float = 0.5, beta: float = 0.5, temperature: Positive = 1.0,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``-1/(ab) sum_k (p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b))``, p the teacher, q the student, both at T.

    The alpha-beta divergence (Cichocki et al., 2011): (1, 0) is KL(p || q), (0, 1) is KL(q || p), (1/2, 1/2) four times
    the squared Hellinger distance. Where a, b or a + b is 0 the value is the formula's limit; the release divides there
    by another power of it. No T^2.
    """
    log_q, log_p = _tempered(student, teacher, temperature)
    return _alpha_beta(log_p, log_q, alpha, beta).sum(dim=-1)


def _alpha_beta(log_p: Tensor, log_q: Tensor, a: float, b: float) -> Tensor:
    """Each class's share of the alpha-beta divergence, its limit where the formula divides by 0."""
    if a == b == 0:
        return (log_p - log_q).square() / 2
    if a + b == 0:
        ratio = a * (log_p - log_q)
        return (torch.expm1(ratio) - ratio) / a**2
    if b == 0:
        return ((a * log_p).exp() * a * (log_p - log_q) - (a * log_p).exp() + (a * log_q).exp()) / a**2
    if a == 0:
        return _alpha_beta(log_q, log_p, b, a)
    both = (a * log_p + b * log_q).exp()
    return (a * ((a + b) * log_p).exp() + b * ((a + b) * log_q).exp() - (a + b) * both) / (a * b * (a + b))


@loss(
    "multi_label", reduction="rows", family="logits", year=2015,
    paper="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (independent labels)",
)  # fmt: skip
def multi_label(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: Positive = 1.0
) -> Float[Tensor, " n"]:
    """``T^2 mean_k BCE(sigmoid(teacher/T), sigmoid(student/T))``: for classes that do not exclude one another.

    Least at student = teacher, where it is the teacher's entropy.
    """
    same_shape(student, teacher)
    target = torch.sigmoid(teacher / temperature)
    values = F.binary_cross_entropy_with_logits(student / temperature, target, reduction="none")
    return temperature**2 * values.mean(dim=-1)


@loss(
    "weighted_ce", reduction="rows", family="logits", year=2017, confidence="B",
    properties="shift_invariant numbered",
    paper="Chen et al.: Learning Efficient Object Detection Models with Knowledge Distillation",
)  # fmt: skip
def weighted_ce(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, background: Annotated[int, Field(ge=0)] = 0, background_weight: Positive = 1.5,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``-sum_c w_c p_t log p_s`` with a weight of its own for the background class which outnumbers the rest.

    Least where p_s is proportional to ``w p_t``, which is not quite the teacher.
    """
    same_shape(student, teacher)
    if background >= student.shape[-1]:
        raise ValueError(f"background class {background} of {student.shape[-1]} classes")
    weights = torch.ones(student.shape[-1], dtype=student.dtype, device=student.device)
    weights[background] = background_weight
    return -(weights * torch.softmax(teacher, dim=-1) * F.log_softmax(student, dim=-1)).sum(dim=-1)
