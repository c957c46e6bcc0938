"""The discrete wavelet transform in loops, by somebody who had not seen the loss; equal to the release's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .maths import Array, Ints

Filters = tuple[Sequence[float], Sequence[float]]
#: Low-pass and high-pass filters of a decomposition, as PyWavelets 1.9 gives them.
WAVES: dict[str, Filters] = {
    "haar": ([0.7071067811865476, 0.7071067811865476], [-0.7071067811865476, 0.7071067811865476]),
    "db3": (
        [0.035226291882100656, -0.08544127388224149, -0.13501102001039084, 0.4598775021193313,
         0.8068915093133388, 0.3326705529509569],
        [-0.3326705529509569, 0.8068915093133388, -0.4598775021193313, -0.13501102001039084,
         0.08544127388224149, 0.035226291882100656],
    ),
}  # fmt: skip


def filtered(line: Array, taps: Sequence[float]) -> Array:
    """``out[n] = sum_k h[k] x[2n + 1 - k]``, 0 outside, ``(N + L - 1) // 2`` values."""
    size, length = len(line), len(taps)
    return np.array([
        sum(taps[k] * line[2 * n + 1 - k] for k in range(length) if 0 <= 2 * n + 1 - k < size)
        for n in range((size + length - 1) // 2)
    ])  # fmt: skip


def one_level(image: Array, low: Sequence[float], high: Sequence[float]) -> tuple[Array, list[Array]]:
    """The low band of an image (h, w), and its three high ones."""
    across = [np.stack([filtered(row, taps) for row in image]) for taps in (low, high)]

    def down(bands: Array, taps: Sequence[float]) -> Array:
        return np.stack([filtered(column, taps) for column in bands.T]).T

    return down(across[0], low), [down(across[0], high), down(across[1], low), down(across[1], high)]


def bands(image: Array, levels: int, wave: str) -> list[Array]:
    """Of an image (c, h, w) the high bands (c, 3, h, w) of each level, the finest first."""
    out = []
    for _ in range(levels):
        found = [one_level(plane, *WAVES[wave]) for plane in image]
        out.append(np.array([high for _, high in found]))
        image = np.array([low for low, _ in found])
    return out


def wavelet_kd(
    student: Array, teacher: Array, cell: Ints, items: int, grid: Sequence[int], *, levels: int = 4, wave: str = "haar"
) -> Array:
    """Sum over levels of the mean absolute difference of the high bands (Zhang et al., 2022).

    Cells without a valid row are 0 on both sides, and the mean is over the share of cells that there are.
    """
    values, cells = np.zeros(items), math.prod(grid)
    for b in range(items):
        sides = []
        for rows in (student, teacher):
            image = np.zeros((rows.shape[1], cells))
            for i in range(len(rows)):
                if cell[i] // cells == b:
                    image[:, cell[i] % cells] = rows[i]
            sides.append(bands(image.reshape(-1, *grid), levels, wave))
        if count := int(np.sum(cell // cells == b)):
            values[b] = sum(np.abs(s - t).mean() for s, t in zip(*sides, strict=True)) * cells / count
    return values
