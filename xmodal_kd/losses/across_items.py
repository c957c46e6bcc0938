"""Relations of an item's rows to those of the batch's other items."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .base import Positive, loss, same_rows
from .blocks import block_sum, side_by_side
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

    if not len(item):
        return 0.0 * student.sum()
    (of_s, own), (of_t, _) = (side_by_side(f, item, items) for f in (s, t))
    some = counts > 0
    of_s, of_t, absent = of_s[some], of_t[some], ~own[some]

    def block(part: slice) -> Tensor:
        scores = (torch.einsum("ac,bmc->abm", f[part], of) / temperature for f, of in ((s, of_s), (t, of_t)))
        log_s, log_t = (z.masked_fill(absent, -torch.inf).log_softmax(dim=2).masked_fill(absent, 0.0) for z in scores)
        apart = (log_t.exp() * (log_t - log_s)).masked_fill(absent, 0.0)
        return (apart.sum(dim=(1, 2)) * share[part]).sum()

    return block_sum(block, len(item), absent.numel()) / some.sum().square()
