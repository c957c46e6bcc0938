"""Losses between hidden features. Rows are positions; widths differ unless the term's projector maps them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .base import Positive, item_mean, item_sum, loss, same_rows, same_shape


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
        q = features.abs().pow(p).mean(dim=-1)
        norm = item_sum(q.square(), item, items).clamp(min=1e-24).sqrt()
        return q / norm[item]

    values = item_mean((attention(student) - attention(teacher)).square(), item, items)
    return values, torch.bincount(item, minlength=items) > 0
