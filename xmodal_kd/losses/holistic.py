"""A graph over the batch: a sample's embedding and that of its neighbourhood are told from those of other samples."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .base import Positive, loss, same_rows
from .contrastive import Count, ExactContrast, Share
from .guards import direction


@loss(
    "hkd", reduction="batch", family="contrastive", year=2021, needs="logits features",
    paper="Zhou et al.: Distilling Holistic Knowledge with Graph Neural Networks",
    properties="widths_differ labelled_lists held_weight",
)  # fmt: skip
class Holistic(ExactContrast):
    """InfoNCE of samples, and of their neighbourhoods in a graph that a network of one layer reads, both directions.

    ``on`` names scores and features, ``[logits, embedding]``, one row a sample. Features are embedded as in `crd`: e of
    length 1, of both sides. In each side's graph a sample is linked to the `neighbours` of the batch whose scores'
    softmax has the nearest direction, itself among them; a graph network ``g_i = normalise(W [e_i, mean_j e_j] + b)``,
    one a side, learns beside the student. With m a sample's row in the other side's bank, e is told from negatives by
    m, and g by ``normalise(smoothing m' + (1 - smoothing) g')`` of the other side's row and g, which is held:
    ``-log exp(e . m / T) / (exp(e . m / T) + sum_N exp(e . m_j / T))``. In a batch of fewer samples than `neighbours`
    there is no graph. Banks follow e. Published with a weight of 3 beside ce, with kd at temperature 4 or without.

    Args:
        samples: of the training set: ids run below it.
        negatives: N, drawn once for all anchors of a step; those of an anchor's own class do not count.
        released: negatives of the anchor's own side's bank, as in the released code; else of the other's.
    """

    called = "hkd"

    def __init__(
        self, student_width: list[int], teacher_width: list[int],
        *, samples: Count = 50000, negatives: Count = 16384, width: Count = 128, temperature: Positive = 0.07,
        momentum: Share = 0.9, smoothing: Share = 0.75, neighbours: Count = 8, released: bool = False,
    ) -> None:  # fmt: skip
        if len(student_width) != 2 or len(teacher_width) != 2:
            raise ValueError("hkd compares scores and features of either side: on: [logits, embedding]")
        super().__init__(
            student_width[1], teacher_width[1],
            samples=samples, negatives=negatives, width=width, temperature=temperature, momentum=momentum,
        )  # fmt: skip
        self.smoothing, self.neighbours, self.released = smoothing, neighbours, released
        self.graph_s, self.graph_t = (nn.Linear(2 * width, width) for _ in "st")

    def forward(  # type: ignore[override]
        self, student: list[Float[Tensor, "n c"]], teacher: list[Float[Tensor, "n d"]], item: list[Int[Tensor, " n"]],
        ids: Int[Tensor, " b"], labels: Int[Tensor, " n"],
    ) -> Float[Tensor, ""]:  # fmt: skip
        (scores_s, f_s), (scores_t, f_t), own = student, teacher, ids[item[0]]
        same_rows(f_s, f_t)
        if not len(own):
            return 0.0 * f_s.sum()
        self._check(own)
        self.known[own] = labels
        drawn = self.drawn()
        excluded = (drawn == own[:, None]) | (self.known[drawn] == labels[:, None])
        e_s, e_t = direction(self.embed_s(f_s)), direction(self.embed_t(f_t))
        m_s, m_t, far_s, far_t = self.bank_s[own], self.bank_t[own], self.bank_t[drawn], self.bank_s[drawn]
        if self.released:
            far_s, far_t = far_t, far_s
        value = self._nce(e_s, m_t, e_s @ far_s.T, excluded) + self._nce(e_t, m_s, e_t @ far_t.T, excluded)
        if len(own) >= self.neighbours:
            g_s, g_t = self._around(self.graph_s, e_s, scores_s), self._around(self.graph_t, e_t, scores_t)
            value = value + self._nce(g_s, self._smooth(m_t, g_t), g_s @ far_s.T, excluded)
            value = value + self._nce(g_t, self._smooth(m_s, g_s), g_t @ far_t.T, excluded)
        if self.training and torch.is_grad_enabled():
            self._remember(e_s.detach(), e_t.detach(), own)
        return value

    def _around(self, graph: nn.Module, e: Float[Tensor, "n k"], scores: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        """What the graph network makes of each sample's embedding and the mean of its neighbours'."""
        mean = e[near(scores, self.neighbours)].mean(dim=1)
        return direction(graph(torch.cat([e, mean], dim=1)))

    def _smooth(self, m: Tensor, g: Tensor) -> Tensor:
        return direction(self.smoothing * m + (1 - self.smoothing) * g.detach())

    def _nce(
        self, anchor: Float[Tensor, "n k"], positive: Float[Tensor, "n k"], far: Float[Tensor, "n m"],
        excluded: Bool[Tensor, "n m"],
    ) -> Float[Tensor, ""]:  # fmt: skip
        """The mean over anchors of minus the log-likelihood of their positive among products with negatives."""
        near = (anchor * positive).sum(dim=1, keepdim=True)
        scores = torch.cat([near, far.masked_fill(excluded, -torch.inf)], dim=1) / self.temperature
        return -scores.log_softmax(dim=1)[:, 0].mean()


@torch.no_grad()
def near(scores: Float[Tensor, "n c"], count: int) -> Int[Tensor, "n k"]:
    """Of each row itself and the rows whose softmax has the nearest direction."""
    rows = direction(scores.softmax(dim=1))
    alike = (rows @ rows.T).fill_diagonal_(torch.inf)
    return alike.topk(count, dim=1).indices


__all__ = ["Holistic", "near"]
