"""`recent_logit_losses.sdd` of the tiles of a grid, cut and pooled in loops over positions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from .maths import Array, Ints
from .recent_logit_losses import sdd as of_cells


def sdd(
    student: Array, teacher: Array, labels: Ints, label_item: Ints, item: Ints, items: int, cell: Ints,
    grid: tuple[int, ...], *, scales: Sequence[int] = (2, 4), **params: Any,
) -> Array:  # fmt: skip
    """The whole item first, then every tile that holds a row; an axis of length m is cut where s k / m is whole."""
    values = np.zeros(items)
    for i in range(items):
        mine = [row for row in range(len(student)) if item[row] == i]
        if not mine:
            continue
        at = {row: np.unravel_index(int(cell[row]) % int(np.prod(grid)), grid) for row in mine}
        groups = [mine]
        for scale in scales:
            for tile in product(range(scale), repeat=len(grid)):
                inside = [
                    row
                    for row in mine
                    if all(k / scale <= x / m < (k + 1) / scale for k, x, m in zip(tile, at[row], grid, strict=True))
                ]
                groups += [inside] if inside else []
        pooled = [np.stack([rows[group].mean(axis=0) for group in groups])[None] for rows in (student, teacher)]
        label = next(int(y) for y, of in zip(labels, label_item, strict=True) if of == i)
        values[i] = of_cells(*pooled, np.array([label]), **params)[0]
    return values


def sdd_teacher(student: Array, teacher: Array, item: Ints, **given: Any) -> Array:
    """Tiles agree by their best classes, whatever the label is."""
    return sdd(student, teacher, np.zeros(len(item), dtype=int), item, item, agree="class", **given)
