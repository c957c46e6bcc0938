"""Logits compared at several temperatures and levels: row by row, between samples, between classes."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, loss, same_shape
from .logits import kl

Temperatures = Annotated[tuple[Positive, ...], Field(min_length=1)]


@loss(
    "mlkd", reduction="batch", family="logits", year=2023, properties="zero_at_teacher shift_invariant",
    paper="Jin, Wang, Lin: Multi-Level Logit Distillation",
)  # fmt: skip
def mlkd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"],
    *, temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0), instance: float = 1.0, batch: float = 1.0,
    classes: float = 1.0, confident: Literal["all", "half", "release"] = "all",
) -> Float[Tensor, ""]:  # fmt: skip
    """``sum_T [T^2 mean KL(p_t || p_s) + |p_s p_s' - p_t p_t'|_F^2 / n + |p_s' p_s - p_t' p_t|_F^2 / c]``.

    One call sees one view of the samples. The paper adds two: a term on the strong view, and one on the weak view with
    ``confident: half``. Published with a weight of 0.9. The (n x n) and (c x c) matrices are never both made: the
    squared norm of either comes from products of whichever side is smaller.

    Args:
        temperatures: p is the softmax at each of them.
        instance, batch, classes: weights of the three parts.
        confident: ``half`` keeps the samples, and the classes, of which the teacher is least sure, up to the median of
            its confidence; sums are still divided by all samples or classes. ``release`` is what the published code
            computes instead: the mask multiplies the reduced parts, and only scales them by the kept share.
    """
    same_shape(student, teacher)
    n, c = student.shape
    kept_rows, kept_classes = _least_sure(teacher) if confident != "all" else (None, None)
    mask_rows, mask_classes = (kept_rows, kept_classes) if confident == "half" else (None, None)
    parts = student.new_zeros(3)
    for temperature in temperatures:
        log_s, log_t = (F.log_softmax(z / temperature, dim=-1) for z in (student, teacher))
        values, p_s, p_t = kl(log_t, log_s), log_s.exp(), log_t.exp()
        alike = (values if mask_rows is None else values * mask_rows).sum() / n
        parts = parts + torch.stack([
            temperature**2 * alike,
            _gram_gap(p_s, p_t, mask_rows) / n,
            _gram_gap(p_s.T, p_t.T, mask_classes) / c,
        ])  # fmt: skip
    weights = parts.new_tensor([instance, batch, classes])
    if confident == "release" and kept_rows is not None and kept_classes is not None:
        weights = weights * torch.stack([kept_rows.mean(), kept_rows.mean(), kept_classes.mean()])
    return (weights * parts).sum()


def _least_sure(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Masks ``(n,)`` and ``(c,)`` of the half of samples and of classes that the teacher is least sure of."""
    p = torch.softmax(teacher, dim=-1)
    sure, mass = p.max(dim=-1).values, p.sum(dim=0)
    return tuple((x <= torch.quantile(x, 0.5)).to(p.dtype) for x in (sure, mass))  # type: ignore[return-value]


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
