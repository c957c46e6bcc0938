"""Losses of several teachers as registered, by the formulas in `scheme_teachers`."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from . import scheme_teachers
from .maths import Array, Ints


def uhc(student: Array, teacher: Array, *, temperature: float = 1.0) -> Array:
    """Row by row on the classes whose teacher's score is finite."""
    values = []
    for z_s, z_t in zip(student, teacher, strict=True):
        classes = np.flatnonzero(np.isfinite(z_t))
        values.append(scheme_teachers.uhc(z_s[None], z_t[None, classes], classes, temperature=temperature)[0])
    return np.array(values)


def triplet_votes(student: list[Array], teacher: list[Array], item: list[Ints], *, margin: float = 0.0) -> float:
    """Every triplet of items that have rows, an item being the mean of its rows."""
    there = sorted(set(item[0].tolist()))
    mine, *theirs = [np.array([rows[item[0] == i].mean(axis=0) for i in there]) for rows in [*student, *teacher]]
    triplets = [(i, j, k) for i in range(len(there)) for j, k in combinations(range(len(there)), 2) if i not in (j, k)]
    found = np.array(triplets, dtype=np.int64).reshape(-1, 3)
    return scheme_teachers.you_triplet(mine, theirs, found, margin=margin)
