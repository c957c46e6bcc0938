"""Losses on how features change from one layer to the next: a list of layers on either side, row by row alike."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .base import beside, frozen, loss, same_rows, same_shape
from .blocks import block_sum, distances, in_blocks, side_by_side
from .guards import LEAST, direction

Rows = list[Float[Tensor, "n _"]]
Items = list[Int[Tensor, " n"]]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _paired(name: str, student: list[Tensor], teacher: list[Tensor], least: int) -> None:
    if len(student) != len(teacher) or len(student) < least:
        raise ValueError(
            f"{name} compares at least {least} layers with as many, got {len(student)} of the student and "
            f"{len(teacher)} of the teacher: list them in `on`"
        )


def _on_same_rows(name: str, item: list[Tensor]) -> None:
    lengths = {len(rows) for rows in item}
    if len(lengths) > 1:
        raise ValueError(f"{name} needs layers on the same rows, got layers of {sorted(lengths)} rows")


@loss(
    "fsp", reduction="items", family="relations", year=2017, needs="features",
    paper="Yim et al.: A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer "
    "Learning", properties="zero_at_teacher",
)  # fmt: skip
def fsp(student: Rows, teacher: Rows, item: Items, items: int) -> tuple[Float[Tensor, " b"], Tensor]:
    """``mean (G_s - G_t)^2`` of the flow matrices of a stage, ``G = F_start' F_end / n`` over an item's n rows.

    Signals come in pairs, (start, end) of one stage after another, each pair on the same rows and each layer as wide as
    the teacher's; the stages' values are added. Published with a weight of 50, as initialisation before the task.
    """
    _paired("fsp", student, teacher, 2)
    if len(student) % 2:
        raise ValueError(f"fsp compares (start, end) of stages, got {len(student)} layers: list an even number")
    values = []
    for i in range(0, len(student), 2):
        for s, t in zip(student[i : i + 2], teacher[i : i + 2], strict=True):
            same_shape(s, t)
        _on_same_rows("fsp", item[i : i + 2])
        flow_s, flow_t = (_flow(side[i], side[i + 1], item[i], items) for side in (student, teacher))
        values.append((flow_s - flow_t).square().mean(dim=(1, 2)))
    return torch.stack(values).sum(dim=0), torch.bincount(item[0], minlength=items) > 0


def _flow(start: Tensor, end: Tensor, item: Tensor, items: int) -> Tensor:
    a, own = side_by_side(start, item, items)
    b, _ = side_by_side(end, item, items)
    return a.mT @ b / own.sum(dim=1).clamp(min=1)[:, None, None]


@loss(
    "irg", reduction="batch", family="relations", year=2019, needs="features logits",
    paper="Liu et al.: Knowledge Distillation via Instance Relationship Graph", properties="zero_at_teacher",
)  # fmt: skip
def irg(
    student: Rows, teacher: Rows, *, vertex: Weight = 0.1, edge: Weight = 5.0, transform: Weight = 5.0
) -> Float[Tensor, ""]:
    """Graph of a batch: what its nodes say, how far they lie apart, and how far each moves between two layers.

    One row an item in each signal; the last signal is the logits, those before are layers of any width::

        vertex * mean (z_s - z_t)^2
        + edge * mean over layers of mean_ij (D_s - D_t)^2,        D_ij = |f_i - f_j|^2 over its maximum
        + transform * mean_i (d_s - d_t)^2,                        d_i = |f_i^1 - f_i^2|^2 over its maximum

    f^1 and f^2 are the first two layers; where one is k times as wide its channels are averaged in groups of k. The
    paper pools maps to one size first (section 3.3), which is here the adapter's work.
    """
    _paired("irg", student, teacher, 2)
    for s, t in zip(student, teacher, strict=True):
        same_rows(s, t)
    same_shape(student[-1], teacher[-1])
    if not len(student[-1]):
        return 0.0 * torch.stack([rows.sum() for rows in student]).sum()
    layers = list(zip(student[:-1], teacher[:-1], strict=True))
    total = vertex * F.mse_loss(student[-1], teacher[-1])
    total = total + edge * torch.stack([_edges(s, t) for s, t in layers]).mean()
    if transform:
        if len(layers) < 2:
            raise ValueError("irg's transformation compares two layers beside the logits, got one: transform: 0")
        total = total + transform * F.mse_loss(_moved(*student[:2]), _moved(*teacher[:2]))
    return total


def _edges(student: Tensor, teacher: Tensor) -> Tensor:
    n = len(student)

    def squared(rows: Tensor, part: slice) -> Tensor:
        return distances(rows[part], rows).square()

    def most(rows: Tensor) -> Tensor:
        blocks = in_blocks(lambda part: squared(rows, part).max(), n, n)
        return _divisor(torch.stack(blocks).max())

    most_s, most_t = most(student), most(teacher)

    def block(part: slice) -> Tensor:
        return (squared(student, part) / most_s - squared(teacher, part) / most_t).square().sum()

    return block_sum(block, n, n) / n**2


def _moved(first: Tensor, second: Tensor) -> Tensor:
    """``(n,)`` squared distance of each row between two layers, over the largest."""
    same_rows(first, second)
    narrow = min(first.shape[1], second.shape[1])
    if first.shape[1] % narrow or second.shape[1] % narrow:
        raise ValueError(f"irg: layers {tuple(first.shape)} and {tuple(second.shape)}: neither width divides the other")
    a, b = (rows.unflatten(1, (narrow, -1)).mean(dim=2) for rows in (first, second))
    apart: Tensor = (a - b).square().sum(dim=1)
    return apart / _divisor(apart.max())


def _divisor(most: Tensor) -> Tensor:
    """The largest of some squared distances; 1 where all are 0."""
    return torch.where(most > LEAST**2, most, 1.0)


@loss(
    "kdsvd", reduction="items", family="relations", year=2018, needs="features",
    paper="Lee, Kim, Song: Self-supervised Knowledge Distillation Using Singular Value Decomposition",
    properties="zero_at_teacher",
)  # fmt: skip
def kdsvd(
    student: Rows, teacher: Rows, item: Items, items: int, *, k: Count = 1, extra: int = 3, relative: bool = True
) -> tuple[Float[Tensor, " b"], Tensor]:
    """``sum (R_s - R_t)^2`` with ``R_ij = exp(-(v_l[i] - v_{l-1}[j])^2 / 8)`` between channels of successive layers.

    v are the first `k` right singular vectors of an item's rows ``(n, c)`` at each layer, times the teacher's singular
    values. The student's are chosen among its first ``k + extra``, the one with the largest cosine to each of the
    teacher's, and take its sign; the teacher's own sign, which a decomposition leaves open, makes the component of
    largest size positive. Layers are as wide as the teacher's. Heavy where rows and channels are many: pool first.

    The gradient of a singular vector grows without bound where two singular values meet; there it is left out.

    Args:
        relative: the teacher's k singular values over their norm, as the release has it, so that R does not saturate.
    """
    _paired("kdsvd", student, teacher, 2)
    pairs = []
    for s, t, i in zip(student, teacher, item, strict=True):
        same_shape(s, t)
        pairs.append(_aligned(s, t, i, items, k, extra, relative))
    values = student[0].new_zeros(items)
    for (low_s, low_t), (high_s, high_t) in pairwise(pairs):
        cost = high_s.shape[1] * low_s.shape[1] * k
        values = values + torch.cat(in_blocks(partial(_bonds, high_s, low_s, high_t, low_t), items, cost))
    return values, torch.bincount(item[0], minlength=items) > 0


def _bonds(high_s: Tensor, low_s: Tensor, high_t: Tensor, low_t: Tensor, part: slice) -> Tensor:
    """Squared difference of R of a part of the items, from vectors ``(b, c, k)`` of two layers."""
    r_s = torch.exp(-(high_s[part, :, None] - low_s[part, None]).square() / 8)
    r_t = torch.exp(-(high_t[part, :, None] - low_t[part, None]).square() / 8)
    return (r_s - r_t).square().sum(dim=(1, 2, 3))


def _aligned(
    student: Tensor, teacher: Tensor, item: Tensor, items: int, k: int, extra: int, relative: bool
) -> tuple[Tensor, Tensor]:
    """``(b, c, k)`` leading vectors of either side, scaled by the teacher's singular values."""
    with torch.no_grad():
        v_t, sigma = _vectors(teacher, item, items, k)
        biggest = v_t.gather(1, v_t.abs().argmax(dim=1, keepdim=True))
        v_t = torch.where(biggest < 0, -v_t, v_t)
        if relative:
            sigma = F.normalize(sigma, dim=1)
    v_s, _ = _vectors(student, item, items, k + extra)
    cosines = v_t.mT @ v_s  # b k (k + extra)
    best = cosines.abs().argmax(dim=2, keepdim=True)
    sign = torch.where(cosines.gather(2, best) < 0, -1.0, 1.0).mT.to(v_s.dtype)  # b 1 k
    chosen = v_s.gather(2, best.mT.expand(-1, v_s.shape[1], -1)) * sign
    return chosen * sigma[:, None], v_t * sigma[:, None]


