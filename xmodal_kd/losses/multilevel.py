"""Logits compared at several temperatures and levels: row by row, between samples, between classes."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from . import blocks
from .base import Positive, loss, same_shape
from .blocks import row_by_row
from .class_products import by_classes
from .logits import kl, standardised

Temperatures = Annotated[tuple[Positive, ...], Field(min_length=1)]


@loss(
    "mlkd", reduction="batch", family="logits", year=2023, properties="zero_at_teacher shift_invariant",
    paper="Jin, Wang, Lin: Multi-Level Logit Distillation",
)  # fmt: skip
def mlkd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0), instance: float = 1.0, batch: float = 1.0,
    classes: float = 1.0, confident: Literal["all", "half", "release"] = "all", standardise: bool = False,
) -> Float[Tensor, ""]:  # fmt: skip
    """``sum_T [T^2 mean KL(p_t || p_s) + |p_s p_s' - p_t p_t'|_F^2 / n + |p_s' p_s - p_t' p_t|_F^2 / c]``.

    One call sees one view of the samples. The paper adds two: a term on the strong view, and one on the weak view with
    ``confident: half``. Published with a weight of 0.9. With more rows than classes neither the (n x n) nor the
    (c x c) matrix is ever whole: it costs what `kd` does in memory, and n c^2 in time. With fewer rows, samples say,
    products of rows are taken. Rows of all ranks are compared.

    Args:
        temperatures: p is the softmax at each of them.
        instance: weight of the first part.
        batch: of the second.
        classes: of the third.
        confident: ``half`` keeps the samples, and the classes, of which the teacher is least sure, up to the median of
            its confidence; sums are still divided by all samples or classes. ``release`` is what the published code
            computes instead: the mask multiplies the reduced parts, and only scales them by the kept share.
        standardise: as in `kd`, in the first part alone, as the release of Sun et al. (2024) has it.
    """
    same_shape(student, teacher)
    n, c = student.shape
    if n == 0:
        return student.sum()
    kept_rows, kept_classes = _least_sure(teacher) if confident != "all" else (None, None)
    masks = (kept_rows, kept_classes) if confident == "half" else (None, None)
    compare = by_classes if n > c else _by_rows
    parts = compare(student, teacher, temperatures, *masks)
    if standardise:
        rows = row_by_row(partial(_standardised_kl, temperatures=temperatures), student, [teacher])
        parts = torch.cat([(rows if masks[0] is None else rows * masks[0]).sum()[None], parts[1:]])
    weights = parts.new_tensor([instance / n, batch / n, classes / c])
    if kept_rows is not None and kept_classes is not None and confident == "release":
        weights = weights * torch.stack([kept_rows.mean(), kept_rows.mean(), kept_classes.mean()])
    return (weights * parts).sum()


def _standardised_kl(student: Tensor, teacher: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """``(n,)`` of standardised logits, summed over the temperatures."""
    s, t = standardised(student), standardised(teacher)
    each = [T**2 * kl(F.log_softmax(t / T, dim=-1), F.log_softmax(s / T, dim=-1)) for T in temperatures]
    return torch.stack(each).sum(dim=0)


def _by_rows(
    student: Tensor, teacher: Tensor, temperatures: tuple[float, ...], rows: Tensor | None, classes: Tensor | None
) -> Tensor:
    """As `by_classes`, from products of rows: for fewer rows than classes."""
    sums = []
    for temperature in temperatures:
        log_s, log_t = (F.log_softmax(z / temperature, dim=-1) for z in (student, teacher))
        values, p_s, p_t = kl(log_t, log_s), log_s.exp(), log_t.exp()
        alike = (values if rows is None else values * rows).sum()
        gaps = _gram_gap(p_s, p_t, rows), _gram_gap(p_s.T, p_t.T, classes)
        sums.append(torch.stack([temperature**2 * alike, *gaps]))
    return torch.stack(sums).sum(dim=0)


@torch.no_grad()
def _least_sure(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Masks ``(n,)`` and ``(c,)`` of the half of samples and of classes that the teacher is least sure of."""
    sure, mass = [], teacher.new_zeros(teacher.shape[1])
    for rows in teacher.split(max(1, blocks.BLOCK // teacher.shape[1])):
        p = torch.softmax(rows, dim=-1)
        sure.append(p.max(dim=-1).values)
        mass = mass + p.sum(dim=0)
    return tuple((x <= _median(x)).to(x.dtype) for x in (torch.cat(sure), mass))  # type: ignore[return-value]


def _median(x: Tensor) -> Tensor:
    """The mean of the two middle values where they are two; `torch.quantile` refuses more than 16 million."""
    ordered = x.sort().values
    return 0.5 * (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2])


def _gram_gap(x: Tensor, y: Tensor, keep: Tensor | None) -> Tensor:
    """``sum_ij keep_i (x_i . x_j - y_i . y_j)^2`` of rows ``(n, c)``, by (n x n) or (c x c) products.

    With d = x - y and s = x + y each entry is ``(d_i . s_j + s_i . d_j) / 2``: no difference of large numbers.
    """
    d, s = x - y, x + y
    dk, sk = (d, s) if keep is None else (d * keep[:, None], s * keep[:, None])
    if len(x) <= x.shape[1]:
        return 0.25 * (dk @ s.T + sk @ d.T).square().sum()
    pairs = ((dk.T @ dk, s.T @ s), (sk.T @ sk, d.T @ d))
    cross = ((dk.T @ sk) * (s.T @ d)).sum()
    return 0.25 * (torch.stack([(a * b).sum() for a, b in pairs]).sum() + 2 * cross)
