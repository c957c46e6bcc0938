"""Relations of an item's rows to those of the batch's other items."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .base import Positive, item_sum, loss, same_rows
from .blocks import block_sum
from .features import log_softmax_over_rows
from .guards import direction


@loss(
    "cirkd", reduction="batch", family="relations", year=2022, needs="features",
    paper="Yang et al.: Cross-Image Relational Knowledge Distillation for Semantic Segmentation (pixels of a batch)",
    properties="zero_at_teacher scale_invariant widths_differ",
)  # fmt: skip
def cirkd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
    *, temperature: Positive = 0.1,
) -> Float[Tensor, ""]:  # fmt: skip
    """``mean_ij mean_a KL(t || s)`` of ``softmax_b(cos(f_a, f_b) / T)``, row a of item i and rows b of item j.

    Whom a row looks like in each item of the batch, its own among them. The mean is over all pairs of items that have
    rows. Quadratic in the rows in time, not in memory: pool large maps first, as the release does from 256 cells a
    side. The paper's two other terms, against memories of pixels and regions of other batches, are not here. Published
    with a weight of 1.
    """
    same_rows(student, teacher)
    counts = torch.bincount(item, minlength=items)
    share = 1 / counts.clamp(min=1).to(student.dtype)[item]
    s, t = direction(student), direction(teacher)

    def block(part: slice) -> Tensor:
        log_s, log_t = (log_softmax_over_rows(f @ f[part].T / temperature, item, items) for f in (s, t))
        return (item_sum(log_t.exp() * (log_t - log_s), item, items) * share[part]).sum()

    n = len(item)
    return block_sum(block, n, n) / (counts > 0).sum().clamp(min=1).square() if n else student.sum()
