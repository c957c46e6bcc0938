"""Losses of centre heads: rows are cells of the ground, labels the right heat (`labels`) or boxes (`box_labels`)."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.losses.base import item_sum, loss, same_shape

Exponent = Annotated[float, Field(ge=0)]
Columns = tuple[Annotated[float, Field(ge=0)], ...]


def _targets(student: Tensor, labels: Tensor) -> None:
    if labels.shape != student.shape or not labels.is_floating_point():
        raise ValueError(
            f"labels {tuple(labels.shape)} are not one real target an output of student {tuple(student.shape)}"
        )


@loss(
    "gaussian_focal", reduction="items", family="detection", year=2018, needs="logits regression",
    paper="Law, Deng: CornerNet: Detecting Objects as Paired Keypoints",
)  # fmt: skip
def gaussian_focal(
    student: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int, labels: Float[Tensor, "n c"],
    *, alpha: Exponent = 2.0, beta: Exponent = 4.0,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:  # fmt: skip
    """``-(1 - p)^alpha log p`` where the label y is 1, else ``-(1 - y)^beta p^alpha log(1 - p)``; a sum over cells and
    classes, divided by the number of ones (eq. 1).

    An item without any counts as one thing, so that its false alarms weigh as much as those beside a single thing; the
    releases divide by the batch's number.

    Args:
        student: logits.
        labels: 1 at a centre, less around it, 0 far from it.
    """
    _targets(student, labels)
    p, here = torch.sigmoid(student), labels >= 1
    centre = (1 - p).pow(alpha) * F.logsigmoid(student)
    away = (1 - labels).clamp(min=0).pow(beta) * p.pow(alpha) * F.logsigmoid(-student)
    values = -torch.where(here, centre, away).sum(dim=1)
    number = item_sum(here.to(student.dtype).sum(dim=1), item, items)
    return item_sum(values, item, items), number.clamp(min=1)


@loss(
    "reg_l1", reduction="rows", family="detection", year=2019, needs="boxes regression",
    paper="Zhou et al.: Objects as Points",
)  # fmt: skip
def reg_l1(
    student: Float[Tensor, "n c"], labels: Float[Tensor, "n c"], *, columns: Columns = ()
) -> Float[Tensor, " n"]:
    """``sum_k w_k |s_k - y_k|`` of each row that has a label: the L1 of boxes at the centres of things (eq. 2, 3).

    Args:
        columns: the weight of each number; empty: 1.
    """
    _targets(student, labels)
    return _weighed(student, labels, columns)


def _weighed(student: Tensor, other: Tensor, columns: Columns) -> Tensor:
    if columns and len(columns) != student.shape[1]:
        raise ValueError(f"columns: {len(columns)} weights for {student.shape[1]} numbers a row")
    weight = student.new_tensor(columns) if columns else student.new_ones(student.shape[1])
    return ((student - other).abs() * weight).sum(dim=1)


@loss(
    "sparsekd", reduction="items", family="detection", year=2022, needs="logits regression",
    paper="Yang et al.: Towards Efficient 3D Object Detection with Knowledge Distillation",
)  # fmt: skip
def sparsekd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    labels: Float[Tensor, "n c"], *, rank: Annotated[int, Field(ge=0)] = 0, foreground: bool = True,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:  # fmt: skip
    """``sum_i m_i sum_c (p_s - p_t)^2 / sum_i m_i`` with ``m_i = max_c p_t max_c y``: the logits at pivotal positions.

    p are sigmoids of the heat and y the heat that is right, so that cells count as far as the teacher is sure that a
    thing is near one. The release has the term with a weight of 7 to 10; it adds 1e-6 to the divisor, and clamps p to
    1e-4 from 0 and 1.

    Args:
        rank: of each item only so many of its cells and classes, those of the largest p_t; 0: all.
        foreground: whether y is a factor of m; without it cells count by the teacher's confidence alone.
    """
    same_shape(student, teacher)
    _targets(student, labels)
    mine, theirs = torch.sigmoid(student), torch.sigmoid(teacher)
    pivotal = theirs.amax(dim=1)
    if foreground:
        pivotal = pivotal * labels.amax(dim=1)
    if rank:
        pivotal = pivotal * _ranked(theirs, item, items, rank)
    values = pivotal * (mine - theirs).square().sum(dim=1)
    return item_sum(values, item, items), item_sum(pivotal, item, items)


def _ranked(scores: Tensor, item: Tensor, items: int, rank: int) -> Tensor:
    """``(n,)`` 1 for rows with one of their item's `rank` largest scores."""
    chosen = torch.zeros(len(scores), dtype=scores.dtype, device=scores.device)
    for one in range(items):
        rows = (item == one).nonzero().flatten()
        if len(rows):
            best = scores[rows].flatten().topk(min(rank, scores[rows].numel())).indices
            chosen[rows[best // scores.shape[1]]] = 1
    return chosen


@loss(
    "sparsekd_reg", reduction="rows", family="detection", year=2022, needs="boxes", properties="zero_at_teacher",
    paper="Yang et al.: Towards Efficient 3D Object Detection with Knowledge Distillation",
)  # fmt: skip
def sparsekd_reg(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, columns: Columns = ()
) -> Float[Tensor, " n"]:
    """``sum_k w_k |s_k - t_k|``: the regression term. With ``weights: centre`` on the cells that hold a thing's centre.

    The release has it with a weight of 0.2, or of 0 between pillars of different size.

    Args:
        columns: the weight of each number; empty: 1.
    """
    same_shape(student, teacher)
    return _weighed(student, teacher, columns)


__all__ = ["gaussian_focal", "reg_l1", "sparsekd", "sparsekd_reg"]
