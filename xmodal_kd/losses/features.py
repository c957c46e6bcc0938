"""Losses between hidden features. Rows are positions; widths differ unless the term's projector maps them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .base import Positive, item_mean, item_sum, loss, same_rows, same_shape
from .guards import LEAST, centred, deviation, direction, inverse_root


@loss(
    "hint", reduction="rows", family="features", paper="Romero et al.: FitNets: Hints for Thin Deep Nets", year=2015,
    needs="features", properties="zero_at_teacher",
)  # fmt: skip
def hint(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Mean squared difference of each row's features, the student's behind a projector where widths differ.

    The paper (eq. 3) takes half the squared norm; published weights near 100 belong to this mean over channels.
    """
    same_shape(student, teacher)
    return (student - teacher).square().mean(dim=-1)


@loss(
    "textual_kd", reduction="rows", family="features", year=2021, needs="features",
    paper="Kim et al.: Two-stage Textual Knowledge Distillation for End-to-End Spoken Language Understanding",
    properties="zero_at_teacher",
)  # fmt: skip
def textual_kd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, summed: bool = False
) -> Float[Tensor, " n"]:
    """Mean absolute difference of each row: of utterance vectors in the paper's first stage, of logits in its second.

    The release has the second stage alone: a sum over classes and a mean over the batch, of weight 1 beside the
    cross-entropy. Widths that differ are brought together by the term's projector.

    Args:
        summed: over channels, as the release does with logits (``on: logits``).
    """
    same_shape(student, teacher)
    apart = (student - teacher).abs()
    return apart.sum(dim=-1) if summed else apart.mean(dim=-1)


@loss(
    "at", reduction="items", family="attention", year=2017, needs="features",
    paper="Zagoruyko, Komodakis: Paying More Attention to Attention",
    properties="zero_at_teacher scale_invariant widths_differ",
)  # fmt: skip
def at(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
    *, p: Positive = 2.0,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """Squared difference of where the two networks look: ``mean_i (q_s/|q_s| - q_t/|q_t|)^2``, ``q = mean_c |f|^p``.

    Each item's map is normalised over its own valid rows (eq. 2), so clouds and utterances of any length compare. The
    mean over rows goes with published weights near 1000; items without rows are not counted.
    """
    same_rows(student, teacher)

    def attention(features: Tensor) -> Tensor:
        size = features.abs()
        some = size > LEAST if p < 1 else None  # the slope of |f|^p, which has none at 0
        q = (size.pow(p) if some is None else torch.where(some, size, 1.0).pow(p) * some).mean(dim=-1)
        return q * inverse_root(item_sum(q.square(), item, items), LEAST**p)[item]

    values = item_mean((attention(student) - attention(teacher)).square(), item, items)
    return values, torch.bincount(item, minlength=items) > 0


@loss(
    "nst", reduction="items", family="features", year=2017, needs="features",
    paper="Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    properties="zero_at_teacher scale_invariant widths_differ",
)  # fmt: skip
def nst(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int
) -> tuple[Float[Tensor, " b"], Tensor]:
    """Squared MMD between the two networks' channels as patterns over an item's rows, kernel ``(x . y)^2``.

    A channel's pattern is normalised over the item's rows. The kernel's means come from the channels' Gram matrices,
    so nothing of size (c, d, n) exists. Published with a weight of 50.
    """
    same_rows(student, teacher)
    values = []
    for rows in _items(item, items):
        s, t = direction(student[rows], dim=0), direction(teacher[rows], dim=0)
        means = [(a.T @ b).square().mean() for a, b in ((t, t), (s, s), (s, t))]
        values.append(means[0] + means[1] - 2 * means[2])
    return torch.stack(values), torch.bincount(item, minlength=items) > 0


def _items(item: Tensor, items: int) -> list[Tensor]:
    """Row numbers of each item."""
    order = torch.argsort(item, stable=True)
    return list(order.split(torch.bincount(item, minlength=items).tolist()))


@loss(
    "cwd", reduction="items", family="features", year=2021, needs="features", confidence="B",
    paper="Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction", properties="zero_at_teacher",
)  # fmt: skip
def cwd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    *, temperature: Positive = 4.0,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``T^2/C sum_c KL(phi_c(teacher) || phi_c(student))`` with phi_c the softmax over an item's rows.

    Works on features behind a projector, and on logits. Published with a weight of 50 and of 3.
    """
    same_shape(student, teacher)
    log_t = log_softmax_over_rows(teacher / temperature, item, items)
    log_s = log_softmax_over_rows(student / temperature, item, items)
    values = item_sum((log_t.exp() * (log_t - log_s)).mean(dim=-1), item, items)
    return temperature**2 * values, torch.bincount(item, minlength=items) > 0


def log_softmax_over_rows(rows: Tensor, item: Tensor, items: int) -> Tensor:
    """``(n, c)`` log-softmax of each channel over the rows of an item."""
    index = item[:, None].expand_as(rows)
    highest = torch.full((items, rows.shape[1]), -torch.inf, dtype=rows.dtype, device=rows.device)
    highest = highest.scatter_reduce(0, index, rows.detach(), "amax")
    shifted = rows - highest[item]
    return shifted - item_sum(shifted.exp(), item, items)[item].log()


@loss(
    "pearson", reduction="batch", family="features", year=2022, needs="features", confidence="B",
    paper="Cao et al.: PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
    properties="zero_at_teacher scale_invariant row_shift_invariant",
)  # fmt: skip
def pearson(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, released: bool = False
) -> Float[Tensor, ""]:
    """Half the mean squared difference of channels standardised over all rows: one minus their correlation.

    For teachers whose features have another scale. Published with a weight near 6 to 10. A constant channel counts as
    0 and gets no gradient.

    Args:
        released: divide by ``std + 1e-6`` with the unbiased deviation, as the released code does; the value is then
            smaller than one minus the correlation by the factor (n - 1) / n.
    """
    same_shape(student, teacher)
    if len(student) < 2:
        raise ValueError(f"pearson standardises over rows: it needs at least 2, got {len(student)}")
    return 0.5 * (_standardised(student, released) - _standardised(teacher, released)).square().mean()


def _standardised(rows: Tensor, released: bool) -> Tensor:
    """Channels of mean 0 and deviation 1; a constant one is 0."""
    moved = centred(rows, dim=0)
    if released:
        return moved / (deviation(moved, dim=0) + 1e-6)
    return direction(moved, dim=0) * math.sqrt(len(rows))
