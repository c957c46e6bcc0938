"""Losses between class scores: rows are samples, frames, points or pixels; columns are classes in one order."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, item_mean, loss, same_shape
from .blocks import summed_rows
from .guards import centred, deviation, direction, inverse_root, varies

#: What probabilities may vary by and still rank something.
TINY = 1e-8
#: A probability, or how much of two is the first.
Share = Annotated[float, Field(ge=0, le=1)]


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
        per_sample: temper each row by `temperature` times its own deviation, on either side (Chi et al., 2023, NormKD).
            The factor is the square of the teacher's temperature, a constant of the row, as in the release: the loss
            does not depend on the student's scale. A constant row counts as even.
    """
    return _kd(student, teacher, temperature, standardise, per_sample)


def _kd(student: Tensor, teacher: Tensor, temperature: float, standardise: bool, per_sample: bool) -> Tensor:
    same_shape(student, teacher)
    if standardise:
        student, teacher = standardised(student), standardised(teacher)
    if per_sample:
        factor = (temperature * deviation(centred(teacher, dim=-1))).square().squeeze(-1)
        student, teacher = (standardised(z, added=0.0) for z in (student, teacher))
    else:
        factor = temperature**2  # type: ignore[assignment]
    log_p, log_q = (F.log_softmax(z / temperature, dim=-1) for z in (teacher, student))
    return factor * kl(log_p, log_q)


def standardised(rows: Tensor, *, added: float = 1e-7) -> Tensor:
    """Each row with mean 0 and unbiased deviation 1 over its classes; 0, without gradient, where it is constant.

    Args:
        added: to the deviation, as Sun et al. (2024) have it.
    """
    moved = centred(rows, dim=-1)
    size = deviation(moved)
    alive = size > 0
    return moved * (alive / torch.where(alive, size + added, 1.0))


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
    return _kd(student, teacher, temperature, True, False)


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


@loss(
    "tkd", reduction="items", family="logits", year=2020,
    paper="Farhadi, Yang: TKD: Temporal Knowledge Distillation for Active Perception",
    properties="zero_at_teacher held_weight selective",
)  # fmt: skip
def tkd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    *, sure: Share = 0.2, objectness: Annotated[int, Field(ge=0)] | None = None, blend: Share = 0.4,
    bound: Annotated[float, Field(ge=0)] = 0.3,
) -> Float[Tensor, " b"]:  # fmt: skip
    """Mean squared difference of an item's outputs from a target between teacher and student, with a bound below.

    The target is the teacher's row where the teacher is sure, elsewhere ``blend teacher + (1 - blend) student``, whose
    student is held fixed (section 3.3, the teacher-bounded loss; its numbers are the release's). An item whose loss is
    at most `bound` has that value and no gradient: with one frame an item, and the scheme `tkd`, that is no step.

    Args:
        sure: least probability of the teacher's first class in a row that is taken as it is. With `objectness`, of that
            column's sigmoid: the paper's, whose outputs are a detector's.
        objectness: column of a detector's raw objectness.
    """
    same_shape(student, teacher)
    if objectness is None:
        confidence = teacher.softmax(dim=-1).amax(dim=-1)
    elif objectness < teacher.shape[1]:
        confidence = teacher[:, objectness].sigmoid()
    else:
        raise ValueError(f"objectness is column {objectness} of {teacher.shape[1]}, which count from 0")
    target = torch.where((confidence >= sure)[:, None], teacher, torch.lerp(student.detach(), teacher, blend))
    values = item_mean((student - target).square().mean(dim=-1), item, items)
    return torch.where(values > bound, values, values.detach())


