"""Oracles by another, who had read papers and releases and not the code, in the form that the registry asks for."""

from __future__ import annotations

import numpy as np

from . import category_by_another, token_by_another
from .maths import Array, Ints


def category(
    student: Array,
    teacher: Array,
    labels: Ints,
    *,
    intra: float = 1.0,
    inter: float = 1.0,
    released: bool = False,
) -> float:
    """Chen et al. (2020): rows around the centres of their classes, and cosines of the centres."""
    if not len(student):
        return 0.0
    parts = [
        intra * category_by_another.intra(student, teacher, labels, divide=released),
        inter * category_by_another.inter(student, teacher, labels, divide=released),
    ]
    return float(np.sum(parts))


def hard_label(student: Array, teacher: Array, *, smoothing: float = 0.0) -> Array:
    """Touvron et al. (2021), eq. 3: the second half."""
    labels = token_by_another.hard_labels(teacher)
    rows = range(len(student))
    return np.array([token_by_another.cross_entropy(student[[i]], labels[[i]], smoothing) for i in rows])
