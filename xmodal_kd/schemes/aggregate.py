"""Several teachers as one: the mixture of what they answer, and their weights.

A divergence ``sum_j w_j KL(q_j || p)`` differs from ``KL(sum_j w_j q_j || p)`` by a number that does not depend on p.
Hence every scheme that weighs teachers' losses is one that mixes their tempered probabilities, and any loss of the
registry can compare the student with that mixture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..losses.base import full_precision

#: Cross entropies are cut off here: an impossible transcript would else weigh by inf / inf.
WORST = 1e4
#: Of `likeliest_weights`: rounds over all pairs at most, steps of a trade, and slopes that count as the same.
SWEEPS, TRADES, SLOPE = 50, 10, 1e-9
#: Of `by_errors`: the share of the mean diagonal that is added to it.
RIDGE = 1e-6


def mixture(
    scores: Sequence[Float[Tensor, "n c"]], weights: Float[Tensor, "m n"], temperature: float
) -> Float[Tensor, "n c"]:
    """Scores whose softmax at `temperature` is ``sum_j w_j softmax(z_j / T)`` (You et al., 2017, eq. 2 for equal w).

    A teacher's rows of weight 0 may hold anything, NaN included; where all weights are 0 the scores are 0.
    """
    held = weights > 0
    rows = [full_precision(torch.where(here[:, None], z, 0.0)) for z, here in zip(scores, held, strict=True)]
    log_q = torch.stack([F.log_softmax(z / temperature, dim=-1) for z in rows])
    log_w = torch.where(held, weights, 1.0).log().where(held, -torch.inf)
    mixed = temperature * torch.logsumexp(log_q + log_w[..., None], dim=0)
    return torch.where(held.any(dim=0)[:, None], mixed, 0.0)


def mean(values: Sequence[Float[Tensor, "n c"]], weights: Float[Tensor, "m n"]) -> Float[Tensor, "n c"]:
    """``sum_j w_j x_j``, for answers that are no class scores; rows of weight 0 may hold anything."""
    parts = [torch.where((w > 0)[:, None], w[:, None] * x, 0.0) for x, w in zip(values, weights, strict=True)]
    return torch.stack(parts).sum(dim=0)


# ---------------------------------------------------------------- weights, each row's sum to 1 over who sees it


def equal(seen: Bool[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The same weight for every teacher that sees a row; all 0 where none does."""
    return seen.float() / seen.sum(dim=0).clamp(min=1)


