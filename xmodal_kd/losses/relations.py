"""Losses between relations among rows: no widths to match, no projector to train."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from .base import loss, same_rows


@loss(
    "cka", reduction="batch", family="relations", confidence="B", year=2019, needs="features",
    paper="Kornblith et al.: Similarity of Neural Network Representations Revisited (linear CKA, as a loss)",
    properties="zero_at_teacher scale_invariant row_shift_invariant widths_differ",
)  # fmt: skip
def cka(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n d"], *, centre: bool = True) -> Float[Tensor, ""]:
    """``1 - |Y'X|_F^2 / (|X'X|_F |Y'Y|_F)`` of column-centred features (eq. 3 and section 3).

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