def _vectors(rows: Tensor, item: Tensor, items: int, k: int) -> tuple[Tensor, Tensor]:
    """First k right singular vectors ``(b, c, k)`` and values ``(b, k)`` of each item's rows; 0 beyond its rank.

    The decomposition itself is held fixed and the vectors' first-order change with the rows is added, which is 0 in
    value and has their gradient, with a guard where singular values meet.
    """
    x, own = side_by_side(rows, item, items)
    with torch.no_grad():
        _, sigma, v = torch.linalg.svd(x, full_matrices=False)
        v = v.mT  # b c r
        if (short := k - v.shape[2]) > 0:
            sigma, v = F.pad(sigma, (0, short)), F.pad(v, (0, short))
        there = torch.arange(v.shape[2], device=v.device) < own.sum(dim=1)[:, None]
        v, sigma = v * there[:, None], sigma * there
        energy = sigma.square()
        gap = energy[:, None, :k] - energy[:, :, None]  # b r k
        least = (1e-6 * energy[:, :1]).clamp(min=LEAST**2)
        close = gap.abs() <= least[..., None]
        inverse_gap = torch.where(close, 0.0, 1 / torch.where(close, 1.0, gap))
        dead = energy[:, :k] <= least
        inverse = torch.where(dead, 0.0, 1 / torch.where(dead, 1.0, energy[:, :k]))
        first = v[:, :, :k]
    moved = x.mT @ (x @ first)
    moved = moved - moved.detach()
    within = v.mT @ moved  # b r k
    change = v @ (within * inverse_gap) + (moved - v @ within) * inverse[:, None]
    return first + change, sigma[:, :k]