def by_confidence(ce: Float[Tensor, "m n"], seen: Bool[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """``(1 - exp(CE_j) / sum_k exp(CE_k)) / (m - 1)``: the surer of the label, the heavier (Zhang et al., 2022, eq. 3).

    Args:
        ce: cross entropy of each teacher's answer with the label; teachers that do not see a row (`seen`) are not
            among its m. One alone has weight 1.
    """
    share = torch.softmax(ce.clamp(max=WORST).masked_fill(~seen, -torch.inf), dim=0).nan_to_num()
    others = seen.sum(dim=0) - 1
    weights = torch.where(seen, 1 - share, 0.0) / others.clamp(min=1)
    return torch.where(others > 0, weights, seen.float())


def min_norm(gram: Float[Tensor, "m m"], cap: float) -> list[float]:
    """The w that minimise ``w^T G w = ||sum_j w_j g_j||^2`` with ``sum w = 1`` and ``0 <= w_j <= C / m`` (AE-KD).

    The common descent direction of all teachers' gradients (Du et al., 2020, eq. 9); C = 1 gives equal weights, C = m
    leaves them free. Solved by moving weight between the pair that violates optimality most, as in SMO: each move is
    the exact minimum along it, in float64 and in a fixed order.

    Args:
        gram: inner products of the teachers' gradients.
        cap: C, at least 1; above m it bounds nothing.
    """
    g: list[list[float]] = gram.double().tolist()
    m = len(g)
    most = min(1.0, max(1.0, cap) / m)
    w = [1 / m] * m
    scale = max((g[j][j] for j in range(m)), default=0.0)
    for _ in range(200 * m * m):
        slope = [sum(g[j][k] * w[k] for k in range(m)) for j in range(m)]
        up = min((j for j in range(m) if w[j] < most - 1e-15), key=lambda j: slope[j], default=None)
        down = max((j for j in range(m) if w[j] > 1e-15), key=lambda j: slope[j], default=None)
        if up is None or down is None or slope[down] - slope[up] <= 1e-15 * scale:
            break
        curve = g[up][up] + g[down][down] - 2 * g[up][down]
        room = min(most - w[up], w[down])
        step = room if curve <= 1e-15 * scale else min(room, (slope[down] - slope[up]) / curve)
        w[up] += step
        w[down] -= step
    return w


def gradients(student: Float[Tensor, "n c"], scores: Sequence[Float[Tensor, "n c"]], temperature: float) -> Tensor:
    """``(m, n, c)`` of ``T^2 KL(q_j || p)`` with respect to the student's scores, over T: ``p - q_j``."""
    p = torch.softmax(full_precision(student) / temperature, dim=-1)
    return torch.stack([p - torch.softmax(full_precision(z) / temperature, dim=-1) for z in scores])


# ---------------------------------------------------------------- one target of several students


def surest(scores: Float[Tensor, "m n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """The scores of whoever has the least cross-entropy with the label (KDCL-Naive); their mean where it is below 0."""
    ce = torch.stack([cross_entropy(z, labels) for z in scores])
    best = scores.gather(0, ce.argmin(dim=0)[None, :, None].expand(1, *scores.shape[1:]))[0]
    return torch.where((labels >= 0)[:, None], best, scores.mean(dim=0))


def least(scores: Float[Tensor, "m n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """Of each class the least score, after every one's score of the label was taken off (KDCL-MinLogit).

    The label's own is 0, so nobody is surer of it than the least sure is of another class. The mean of the scores where
    the label is below 0.
    """
    at = labels.clamp(min=0)[None, :, None].expand(len(scores), -1, 1)
    lowest = (scores - scores.gather(2, at)).amin(dim=0)
    return torch.where((labels >= 0)[:, None], lowest, scores.mean(dim=0))


def likeliest(scores: Float[Tensor, "m n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """``sum_k a_k z_k`` of each row, a >= 0 and sum a = 1, by which its label is likeliest (KDCL-Linear).

    The mean of the scores where the label is below 0.
    """
    weights = likeliest_weights(scores, labels.clamp(min=0))
    mixed = torch.einsum("mn,mnc->nc", weights.to(scores), scores)
    return torch.where((labels >= 0)[:, None], mixed, scores.mean(dim=0))


def likeliest_weights(scores: Float[Tensor, "m n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "m n"]:
    """The weights of `likeliest`, in float64: for each row the least point of a convex function on the simplex.

    Two students at a time trade weight (`_trade`) until none has a steeper slope than another, or no weight left.
    """
    z = scores.double()
    m, n, _ = z.shape
    z = z - z.gather(2, labels[None, :, None].expand(m, n, 1))  # the label's own is 0: what is left is a logsumexp
    w = z.new_full((m, n), 1 / m)
    for _ in range(SWEEPS):
        for i in range(m):
            for j in range(i + 1, m):
                t = _trade(torch.einsum("mn,mnc->nc", w, z), z[i] - z[j], -w[i], w[j])
                w[i], w[j] = (w[i] + t).clamp(min=0), (w[j] - t).clamp(min=0)
        p = torch.einsum("mn,mnc->nc", w, z).softmax(dim=-1)
        slopes = torch.einsum("nc,mnc->mn", p, z)
        steepest = slopes.masked_fill(w == 0, -torch.inf).amax(dim=0)
        if bool((steepest - slopes.amin(dim=0) <= SLOPE).all()):
            break
    return w / w.sum(dim=0)


def _trade(at: Tensor, gap: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``(n,)`` t between `low` and `high` by which logsumexp(at + t gap) is least: Newton's step where it stays within
    the bracket, half of that where it does not."""

    def slopes(t: Tensor) -> tuple[Tensor, Tensor]:
        p = (at + t[:, None] * gap).softmax(dim=-1)
        slope = (p * gap).sum(dim=-1)
        return slope, (p * gap.square()).sum(dim=-1) - slope.square()

    none, all_ = slopes(low)[0] >= 0, slopes(high)[0] <= 0
    below, above, t = low, high, torch.zeros_like(low)
    for _ in range(TRADES):
        slope, curve = slopes(t)
        below, above = torch.where(slope < 0, t, below), torch.where(slope > 0, t, above)
        step = t - slope / curve.clamp(min=1e-30)
        t = torch.where((step > below) & (step < above) | (slope == 0), step, (below + above) / 2)
    return torch.where(none, low, torch.where(all_, high, t))


def by_errors(probabilities: Float[Tensor, "m n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " m"]:
    """``C^-1 1 / (1' C^-1 1)`` with ``C_ij = mean_n (p_i - y) . (p_j - y)``: the least squared error of a weighted sum.

    Weights sum to 1 and may be negative (KDCL-General). C has a millionth of its mean diagonal added, as students that
    are alike would leave it singular.
    """
    errors = probabilities - F.one_hot(labels, probabilities.shape[2])
    c = torch.einsum("inc,jnc->ij", errors, errors) / max(1, len(labels))
    c = c + RIDGE * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype, device=c.device)
    weights = torch.linalg.solve(c, torch.ones_like(c[0]))
    out: Tensor = weights / weights.sum()
    return out


# ---------------------------------------------------------------- how sure a teacher is of what is true


def cross_entropy(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Of each row with its label; 0 where that is below 0."""
    return F.cross_entropy(full_precision(scores), labels.clamp(min=0), reduction="none").where(labels >= 0, 0.0)


def transcript_entropy(
    scores: Float[Tensor, "b t c"], frames: Int[Tensor, " b"], labels: Int[Tensor, "b l"], lengths: Int[Tensor, " b"],
    blank: int,
) -> Float[Tensor, " b"]:  # fmt: skip
    """CTC's negative log-likelihood of each item's label sequence, per label; its frames have no label of their own.

    Per label and not per sequence, so that long utterances do not always come down to their best teacher alone.
    """
    log_p = F.log_softmax(full_precision(scores), dim=-1).transpose(0, 1)
    targets = labels.clamp(min=0)
    found = F.ctc_loss(log_p, targets, frames, lengths, blank=blank, reduction="none", zero_infinity=False)
    return (found / lengths.clamp(min=1)).clamp(max=WORST)
