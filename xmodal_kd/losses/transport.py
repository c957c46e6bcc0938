"""Losses by optimal transport: what it costs to carry one side's distribution to the other's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, item_mean, item_sum, loss, same_rows, same_shape
from .blocks import side_by_side
from .guards import direction

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
#: Of a kernel exp(-cost / this): below it float32 holds none of the larger costs.
Regularisation = Annotated[float, Field(ge=0.01)]
#: What Sinkhorn's divisions are held off 0 by, and the least cost, as in the release of WKD.
TINY = 1e-8


@loss(
    "wkd_l", reduction="rows", family="logits", year=2024, needs="logits features head",
    paper="Lv, Yang, Li: Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation (WKD-L)",
    properties="widths_differ tied_widths",
)  # fmt: skip
def wkd_l(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], labels: Int[Tensor, " n"],
    head: Callable[[Tensor], Tensor],
    *, temperature: Positive = 8.0, gamma: Weight = 200.0, sharpen: Positive = 1.0,
    regularisation: Regularisation = 0.05, iterations: Count = 10,
) -> Float[Tensor, " n"]:  # fmt: skip
    """``-p_t[y] log p_s[y] + gamma W(q_s, q_t)``: mass is moved between the classes beside the label, at a price.

    q is the softmax at T over the classes beside the label. Moving from class i to j costs
    ``1 - exp(-sharpen (1 - cos(w_i, w_j)))``, w the weights of the teacher's linear head: what the teacher takes for
    alike is cheap to confuse. W is the cost of Sinkhorn's plan of `iterations` rounds. ``on`` names the student's
    logits and the teacher's features that the term's ``head`` turns into logits. The paper prefers prices from the CKA
    of the classes' features, which are not here; the cosine is the release's other choice. Published with a gamma of
    200 to 600 and a weight of 1, annealed by a cosine towards the end.
    """
    same_rows(student, teacher)
    scores, weights = _head(student, teacher, head)
    if student.shape[1] < 3:
        raise ValueError(f"wkd_l compares the classes beside the label: it needs at least 3, got {student.shape[1]}")
    alike = direction(weights)
    cost = F.relu(1 - torch.exp(-sharpen * (1 - alike @ alike.T))) + TINY
    q_s, q_t = (_beside(z / temperature, labels) for z in (student, scores))
    at = labels[:, None]
    start = torch.ones_like(q_s).scatter(1, at, 0.0) / (q_s.shape[1] - 1)
    target = torch.softmax(scores, dim=-1).gather(1, at) * F.log_softmax(student, dim=-1).gather(1, at)
    return -target.squeeze(1) + gamma * _sinkhorn(q_s, q_t, start, cost, regularisation, iterations)


def _head(student: Tensor, teacher: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The teacher's scores ``(n, c)`` and the weights ``(c, d)`` of its head, which is taken to be linear."""
    d = teacher.shape[1]
    fits = f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} do not fit the teacher's head"
    with torch.no_grad():
        try:
            scores = head(teacher)
            probe = torch.cat([torch.eye(d, dtype=teacher.dtype, device=teacher.device), teacher.new_zeros(1, d)])
            seen = head(probe)
        except RuntimeError as error:
            raise ValueError(f"{fits}: on names the student's logits and the teacher's features before it") from error
    if scores.shape != student.shape:
        raise ValueError(f"{fits} of {scores.shape[-1]} classes")
    return scores, (seen[:-1] - seen[-1]).T


def _beside(scores: Tensor, labels: Tensor) -> Tensor:
    """Softmax over the classes beside the label, whose own share is 0."""
    return torch.softmax(scores.scatter(1, labels[:, None], -torch.inf), dim=-1)


def _sinkhorn(a: Tensor, b: Tensor, u: Tensor, cost: Tensor, regularisation: float, iterations: int) -> Tensor:
    """``(n,)`` cost of the plans between rows ``(n, c)``, from a first `u`, 0 at classes that do not take part.

    Every plan is ``u K v`` with one kernel for all rows; of each only its two factors exist, never n matrices.
    """
    kernel = torch.exp(-cost / regularisation)
    v = u
    for _ in range(iterations):
        v = b / (u @ kernel + TINY)
        u = a / (v @ kernel.T + TINY)
    return (u * (v @ (kernel * cost).T)).sum(dim=-1)