@loss(
    "mhgd", reduction="batch", family="relations", year=2019, needs="features",
    paper="Lee, Song: Graph-based Knowledge Distillation by Multi-head Attention Network", properties="zero_at_teacher",
)  # fmt: skip
class MultiHeadGraph(nn.Module):
    """KL between the two networks' attention graphs of a batch, from each layer to the next.

    An item is its first right singular vector V_l of each layer's rows (as in `kdsvd`; layers as wide as the
    teacher's). Heads h give ``A_h = BN(W_k V_{l+1}) BN(W_q V_l)'`` ``(b, b)``, with the batch's own statistics, and the
    value is the sum over layer pairs and heads of ``mean_i KL(softmax(tanh A_s) || softmax(tanh A_t))``: student
    first, as in the release. Both networks go through the same heads, which learn beside the student, and only from
    the teacher, to predict V_{l+1} from ``softmax(A_h) V_l`` with the loss ``1 - cos`` (phase 1 of the paper, here
    jointly with phase 2). Wants batches of 32 items and more.

    Args:
        drop: share of heads that are left out while they learn.
        released: as the released code has it: the value is a *sum* over the items, and the heads predict through a
            hidden layer (linear, batch norm and ReLU before V_l is mixed), half of them left out at a time. The release
            also clips the student's gradient of this term to the length of the task's, which is not done here.
    """

    def __init__(
        self, student_width: list[int], teacher_width: list[int], *, heads: Count = 8, drop: Share = 0.1,
        released: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.drop, self.released = heads, drop, released
        pairs = list(pairwise(teacher_width))
        inner = [heads * ((low + high) // 2) for low, high in pairs]
        sizes = list(zip(pairs, inner, strict=True))
        self.keys = nn.ModuleList(nn.Linear(high, d, bias=False) for (_, high), d in sizes)
        self.queries = nn.ModuleList(nn.Linear(low, d, bias=False) for (low, _), d in sizes)
        self.key_norms = nn.ModuleList(nn.BatchNorm1d(d, track_running_stats=False) for d in inner)
        self.query_norms = nn.ModuleList(nn.BatchNorm1d(d, track_running_stats=False) for d in inner)
        hidden = [(low + high) // 2 if released else low for low, high in pairs]
        self.estimators = nn.ModuleList(nn.Linear(heads * d, high) for d, (_, high) in zip(hidden, pairs, strict=True))
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(low, d, bias=False), nn.BatchNorm1d(d, track_running_stats=False), nn.ReLU())
            for d, (low, _) in zip(hidden, pairs, strict=True)
            if released
        )

    def forward(self, student: Rows, teacher: Rows, item: Items, items: int) -> Float[Tensor, ""]:
        _paired("mhgd", student, teacher, 2)
        v_s, v_t = [], []
        for s, t, i in zip(student, teacher, item, strict=True):
            same_shape(s, t)
            s_l, t_l = _aligned(s, t, i, items, k=1, extra=3, relative=True)
            there = torch.bincount(i, minlength=items) > 0
            v_s.append(s_l[there, :, 0])
            v_t.append(t_l[there, :, 0])
        if len({len(v) for v in v_t}) > 1 or len(v_t[0]) < 2:
            raise ValueError(f"mhgd relates items that have rows in every layer, got {[len(v) for v in v_t]} of them")
        values = []
        for p in range(len(self.keys)):
            graph = _Graph(self.keys[p], self.queries[p], self.key_norms[p], self.query_norms[p], self.heads)
            a_s, a_t = frozen(graph, v_s[p], v_s[p + 1]), graph(v_t[p], v_t[p + 1])
            log_s, log_t = (F.log_softmax(torch.tanh(a), dim=-1) for a in (a_s, a_t.detach()))
            each = (log_s.exp() * (log_s - log_t)).sum(dim=-1)
            value = each.sum() if self.released else each.mean(dim=-1).sum()
            values.append(beside(value, self._estimate(p, a_t, v_t[p], v_t[p + 1])))
        return torch.stack(values).sum()

    def _estimate(self, p: int, graph: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """How badly the heads predict the teacher's next layer."""
        kept = F.dropout(torch.ones_like(graph[:, :1, :1]), self.drop, self.training and not self.released)
        if self.released:
            low = self.hidden[p](low)
            if self.training:
                noise = torch.randn_like(kept)
                kept = (noise > noise.mean(dim=0)).to(kept)
        seen = (kept * torch.softmax(graph, dim=-1)) @ low  # h b d
        made = self.estimators[p](seen.movedim(0, 1).flatten(1))
        return (1 - (direction(made) * direction(high)).sum(dim=1)).mean()


class _Graph(nn.Module):
    """``(h, b, b)`` attention from the vectors of a layer (columns) to those of the next (rows)."""

    def __init__(
        self, key: nn.Module, query: nn.Module, key_norm: nn.Module, query_norm: nn.Module, heads: int
    ) -> None:
        super().__init__()
        self.key, self.query, self.key_norm, self.query_norm, self.heads = key, query, key_norm, query_norm, heads

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        keys = self.key_norm(self.key(high)).unflatten(1, (self.heads, -1))
        queries = self.query_norm(self.query(low)).unflatten(1, (self.heads, -1))
        return torch.einsum("ihd,jhd->hij", keys, queries)
