"""Losses between class scores: rows are samples, frames, points or pixels; columns are classes in one order."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, loss, same_shape
from .blocks import summed_rows


@loss(
    "kd", reduction="rows", family="logits", year=2015,
    paper="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network",
    properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def kd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, temperature: Positive = 4.0, standardise: bool = False, per_sample: bool = False,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``T^2 KL(softmax(teacher/T) || softmax(student/T))`` of each row.

    The factor T^2 keeps the size of the gradient independent of the temperature (section 2). The sum runs over the
    classes, never a mean over them: weights published for an element mean are smaller by the number of classes.

    Args:
        standardise: bring each row to mean 0 and deviation 1 first, so that the student need not copy the teacher's
            scale (Sun et al., 2024, LSKD). Its scores are then no longer calibrated by the teacher's.
        per_sample: temper each row by `temperature` times its own deviation, on either side (Chi et al., 2023, NormKD);
            the factor is the product of the two temperatures.
    """
    same_shape(student, teacher)
    if standardise:
        student, teacher = standardised(student), standardised(teacher)
    if per_sample:
        t_s, t_t = (temperature * deviation(z) for z in (student, teacher))
        return (t_s * t_t).squeeze(-1) * kl(F.log_softmax(teacher / t_t, dim=-1), F.log_softmax(student / t_s, dim=-1))
    log_p, log_q = (F.log_softmax(z / temperature, dim=-1) for z in (teacher, student))
    return temperature**2 * kl(log_p, log_q)


def deviation(rows: Tensor) -> Tensor:
    """``(n, 1)`` unbiased standard deviation over classes, kept from 0; a flat row has a finite gradient."""
    centred = rows - rows.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / max(rows.shape[-1] - 1, 1)
    return variance.clamp(min=1e-14).sqrt()


def standardised(rows: Tensor) -> Tensor:
    """Each row with mean 0 and deviation 1 over its classes."""
    return (rows - rows.mean(dim=-1, keepdim=True)) / (deviation(rows) + 1e-7)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q)`` of each row, from log-probabilities."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)


@loss(
    "kd_lskd", reduction="rows", family="logits", year=2024,
    paper="Sun et al.: Logit Standardization in Knowledge Distillation",
    properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def kd_lskd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: Positive = 2.0
) -> Float[Tensor, " n"]:
    """`kd` of standardised logits. Published with a weight of 9 beside 0.1 cross-entropy."""
    return kd(student, teacher, temperature=temperature, standardise=True)


@loss(
    "logit_mse", reduction="rows", family="logits", paper="Ba, Caruana: Do Deep Nets Really Need to be Deep?",
    year=2014, properties="zero_at_teacher",
)  # fmt: skip
def logit_mse(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, centre: bool = False
) -> Float[Tensor, " n"]:
    """Mean squared difference of each row's outputs (eq. 1). Also the loss of any regression head.

    Args:
        centre: subtract each row's mean first, so that a constant added to all logits costs nothing.
    """
    same_shape(student, teacher)
    difference = student - teacher
    if centre:
        difference = difference - difference.mean(dim=-1, keepdim=True)
    return difference.square().mean(dim=-1)


def pearson(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Correlation of `x` and `y` along `dim`; 0 where one of them is constant, with a finite gradient."""
    x, y = x - x.mean(dim, keepdim=True), y - y.mean(dim, keepdim=True)
    return F.cosine_similarity(x, y, dim=dim, eps=1e-8)


@loss(
    "dist", reduction="batch", family="relations", paper="Huang et al.: Knowledge Distillation from a Stronger Teacher",
    year=2022, properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def dist(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, temperature: Positive = 1.0, beta: float = 1.0, gamma: float = 1.0,
) -> Float[Tensor, ""]:  # fmt: skip
    """``T^2 (beta inter + gamma intra)``: one minus the correlation of class probabilities, by row and by column.

    `inter` compares how each row ranks the classes, `intra` how each class ranks the rows. Needs at least two rows;
    the columns say little below 16.
    """
    same_shape(student, teacher)
    if len(student) < 2:
        raise ValueError(f"dist compares rows with one another: it needs at least 2, got {len(student)}")
    n, c = student.shape

    def probabilities(*rows: Tensor) -> list[Tensor]:
        return [torch.softmax(x / temperature, dim=-1) for x in rows]

    with torch.no_grad():  # a column's mean needs no gradient: what is centred by it adds up to 0
        means = summed_rows(lambda *rows: torch.stack([p.sum(dim=0) for p in probabilities(*rows)]), student, [teacher])

    def correlated(*rows: Tensor) -> Tensor:
        """Sum of the rows' correlations, and of each column the products that make up its correlation."""
        p_s, p_t = probabilities(*rows)
        x, y = p_s - means[0] / n, p_t - means[1] / n
        inter = pearson(p_s, p_t, dim=1).sum().expand(c)
        return torch.stack([inter, (x * y).sum(dim=0), x.square().sum(dim=0), y.square().sum(dim=0)])

    inter, cross, square_s, square_t = summed_rows(correlated, student, [teacher])
    intra: Tensor = cross / (square_s.clamp(min=1e-16) * square_t.clamp(min=1e-16)).sqrt()
    value: Tensor = beta * (1 - inter[0] / n) + gamma * (1 - intra.mean())
    return temperature**2 * value
