"""Losses between relations among rows: no widths to match, no projector to train."""

from __future__ import annotations

from itertools import permutations
from math import exp, factorial
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import Positive, loss, same_rows, same_shape
from .blocks import block_sum, distances, neighbours_of, side_by_side
from .guards import LEAST, centred, direction, inverse_root, living

Count = Annotated[int, Field(ge=1)]
AtLeastOne = Annotated[float, Field(ge=1)]
#: Neighbours whose orders are listed: 6! = 720.
Few = Annotated[int, Field(ge=1, le=6)]


@loss(
    "cka", reduction="batch", family="relations", confidence="B", year=2019, needs="features",
    paper="Kornblith et al.: Similarity of Neural Network Representations Revisited (linear CKA, as a loss)",
    properties="zero_at_teacher scale_invariant row_shift_invariant widths_differ",
)  # fmt: skip
def cka(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], *, centre: bool = True) -> Float[Tensor, ""]:
    """``1 - |Y'X|_F^2 / (|X'X|_F |Y'Y|_F)`` of column-centred features (section 3).

    The (d x d) form and the (n x n) Gram form are equal: whichever is smaller is computed, so long batches of frames
    or points stay cheap. Invariant to rotation and scale of either side. Needs at least two rows.

    Args:
        centre: subtract the mean row; without it this is the uncentred form of relation CKA.
    """
    same_rows(student, teacher)
    n = len(student)
    if n < 2:
        raise ValueError(f"cka compares rows with one another: it needs at least 2, got {n}")
    x, y = student, teacher
    if centre:
        x, y = centred(x, dim=0), centred(y, dim=0)
    return 1 - _alignment(x, y)


def _alignment(x: Tensor, y: Tensor) -> Tensor:
    """Uncentred linear CKA of rows ``(n, c)`` and ``(n, d)``, by the smaller of the two forms; 0 where a side is 0."""
    if len(x) < max(x.shape[1], y.shape[1]):
        gram_x, gram_y = x @ x.T, y @ y.T
        cross = (gram_x * gram_y).sum()
    else:
        gram_x, gram_y = x.T @ x, y.T @ y
        cross = (y.T @ x).square().sum()
    return cross * inverse_root(gram_x.square().sum(), LEAST**2) * inverse_root(gram_y.square().sum(), LEAST**2)


