"""Resampling by plain loops over items, cells and neighbours."""

from __future__ import annotations

import math

import numpy as np

Rows = list[np.ndarray | None]


def sequence(rows: Rows, size: int, way: str) -> Rows:
    """An item's `rows` (None: not valid) along one axis, as `size` rows."""
    return [_mean(rows, _weights(i, size, len(rows), way)) for i in range(size)]


def grid(
    rows: dict[tuple[int, int], np.ndarray | None], own: tuple[int, int], other: tuple[int, int], way: str
) -> Rows:
    """Rows by cell of a grid of `other` cells, as one of `own`, in order."""
    ways = ["linear" if way == "average" and t <= s else way for s, t in zip(own, other, strict=True)]
    out: Rows = []
    for i in range(own[0]):
        for j in range(own[1]):
            down = _weights(i, own[0], other[0], ways[0])
            right = _weights(j, own[1], other[1], ways[1])
            found = {(a, b): u * v for a, u in down.items() for b, v in right.items()}
            cells = sorted(rows)
            out.append(_mean([rows[c] for c in cells], {cells.index(c): w for c, w in found.items()}))
    return out


def points(here: np.ndarray, there: np.ndarray, rows: Rows, count: int) -> Rows:
    """Each point's mean over the nearest `count` others, by one over the squared distance."""
    out: Rows = []
    for x in here:
        far = [(float(((x - y) ** 2).sum()), j) for j, y in enumerate(there)]
        near = sorted((d, j) for d, j in far if math.isfinite(d) and rows[j] is not None)[:count]
        out.append(_mean(rows, {j: 1 / (d + 1e-8) for d, j in near}))
    return out


def _weights(i: int, own: int, other: int, way: str) -> dict[int, float]:
    """Weights of the other side's cells for cell `i` of `own`."""
    low, high = i * other / own, (i + 1) * other / own
    centre = (low + high) / 2
    if way == "nearest":
        return {math.floor(centre): 1.0}
    if way == "average":
        return {j: w for j in range(other) if (w := min(high, j + 1) - max(low, j)) > 1e-9}
    at = min(max(centre - 0.5, 0.0), other - 1.0)
    return {j: w for j in range(other) if (w := 1 - abs(at - j)) > 1e-9}


def _mean(rows: Rows, weights: dict[int, float]) -> np.ndarray | None:
    known = [(w, row) for j, w in weights.items() if (row := rows[j]) is not None]
    whole = sum(w for w, _ in known)
    return sum(w * row for w, row in known) / whole if known else None  # type: ignore[no-any-return]
