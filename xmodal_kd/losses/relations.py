"""Losses between relations among rows: no widths to match, no projector to train."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .base import loss, same_rows


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
    n, c = student.shape
    if n < 2:
        raise ValueError(f"cka compares rows with one another: it needs at least 2, got {n}")
    x, y = student, teacher
    if centre:
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    if n < max(c, teacher.shape[1]):
        gram_x, gram_y = x @ x.T, y @ y.T
        cross = (gram_x * gram_y).sum()
    else:
        gram_x, gram_y = x.T @ x, y.T @ y
        cross = (y.T @ x).square().sum()
    scale = (gram_x.square().sum() * gram_y.square().sum()).clamp(min=1e-24).sqrt()
    return 1 - cross / scale


@loss(
    "sp", reduction="batch", family="relations", year=2019, needs="features",
    paper="Tung, Mori: Similarity-Preserving Knowledge Distillation",
    properties="zero_at_teacher scale_invariant widths_differ",
)  # fmt: skip
def sp(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """``|G_t - G_s|_F^2 / n^2``, G the rows' inner products, each row of G of norm 1.

    Quadratic in the rows: meant for items or regions, not for all frames of a batch. Published with a weight of 3000.
    """
    same_rows(student, teacher)
    gram_s, gram_t = F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1)
    return (gram_t - gram_s).square().mean()


@loss(
    "pkt", reduction="batch", family="relations", year=2018, needs="features",
    paper="Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer",
    properties="zero_at_teacher scale_invariant widths_differ",
)  # fmt: skip
def pkt(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """``mean_ij P_t log(P_t / P_s)``, P the rows' cosine similarities (moved to 0..1) as probabilities.

    The diagonal counts, as in the release. Quadratic in the rows. Published with a weight of 30000.
    """
    same_rows(student, teacher)
    p_s, p_t = _neighbours(student), _neighbours(teacher)
    return (p_t * torch.log((p_t + 1e-7) / (p_s + 1e-7))).mean()


def _neighbours(rows: Tensor) -> Tensor:
    unit = F.normalize(rows, dim=1)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


#: Rows beyond which the n^3 angles of `rkd` would fill the memory.
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
    total = distance * F.smooth_l1_loss(_distances(student), _distances(teacher))
    return total + angle * F.smooth_l1_loss(_angles(student), _angles(teacher)) if angle else total


def _distances(rows: Tensor) -> Tensor:
    """``(n, n)`` Euclidean distances over their mean, which leaves out the diagonal."""
    n = len(rows)
    squared = (rows[:, None] - rows[None]).square().sum(dim=-1)
    apart = squared > 1e-24  # where two rows coincide the root has no gradient
    d = torch.where(apart, squared, 1.0).sqrt() * apart
    return d / (d.sum() / (n * (n - 1))).clamp(min=1e-12)


def _angles(rows: Tensor) -> Tensor:
    """``(n, n, n)`` cosines at row j between the directions to i and to k."""
    towards = F.normalize(rows[None] - rows[:, None], dim=-1)  # j i c
    return torch.einsum("jic,jkc->jik", towards, towards)
