"""Dominant kernels and knowledge pre-regression in this project's own form, by somebody who has not seen the code: slow
NumPy. The equations of Wang, Deng, Wang (ECCV 2016) could be read nowhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def conv(x: Array, w: Array) -> Array:
    """A plain convolution, stride 1, padded with zeros by half its kernel."""
    (n, channels, height, width), (out, _, k, _) = x.shape, w.shape
    y = np.zeros((n, out, height, width))
    for b, o, h, v, i, a, c in np.ndindex(n, out, height, width, channels, k, k):
        row, column = h + a - k // 2, v + c - k // 2
        if 0 <= row < height and 0 <= column < width:
            y[b, o, h, v] += w[o, i, a, c] * x[b, i, row, column]
    return y


def composed(kernels: Array, mix: Array) -> Array:
    """The whole weight: ``W[o, i] = sum_r mix[o, i, r] K[i, r]``."""
    out, channels, count = mix.shape
    w = np.zeros((out, channels, *kernels.shape[2:]))
    for o, i, r in np.ndindex(out, channels, count):
        w[o, i] += mix[o, i, r] * kernels[i, r]
    return w


def log_softmax(z: Array) -> Array:
    m = z.max()
    return np.asarray(z - m - math.log(np.exp(z - m).sum()))


def pre_regression(f_t: Array, f_s: Array, adapter: Array, bias: Array, form: str = "softmax") -> float:
    """The mean over rows ``(n, c)`` of a cross-entropy over channels, or of one for each channel, summed."""
    total = 0.0
    for t, s in zip(f_t, f_s, strict=True):
        z = adapter @ s + bias
        if form == "softmax":
            total -= float((np.exp(log_softmax(t)) * log_softmax(z)).sum())
        else:
            for tc, zc in zip(t, z, strict=True):
                p, q = 1 / (1 + math.exp(-tc)), 1 / (1 + math.exp(-zc))
                total -= p * math.log(q) + (1 - p) * math.log(1 - q)
    return total / len(f_t)
