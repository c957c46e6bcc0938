"""Losses between class scores that also read the labels, one a row."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, loss, same_shape
from .logits import kl, standardised


def _check(student: Tensor, labels: Tensor) -> None:
    if labels.shape != student.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} are not one a row of the student {tuple(student.shape)}")


def _at(rows: Tensor, labels: Tensor) -> Tensor:
    """``(n,)`` entry of each row at its label."""
    return rows.gather(1, labels[:, None]).squeeze(1)


@loss(
    "ce", reduction="rows", family="logits", year=2016, properties="shift_invariant",
    paper="Szegedy et al.: Rethinking the Inception Architecture for Computer Vision",
)  # fmt: skip
def ce(
    student: Float[Tensor, "n c"], labels: Int[Tensor, " n"],
    *, smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``-sum_k q[k] log p_s[k]`` with ``q = (1 - smoothing) 1{k=y} + smoothing / c``.

    Without smoothing, ``-log p_s[y]``. The label's own class has its part of the even share, as in section 7.
    """
    _check(student, labels)
    return F.cross_entropy(student, labels, reduction="none", label_smoothing=smoothing)


@loss(
    "hard_label", reduction="rows", family="logits", year=2021, properties="shift_invariant",
    paper="Touvron et al.: Training Data-efficient Image Transformers and Distillation through Attention",
)  # fmt: skip
def hard_label(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> Float[Tensor, " n"]:  # fmt: skip
    """`ce` with the class that the teacher thinks most probable: ``-log p_s[argmax t]`` without smoothing.

    DeiT's hard distillation (eq. 3), published with a weight of 0.5 beside as much of `ce` and no smoothing.
    """
    same_shape(student, teacher)
    return F.cross_entropy(student, teacher.argmax(dim=-1), reduction="none", label_smoothing=smoothing)


@loss(
    "tfkd_reg", reduction="rows", family="self", year=2020, properties="shift_invariant",
    paper="Yuan et al.: Revisiting Knowledge Distillation via Label Smoothing Regularization",
)  # fmt: skip
def tfkd_reg(
    student: Float[Tensor, "n c"], labels: Int[Tensor, " n"],
    *, temperature: Positive = 20.0, correct: Annotated[float, Field(gt=0, lt=1)] = 0.99,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``KL(softmax(u/T) || softmax(student))`` with a hand-made teacher: u is `correct` at the label.

    The student is not tempered and the softmax is taken of probabilities, as in the paper's release. A teacher that
    does not beat this one teaches nothing but smoothing. The release's factor m undoes a mean over classes; here the
    sum is taken.
    """
    _check(student, labels)
    classes = student.shape[-1]
    u = torch.full_like(student, (1 - correct) / max(classes - 1, 1))
    u = u.scatter(1, labels[:, None], correct)
    return kl(F.log_softmax(u / temperature, dim=-1), F.log_softmax(student, dim=-1))


@loss(
    "dkd", reduction="rows", family="logits", year=2022, properties="zero_at_teacher shift_invariant",
    paper="Zhao et al.: Decoupled Knowledge Distillation",
)  # fmt: skip
def dkd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], labels: Int[Tensor, " n"],
    *, temperature: Positive = 4.0, alpha: float = 1.0, beta: float = 8.0, standardise: bool = False,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``T^2 [alpha KL(b_t || b_s) + beta KL(q_t || q_s)]``.

    The label against all the rest, and the rest among themselves (TCKD and NCKD).

    Plain KD weighs the second part by the teacher's doubt, 1 - p_t[y]; here it keeps its weight where the teacher is
    sure. Needs three classes. Warm its weight up over the first epochs, as the paper does.

    Args:
        standardise: as in `kd`.
    """
    same_shape(student, teacher)
    _check(student, labels)
    if student.shape[-1] < 3:
        raise ValueError(f"dkd compares the classes beside the label: it needs at least 3, got {student.shape[-1]}")
    s, t = ((standardised(z) if standardise else z) / temperature for z in (student, teacher))
    return temperature**2 * (
        alpha * kl(_binary(t, labels), _binary(s, labels)) + beta * kl(_others(t, labels), _others(s, labels))
    )


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """``(n, c - 1)`` log-softmax over the classes beside the label."""
    n, c = logits.shape
    keep = torch.ones_like(logits, dtype=torch.bool).scatter(1, labels[:, None], False)
    return F.log_softmax(logits[keep].reshape(n, c - 1), dim=-1)


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    """``(n, 2)`` log-probabilities of the label and of all the rest, not by 1 - p, which rounds doubt away."""
    n, c = logits.shape
    keep = torch.ones_like(logits, dtype=torch.bool).scatter(1, labels[:, None], False)
    rest = torch.logsumexp(logits[keep].reshape(n, c - 1), dim=-1)
    return F.log_softmax(torch.stack([_at(logits, labels), rest], dim=-1), dim=-1)


@loss(
    "nkd", reduction="rows", family="logits", year=2023, properties="shift_invariant",
    paper="Yang et al.: From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized "
    "Loss and Customized Soft Labels",
)  # fmt: skip
def nkd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], labels: Int[Tensor, " n"],
    *, temperature: Positive = 1.0, gamma: float = 1.5,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``-p_t[y] log p_s[y] - gamma T^2 sum_{k != y} q_t[k] log q_s[k]``.

    Cross-entropies, at the label without temperature, among the rest (q, the softmax over it at T) with: an equal
    student does not reach 0. Defaults are those of ImageNet; CIFAR-100 has T = 3 and gamma = 3.5. Needs three classes.
    """
    same_shape(student, teacher)
    _check(student, labels)
    if student.shape[-1] < 3:
        raise ValueError(f"nkd compares the classes beside the label: it needs at least 3, got {student.shape[-1]}")
    log_s, p_t = F.log_softmax(student, dim=-1), torch.softmax(teacher, dim=-1)
    rest = (_others(teacher / temperature, labels).exp() * _others(student / temperature, labels)).sum(dim=-1)
    return -_at(p_t, labels) * _at(log_s, labels) - gamma * temperature**2 * rest


@loss(
    "ntce", reduction="rows", family="logits", year=2024, properties="shift_invariant",
    paper="Li et al.: NTCE-KD: Non-Target-Class-Enhanced Knowledge Distillation",
)  # fmt: skip
def ntce(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], labels: Int[Tensor, " n"],
    *, temperature: Positive = 4.0, factors: tuple[float, ...] = (2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0),
) -> Float[Tensor, " n"]:  # fmt: skip
    """Mean over `factors` f of ``T^2 KL`` after ``f m`` is taken off the target's logit, m the teacher's margin.

    m is the teacher's largest logit less its second: with f = 1 the target ties with the runner-up, and the rest has
    a share of the gradient that it never had. The teacher loses it at its largest logit, the student at the label
    (the release does so: where the teacher errs, these differ). Published with strong augmentation and a weight of 8.
    Needs two classes.
    """
    same_shape(student, teacher)
    _check(student, labels)
    if student.shape[-1] < 2 or not factors:
        raise ValueError(f"ntce takes a margin off: it needs 2 classes and a factor, got {student.shape[-1]} classes")
    best, second = teacher.topk(2, dim=-1).values.unbind(dim=-1)
    margin = (best - second)[:, None]
    at_best = F.one_hot(teacher.argmax(dim=-1), student.shape[-1]) * margin
    at_label = F.one_hot(labels, student.shape[-1]) * margin
    values = [
        kl(*(F.log_softmax(z / temperature, dim=-1) for z in (teacher - f * at_best, student - f * at_label)))
        for f in factors
    ]
    return temperature**2 * torch.stack(values).mean(dim=0)


@loss(
    "wsld", reduction="rows", family="adaptive", year=2021, properties="shift_invariant held_weight",
    paper="Zhou et al.: Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
)  # fmt: skip
def wsld(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], labels: Int[Tensor, " n"],
    *, temperature: Positive = 2.0,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``T^2 w CE(softmax(teacher/T), softmax(student/T))`` with ``w = 1 - exp(-CE(y, s) / CE(y, t))``.

    The weight carries no gradient: rows that the student already knows better than the teacher weigh less. Published
    with a factor of 2.5.
    """
    same_shape(student, teacher)
    _check(student, labels)
    with torch.no_grad():
        ce_s, ce_t = (F.cross_entropy(z, labels, reduction="none") for z in (student, teacher))
        weight = 1 - torch.exp(-ce_s / (ce_t + 1e-7))
    p_t, log_s = torch.softmax(teacher / temperature, dim=-1), F.log_softmax(student / temperature, dim=-1)
    return -(temperature**2) * weight * (p_t * log_s).sum(dim=-1)


@loss(
    "ofa", reduction="rows", family="features", year=2023, properties="shift_invariant",
    paper="Hao et al.: One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
)  # fmt: skip
def ofa(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], labels: Int[Tensor, " n"], *, eps: Positive = 1.0
) -> Float[Tensor, " n"]:
    """``-sum_k [(p_t[k] + 1{k=y})^eps - 1{k=y}] log p_s[k]``.

    The target class weighs the more, the more `eps` is above 1.

    For a stage's own head (a projector to class scores) as well as for the last: `on` names the stage's feature.
    """
    same_shape(student, teacher)
    _check(student, labels)
    is_label = F.one_hot(labels, student.shape[-1]).to(student.dtype)
    target = (torch.softmax(teacher, dim=-1) + is_label).pow(eps) - is_label
    return -(target * F.log_softmax(student, dim=-1)).sum(dim=-1)


@loss(
    "bounded_reg", reduction="rows", family="logits", year=2017, confidence="B", needs="regression",
    paper="Chen et al.: Learning Efficient Object Detection Models with Knowledge Distillation",
    properties="selective",
)  # fmt: skip
def bounded_reg(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], labels: Float[Tensor, "n c"],
    *, margin: Annotated[float, Field(ge=0)] = 0.0,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``|s - y|^2 where |s - y|^2 + m > |t - y|^2, else 0``: the teacher bounds the error, it is no target.

    For real outputs: boxes, durations, pitch. A row on which the student already beats the teacher, by the margin,
    costs nothing. The smooth L1 distance to the labels is a term of its own; published with a weight of 0.5 beside it.
    """
    same_shape(student, teacher)
    if labels.shape != student.shape:
        raise ValueError(f"labels {tuple(labels.shape)} are not one target an output of student {tuple(student.shape)}")
    own, bound = ((rows - labels).square().sum(dim=-1) for rows in (student, teacher))
    return own * (own + margin > bound)