@loss(
    "wkd_f", reduction="items", family="features", year=2024, needs="features",
    paper="Lv, Yang, Li: Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation (WKD-F)",
    properties="zero_at_teacher",
)  # fmt: skip
def wkd_f(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    *, mean: Weight = 4.0, eps: Positive = 1e-5,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``mean |m_s - m_t|^2 + |d_s - d_t|^2``: the Wasserstein distance of Gaussians with a diagonal covariance.

    m and d are a channel's mean and deviation, ``sqrt(unbiased variance + eps)``, over an item's rows, so position does
    not count and ragged items compare. Summed over channels. Published on the last map behind a projector with
    normalisation and ReLU, with a weight of 0.08 and `mean` from 4 to 8.
    """
    same_shape(student, teacher)
    (m_s, d_s), (m_t, d_t) = (_gaussian(rows, item, items, eps) for rows in (student, teacher))
    values = mean * (m_s - m_t).square().sum(dim=-1) + (d_s - d_t).square().sum(dim=-1)
    return values, torch.bincount(item, minlength=items) > 0


def _gaussian(rows: Tensor, item: Tensor, items: int, eps: float) -> tuple[Tensor, Tensor]:
    """``(b, c)`` means and deviations of each channel over an item's rows."""
    centre = item_mean(rows, item, items)
    squares = item_sum((rows - centre[item]).square(), item, items)
    others = (torch.bincount(item, minlength=items) - 1).clamp(min=1)
    return centre, (squares / others[:, None] + eps).sqrt()


@loss(
    "uld", reduction="rows", family="logits", year=2024,
    paper="Boizard et al.: Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    properties="zero_at_teacher shift_invariant widths_differ masks_unknown selective other_tokens",
)  # fmt: skip
def uld(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], *, temperature: Positive = 1.0
) -> Float[Tensor, " n"]:
    """``sum_k |p_s(k) - p_t(k)|`` of probabilities in descending order: how sure they are, not of what.

    The Wasserstein distance where every change of class costs the same. The two sides may have other classes, symbols
    or vocabularies, and other numbers of them: the shorter list is filled up with 0. Row i is the same position on
    both sides. Published with a weight of 1.5 beside the cross-entropy, which alone says what is right.
    """
    same_rows(student, teacher)
    p, q = _filled_up(
        *(torch.softmax(z / temperature, dim=-1).sort(dim=-1, descending=True).values for z in (student, teacher))
    )
    return (p - q).abs().sum(dim=-1)


def _filled_up(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many columns, of 0 where they had none."""
    width = max(p.shape[1], q.shape[1])
    return F.pad(p, (0, width - p.shape[1])), F.pad(q, (0, width - q.shape[1]))


@loss(
    "multilevel_ot", reduction="items", family="logits", year=2025, confidence="B",
    paper="Cui et al.: Multi-Level Optimal Transport for Universal Cross-Tokenizer Knowledge Distillation on Language "
    "Models",
    properties="shift_invariant widths_differ other_tokens",
)  # fmt: skip
def multilevel_ot(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], item: Int[Tensor, " n"], items: int,
    *, temperature: Positive = 1.0, kept: Count = 50, logarithm: Weight = 0.1, sinkhorn: Weight = 0.1,
    regularisation: Regularisation = 0.1, iterations: Count = 20,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``mean_i [sum_k |p_s - p_t| - logarithm p_t log p_s] + sinkhorn W / n`` of an item, for other vocabularies.

    Classes are put in order by their probability summed over the item's rows and the first `kept` compared, so that a
    class keeps its place along the sequence (`uld` orders every row anew). W carries the student's rows to the
    teacher's, at the price of their absolute difference: positions may have moved. The release takes a second softmax
    of probabilities in both smaller parts, orders over the whole batch and weighs W by another 0.001; here they are as
    the paper has them.
    """
    same_rows(student, teacher)
    s, t = _filled_up(*(_in_order(z / temperature, kept, item, items) for z in (student, teacher)))
    token = (s - t).abs().sum(dim=-1) - logarithm * (t * s.clamp(min=1e-12).log()).sum(dim=-1)
    counts = torch.bincount(item, minlength=items)
    carried = _carried(s, t, item, items, regularisation, iterations)
    return item_mean(token, item, items) + sinkhorn * carried / counts.clamp(min=1), counts > 0


def _in_order(scores: Tensor, kept: int, item: Tensor, items: int) -> Tensor:
    """Probabilities ``(n, k)`` of the classes most probable in all rows of the item, the first one first."""
    p = torch.softmax(scores, dim=-1)
    order = item_sum(p.detach(), item, items).argsort(dim=-1, descending=True, stable=True)[:, :kept]
    return p.gather(1, order[item])


def _carried(s: Tensor, t: Tensor, item: Tensor, items: int, regularisation: float, iterations: int) -> Tensor:
    """``(b,)`` cost of carrying an item's rows ``(n, k)`` to others, by Sinkhorn: rows, then columns sum to 1."""
    (one, own), (other, _) = (side_by_side(rows, item, items) for rows in (s, t))
    if not own.numel():
        return s.new_zeros(items)
    cost = torch.cdist(one, other, p=1.0)
    real = own | ~own.any(dim=1, keepdim=True)  # an item without rows has some of no consequence
    across, down = ~real[:, None, :], ~real[:, :, None]
    log_plan = -cost / regularisation
    for _ in range(iterations):
        log_plan = log_plan - log_plan.masked_fill(across, -torch.inf).logsumexp(dim=2, keepdim=True)
        log_plan = log_plan - log_plan.masked_fill(down, -torch.inf).logsumexp(dim=1, keepdim=True)
    plan = log_plan.exp().masked_fill(~(own[:, :, None] & own[:, None, :]), 0.0)
    return (plan * cost).sum(dim=(1, 2))
