"""Superpixels of a photograph: patches of one colour, between whose edges few things end.

SLIC (Achanta et al.: SLIC Superpixels Compared to State-of-the-art Superpixel Methods, 2012), as SLidR cuts photographs
(Sautier et al., CVPR 2022, 3.2): k-means in colour and place, each pixel among the nine centres around it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.ndimage import gaussian_filter

#: Weight of place against colour, and the blur before, in pixels of a photograph of 900 rows: SLidR's.
COMPACT, BLUR, ROWS = 6.0, 3.0, 900
#: Rounds of k-means.
ROUNDS = 10
#: sRGB to XYZ, and the white of D65.
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def superpixels(rgb: UInt8[np.ndarray, "h w 3"], count: int) -> Int[np.ndarray, "h w"]:
    """The superpixel of each pixel, from 0; about `count` of them. A superpixel may be of several parts."""
    height, width = rgb.shape[:2]
    side = np.sqrt(height * width / count)
    down, right = max(1, round(height / side)), max(1, round(width / side))
    colour = gaussian_filter(lab(rgb), (BLUR * height / ROWS,) * 2 + (0.0,))
    i, j = np.indices((height, width))
    cell = (i * down // height, j * right // width)
    # a pixel and a centre are five numbers each: what a place weighs is in its unit
    unit = COMPACT / side
    pixels = np.concatenate([colour, unit * i[..., None], unit * j[..., None]], axis=2)
    label: np.ndarray = cell[0] * right + cell[1]
    around = np.stack([
        np.clip(cell[0] + a, 0, down - 1) * right + np.clip(cell[1] + b, 0, right - 1)
        for a in (-1, 0, 1) for b in (-1, 0, 1)
    ])  # fmt: skip
    centres = _means(pixels, label, down * right, np.zeros((down * right, 5)))
    for _ in range(ROUNDS):
        distance = np.stack([((pixels - centres[near]) ** 2).sum(axis=2) for near in around])
        label = np.take_along_axis(around, distance.argmin(axis=0)[None], axis=0)[0]
        centres = _means(pixels, label, down * right, centres)
    return label


def _means(
    pixels: Float[np.ndarray, "h w 5"], label: Int[np.ndarray, "h w"], count: int, before: Float[np.ndarray, "k 5"]
) -> Float[np.ndarray, "k 5"]:
    """Of the pixels of each label; of a label without any what it was `before`."""
    number = np.bincount(label.ravel(), minlength=count)
    sums = np.stack([np.bincount(label.ravel(), part.ravel(), count) for part in np.moveaxis(pixels, 2, 0)], axis=1)
    found: np.ndarray = np.where(number[:, None] > 0, sums / np.maximum(number, 1)[:, None], before)
    return found


def lab(rgb: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """CIE L*a*b* of sRGB under D65."""
    value = rgb.astype(np.float64) / 255
    linear = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    ratio = linear @ XYZ.T / XYZ.sum(axis=1)
    edge = 6 / 29
    root = np.where(ratio > edge**3, np.cbrt(ratio), ratio / (3 * edge**2) + 4 / 29)
    x, y, z = np.moveaxis(root, 2, 0)
    found: np.ndarray = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=2)
    return found


__all__ = ["lab", "superpixels"]