@loss(
    "logit_mae", reduction="rows", family="logits", paper="Fang et al.: Data-Free Adversarial Distillation", year=2019,
    properties="zero_at_teacher",
)  # fmt: skip
def logit_mae(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Mean absolute difference of each row's outputs (eq. 4, over the classes as in the release).

    Its gradient does not fade as the two draw near, which the student of the method `dfad` lives on.
    """
    same_shape(student, teacher)
    return (student - teacher).abs().mean(dim=-1)


@loss(
    "ttm", reduction="rows", family="logits", year=2024, properties="shift_invariant",
    paper="Zheng, Yang: Knowledge Distillation Based on Transformed Teacher Matching",
)  # fmt: skip
def ttm(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: Positive = 4.0
) -> Float[Tensor, " n"]:
    """``KL(softmax(teacher/T) || softmax(student))``: only the teacher is tempered, without the factor T^2.

    What `kd` has less is a Renyi entropy of the student, which keeps it from being too sure. The papers tune 1/T for
    each pair of networks; this default is that of `kd`.
    """
    same_shape(student, teacher)
    return kl(F.log_softmax(teacher / temperature, dim=-1), F.log_softmax(student, dim=-1))


@loss(
    "wttm", reduction="rows", family="logits", year=2024, properties="shift_invariant",
    paper="Zheng, Yang: Knowledge Distillation Based on Transformed Teacher Matching",
)  # fmt: skip
def wttm(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: Positive = 4.0
) -> Float[Tensor, " n"]:
    """``w KL(softmax(teacher/T) || softmax(student))`` with ``w = sum_k p_t[k]^(1/T)``: `ttm`, a doubtful row first.

    The weight is 1 where the teacher is certain and c^(1 - 1/T) where it is even.
    """
    same_shape(student, teacher)
    log_power = F.log_softmax(teacher, dim=-1) / temperature
    log_size = log_power.logsumexp(dim=-1, keepdim=True)
    return log_size.squeeze(-1).exp() * kl(log_power - log_size, F.log_softmax(student, dim=-1))


@loss(
    "spherical_kd", reduction="rows", family="logits", year=2020, confidence="B",
    paper="Guo et al.: Reducing the Teacher-Student Gap via Spherical Knowledge Distillation",
    properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def spherical_kd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: Positive = 4.0
) -> Float[Tensor, " n"]:
    """``T^2 KL(softmax(teacher/T) || softmax(r student/T))``: the student's row at the length of the teacher's.

    ``r`` is the unbiased deviation of the teacher's row over that of the student's, as in the release; the deviation
    of the student has a gradient. A constant row of the student is even. The paper's other reading, both rows divided
    by their norms and multiplied by the teacher's mean norm over the batch, is not here: a row would depend on others.
    """
    same_shape(student, teacher)
    length = deviation(centred(teacher, dim=-1))
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * kl(log_p, F.log_softmax(length * standardised(student, added=0.0) / temperature, dim=-1))


@loss(
    "ikl", reduction="rows", family="logits", year=2024, properties="shift_invariant",
    paper="Cui et al.: Decoupled Kullback-Leibler Divergence Loss",
)  # fmt: skip
def ikl(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, alpha: float = 1.0, beta: float = 8.0, temperature: Positive = 4.0, weight_temperature: Positive = 100.0,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``beta/4 sum_jk w_j w_k (d_j - d_k)^2 - alpha sum_k p_t log p_s`` with ``d = teacher - student``.

    The KL divergence is, by its gradient, a weighted squared error of differences of logits and a cross-entropy, the
    first of which gives the student nothing; here both do. ``p`` is at T, without T^2, ``d`` plain,
    ``w = softmax(teacher / weight_temperature)``. The double sum is twice the variance of d under w. The paper's global
    weights, the mean teacher of the label's class, are not here. Defaults are those of CIFAR-100 in the first release.
    """
    same_shape(student, teacher)
    weight, difference = torch.softmax(teacher / weight_temperature, dim=-1), teacher - student
    spread = difference - (weight * difference).sum(dim=-1, keepdim=True)
    p_t, log_s = torch.softmax(teacher / temperature, dim=-1), F.log_softmax(student / temperature, dim=-1)
    return beta / 2 * (weight * spread.square()).sum(dim=-1) - alpha * (p_t * log_s).sum(dim=-1)


def pearson(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Correlation of `x` and `y` along `dim`; 0, without gradient, where one of them is constant."""
    x, y = (direction(centred(z, dim), dim, least=TINY) for z in (x, y))
    return (x * y).sum(dim=dim)


@loss(
    "dist", reduction="batch", family="relations", paper="Huang et al.: Knowledge Distillation from a Stronger Teacher",
    year=2022, properties="zero_at_teacher shift_invariant",
)  # fmt: skip
def dist(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, temperature: Positive = 1.0, beta: float = 1.0, gamma: float = 1.0, standardise: bool = False,
) -> Float[Tensor, ""]:  # fmt: skip
    """``T^2 (beta inter + gamma intra)``: one minus the correlation of class probabilities, by row and by column.

    `inter` compares how each row ranks the classes, `intra` how each class ranks the rows. Needs at least two rows;
    the columns say little below 16. One class alone has nothing to rank, and the value is 0.

    Args:
        standardise: as in `kd`.
    """
    same_shape(student, teacher)
    if len(student) < 2:
        raise ValueError(f"dist compares rows with one another: it needs at least 2, got {len(student)}")
    n, c = student.shape
    if c == 1:
        return 0.0 * student.sum()

    def probabilities(*rows: Tensor) -> list[Tensor]:
        scaled = map(standardised, rows) if standardise else rows
        return [torch.softmax(x / temperature, dim=-1) for x in scaled]

    with torch.no_grad():  # a column's mean needs no gradient: what is centred by it adds up to 0
        means = summed_rows(lambda *rows: torch.stack([p.sum(dim=0) for p in probabilities(*rows)]), student, [teacher])

    def correlated(*rows: Tensor) -> Tensor:
        """Sum of the rows' correlations, and of each column the products that make up its correlation."""
        p_s, p_t = probabilities(*rows)
        x, y = p_s - means[0] / n, p_t - means[1] / n
        inter = pearson(p_s, p_t, dim=1).sum().expand(c)
        return torch.stack([inter, (x * y).sum(dim=0), x.square().sum(dim=0), y.square().sum(dim=0)])

    inter, cross, square_s, square_t = summed_rows(correlated, student, [teacher])
    size_s, size_t = square_s.detach() + means[0].square() / n, square_t + means[1].square() / n
    varied = varies(square_s, size_s) & varies(square_t, size_t)
    intra: Tensor = cross * varied * inverse_root(square_s, TINY) * inverse_root(square_t, TINY)
    value: Tensor = beta * (1 - inter[0] / n) + gamma * (1 - intra.mean())
    return temperature**2 * value