@loss(
    "rcka", reduction="batch", family="relations", confidence="B", year=2024, needs="features",
    paper="Zhou et al.: Rethinking Centered Kernel Alignment in Knowledge Distillation (relation CKA)",
    properties="zero_at_teacher scale_invariant",
)  # fmt: skip
def rcka(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """One minus the mean of two uncentred CKAs: rows as samples, and columns as samples.

    For logits (n samples of c classes) these compare the relations among samples and among classes; for features, among
    positions and among channels. The rows' term is invariant to rotation, the columns' ties the channels to the
    teacher's, so widths must agree. Neither needs more than a (c x c) or an (n x n) matrix, whichever is smaller.
    """
    same_shape(student, teacher)
    return 1 - (_alignment(student, teacher) + _alignment(student.T, teacher.T)) / 2


@loss(
    "sp", reduction="batch", family="relations", year=2019, needs="features",
    paper="Tung, Mori: Similarity-Preserving Knowledge Distillation",
    properties="zero_at_teacher scale_invariant widths_differ",
)  # fmt: skip
def sp(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """``|G_t - G_s|_F^2 / n^2``, G the rows' inner products, each row of G of norm 1.

    Quadratic in the rows in time, not in memory: meant for items or regions. Published with a weight of 3000.
    """
    same_rows(student, teacher)
    sides = living(student), living(teacher)

    def block(part: slice) -> Tensor:
        gram_s, gram_t = (direction(x[part] @ x.T, least=LEAST**2) for x in sides)
        return (gram_t - gram_s).square().sum()

    n = len(student)
    return block_sum(block, n, n) / max(n, 1) ** 2


@loss(
    "pkt", reduction="batch", family="relations", year=2018, needs="features",
    paper="Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer",
    properties="zero_at_teacher scale_invariant widths_differ",
)  # fmt: skip
def pkt(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """``mean_ij P_t log(P_t / P_s)``, P the rows' cosine similarities (moved to 0..1) as probabilities.

    The diagonal counts, as in the release. Quadratic in the rows in time. Published with a weight of 30000.
    """
    same_rows(student, teacher)
    unit_s, unit_t = direction(student), direction(teacher)

    def neighbours(unit: Tensor, part: slice) -> Tensor:
        similarity = (unit[part] @ unit.T + 1) / 2
        return similarity / similarity.sum(dim=1, keepdim=True)

    def block(part: slice) -> Tensor:
        p_s, p_t = neighbours(unit_s, part), neighbours(unit_t, part)
        return (p_t * torch.log((p_t + 1e-7) / (p_s + 1e-7))).sum()

    n = len(student)
    return block_sum(block, n, n) / max(n, 1) ** 2


#: Rows beyond which the n^3 angles of `rkd` would take minutes.
MOST_ROWS = 256


@loss(
    "rkd", reduction="batch", family="relations", year=2019, needs="features",
    paper="Park et al.: Relational Knowledge Distillation",
    properties="zero_at_teacher scale_invariant row_shift_invariant widths_differ",
)  # fmt: skip
def rkd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], *, distance: float = 25.0, angle: float = 50.0
) -> Float[Tensor, ""]:
    """Huber losses of pairwise distances, each side's over its mean, and of angles, with a weight each.

    Cubic in the rows: at most 256 where angles count; give it items or regions, not frames.
    """
    same_rows(student, teacher)
    n = len(student)
    if n < 2 or (angle and n > MOST_ROWS):
        raise ValueError(f"rkd compares 2 to {MOST_ROWS} rows with one another (more with angle: 0), got {n}")
    total = student.sum() * 0.0
    if distance:
        mean_s, mean_t = (_mean_distance(x) for x in (student, teacher))

        def apart(part: slice) -> Tensor:
            d_s, d_t = distances(student[part], student) / mean_s, distances(teacher[part], teacher) / mean_t
            return _huber(d_s, d_t)

        total = total + distance * block_sum(apart, n, n) / n**2
    if angle:

        def turned(part: slice) -> Tensor:
            return _huber(_angles(student, part), _angles(teacher, part))

        widest = max(student.shape[1], teacher.shape[1], n)
        total = total + angle * block_sum(turned, n, n * widest) / n**3
    return total


def _huber(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the Huber losses; torch's own sum keeps the memory of all its terms."""
    return F.smooth_l1_loss(a, b, reduction="none").sum()


def _mean_distance(rows: Tensor) -> Tensor:
    """Mean of all pairs' distances, a row and itself left out; 1 where all rows are one."""
    n = len(rows)
    mean = block_sum(lambda part: distances(rows[part], rows).sum(), n, n) / (n * (n - 1))
    return torch.where(mean > LEAST, mean, 1.0)


def _angles(rows: Tensor, part: slice) -> Tensor:
    """``(j, n, n)`` cosines at row j of a part between the directions to i and to k."""
    towards = direction(rows[None] - rows[part, None])  # j i c
    return torch.einsum("jic,jkc->jik", towards, towards)


@loss(
    "cc", reduction="batch", family="relations", year=2019, needs="features",
    paper="Peng et al.: Correlation Congruence for Knowledge Distillation",
    properties="zero_at_teacher scale_invariant widths_differ",
)  # fmt: skip
def cc(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], *, order: Count = 2, gamma: Positive = 0.4
) -> Float[Tensor, ""]:
    """``mean_ij (K_s - K_t)^2`` with the Gaussian kernel ``exp(-gamma |x - y|^2)`` of rows of norm 1.

    The kernel is its Taylor series up to `order` (eq. 8): ``exp(-2 gamma) sum_p (2 gamma)^p / p! (x . y)^p``. Embed
    the rows first where they are long (a projector); a batch with few classes says most. Published with a weight of 100
    on this mean, 0.003 on the sum.
    """
    same_rows(student, teacher)
    unit_s, unit_t = direction(student), direction(teacher)

    def kernel(unit: Tensor, part: slice) -> Tensor:
        cosines = unit[part] @ unit.T
        terms = [(2 * gamma) ** p / factorial(p) * cosines.pow(p) for p in range(order + 1)]
        return exp(-2 * gamma) * torch.stack(terms).sum(dim=0)

    n = len(student)
    return block_sum(lambda part: (kernel(unit_s, part) - kernel(unit_t, part)).square().sum(), n, n) / max(n, 1) ** 2


@loss(
    "darkrank", reduction="batch", family="relations", year=2018, needs="features",
    paper="Chen, Wang, Zhang: DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer",
    properties="widths_differ",
)  # fmt: skip
def darkrank(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"],
    *, alpha: Positive = 3.0, beta: AtLeastOne = 3.0, nearest: Few = 4, normalise: bool = True,
) -> Float[Tensor, ""]:  # fmt: skip
    """Minus the log-probability that the student ranks a row's neighbours as the teacher does (hard transfer, ListMLE).

    ``-mean_q sum_i [S(q, i) - logsumexp_{j >= i} S(q, j)]``, i over the teacher's `nearest` rows to q in its order and
    ``S(q, x) = -alpha |q - x|^beta`` the student's score. For embeddings that are searched by distance; published with
    a weight of 2. Needs three rows for anything to rank.

    Args:
        normalise: bring rows to norm 1 first, without which a distance's power overflows.
    """
    scores, _ = _neighbour_scores(student, teacher, alpha, beta, nearest, normalise)
    return -_log_probability(scores).mean()


@loss(
    "darkrank_soft", reduction="batch", family="relations", year=2018, needs="features",
    paper="Chen, Wang, Zhang: DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer",
    properties="zero_at_teacher widths_differ",
)  # fmt: skip
def darkrank_soft(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"],
    *, alpha: Positive = 3.0, beta: AtLeastOne = 3.0, nearest: Few = 4, normalise: bool = True,
) -> Float[Tensor, ""]:  # fmt: skip
    """KL divergence between the two networks' distributions over all orders of a row's neighbours (soft transfer).

    As `darkrank`, with ``nearest!`` orders a row, so at most 6 neighbours. Meant over rows.
    """
    s, t = _neighbour_scores(student, teacher, alpha, beta, nearest, normalise)
    orders = torch.tensor(list(permutations(range(s.shape[1]))), device=s.device)
    log_s, log_t = _log_probability(s[:, orders]), _log_probability(t[:, orders])
    return (log_t.exp() * (log_t - log_s)).sum(dim=1).mean()


def _neighbour_scores(
    student: Tensor, teacher: Tensor, alpha: float, beta: float, nearest: int, normalise: bool
) -> tuple[Tensor, Tensor]:
    """``(n, m)`` scores of the teacher's m nearest rows to each row, in its order, on either side."""
    same_rows(student, teacher)
    n = len(student)
    if n < 2:
        raise ValueError(f"darkrank ranks rows by their distance to one another: it needs at least 2, got {n}")
    if normalise:
        student, teacher = direction(student), direction(teacher)
    index = neighbours_of(teacher, min(nearest, n - 1))

    def scores(rows: Tensor) -> Tensor:
        apart: Tensor = torch.linalg.vector_norm(rows[:, None] - rows[index], dim=-1)
        return -alpha * apart.pow(beta)

    return scores(student), scores(teacher)


def _log_probability(scores: Tensor) -> Tensor:
    """Of the order in which `scores` ``(..., m)`` stand: each is drawn from those that are left (Plackett-Luce)."""
    left = scores.flip(-1).logcumsumexp(-1).flip(-1)
    value: Tensor = (scores - left).sum(dim=-1)
    return value


@loss(
    "ickd", reduction="items", family="relations", year=2021, needs="features", confidence="B",
    paper="Liu et al.: Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation",
    properties="zero_at_teacher",
)  # fmt: skip
def ickd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], item: Int[Tensor, " n"], items: int,
    *, normalise: bool = True, released: bool = False,
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``|G_s - G_t|_F^2 / c^2``, G the channels' inner products over an item's rows, behind a projector.

    Positions need not agree, only channels do. The paper's weight of 2.5 belongs to the `released` form: tune it here.

    Args:
        normalise: bring each channel to norm 1 over the item's rows first; without it G grows with the rows.
        released: as the released code has it: channels as they are and each row of G brought to norm 1, so that
            long channels outweigh short ones in every row; divided by c, not c^2.
    """
    same_shape(student, teacher)

    def gram(features: Tensor) -> Tensor:
        rows, _ = side_by_side(features, item, items)
        if released:
            rows = living(rows, dim=1)
            return direction(rows.mT @ rows, least=LEAST**2)
        rows = direction(rows, dim=1) if normalise else rows
        return rows.mT @ rows

    values = (gram(student) - gram(teacher)).square().mean(dim=(1, 2))
    values = values * student.shape[1] if released else values
    return values, torch.bincount(item, minlength=items) > 0
