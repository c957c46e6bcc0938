"""A contrast of relations: what lies between two samples is told from what lies between one of them and others."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, loss
from .blocks import block_sum
from .contrastive import Contrast, Count, Share
from .guards import direction


@loss(
    "crcd", reduction="batch", family="contrastive", year=2021, needs="features", properties="widths_differ",
    paper="Zhu et al.: Complementary Relation Contrastive Distillation",
)  # fmt: skip
class Crcd(Contrast):
    """`crd` of relations: ``-[log h(positive) + sum_N log (1 - h(negative))]``, a mean over pairs of samples i and a.

    Sample a of the batch is the anchor, by its row m_a in the other network's bank. The relation of i to it,
    ``g_i - m_a``, is to have the direction of ``m_i - m_a`` and not that of ``m_j - m_a`` of the negatives j:
    ``v = exp(cos / temperature) / Z`` and ``h = v / (v + N / samples)``, in both directions, embeddings, banks, Z and
    negatives being those of `crd`. A sample has no relation to itself, which the release counts. The paper contrasts
    the gradients of the class loss at the embeddings besides: the scheme ``class_gradients``. It takes some batch size
    times the work of `crd`. Published with a weight of 1 beside `kd`.

    Args:
        samples: of the training set: ids run below it.
        negatives: N.
    """

    called = "crcd"

    def __init__(
        self, student_width: int, teacher_width: int,
        *, samples: Count = 50000, negatives: Count = 500, width: Count = 128, temperature: Positive = 0.05,
        momentum: Share = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(
            student_width, teacher_width,
            samples=samples, negatives=negatives, width=width, temperature=temperature, momentum=momentum,
        )  # fmt: skip

    def _told(self, g: Tensor, bank: Tensor, z: Tensor, own: Tensor, drawn: Tensor, excluded: Tensor) -> Tensor:
        """Minus the log-likelihood of telling relations apart: the sum over samples of its mean over anchors."""
        n, share = len(own), log(self.negatives / self.samples)
        if n < 2:
            raise ValueError("crcd compares relations of samples: it needs at least 2 rows")
        anchors, others, far = bank[own], bank[own], bank[drawn]

        def scores(part: slice) -> tuple[Tensor, Tensor, Tensor]:
            """Of anchors and samples ``(a, n)`` and negatives ``(a, n, N)``; and which are no anchor's own sample."""
            at = anchors[part][:, None]
            mine, same, other = direction(g - at), direction(others - at), direction(far - at)
            apart = own[part][:, None] != own
            return (mine * same).sum(dim=2) / self.temperature, mine @ other.mT / self.temperature, apart

        def exponentials(part: slice) -> Tensor:
            positive, negative, apart = scores(part)
            return ((positive.exp() + negative.exp().sum(dim=2)) * apart).sum()

        def cost(part: slice) -> Tensor:
            positive, negative, apart = scores(part)
            told = F.softplus(share - (positive - z.log()))
            out = excluded | (drawn == own[part][:, None])[:, None]
            rest = F.softplus(negative - z.log() - share).masked_fill(out, 0.0).sum(dim=2)
            return ((told + rest) * apart).sum()

        per_anchor = self.negatives * (n + g.shape[1]) + n * g.shape[1]
        with torch.no_grad():
            pairs = n * (n - 1) * (1 + self.negatives)
            first = block_sum(exponentials, n, per_anchor) / pairs * self.samples
            z.copy_(torch.where(z > 0, z, first))
        return block_sum(cost, n, per_anchor) / (n - 1)
