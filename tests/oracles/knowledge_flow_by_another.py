"""Knowledge Flow by somebody who has not seen its implementation: slow NumPy, from Liu et al. (ICLR 2019) as the
project's reference has it; no release was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def softmax(v: Array) -> Array:
    e = np.exp(v - v.max())
    return np.asarray(e / e.sum())


def mix(own: Array, teachers: Sequence[Array], Q: Sequence[Array], b: Sequence[Array], w: Array) -> Array:
    """``p_0 own + sum_k p_k Q_k(teacher_k)``, p = softmax(w); own ``(B, C, ...)``, teachers ``(B, C_k, ...)``, Q_k
    ``(C, C_k)`` a linear map or 1x1 convolution with bias b_k."""
    p, out = softmax(w), np.zeros_like(own)
    for n in range(own.shape[0]):
        for c in range(own.shape[1]):
            out[n, c] = p[0] * own[n, c]
            for k, one in enumerate(teachers):
                out[n, c] += p[k + 1] * (sum(Q[k][c, d] * one[n, d] for d in range(one.shape[1])) + b[k][c])
    return out


def dependency(ws: Sequence[Array]) -> float:
    """The sum over layers of -log p_0."""
    return sum(-math.log(softmax(w)[0]) for w in ws)


def drift(z_old: Array, z_new: Array) -> float:
    """The mean over rows of KL(old student || new student)."""
    total = 0.0
    for a, c in zip(z_old, z_new, strict=True):
        p, q = softmax(a), softmax(c)
        total += float((p * (np.log(p) - np.log(q))).sum())
    return total / len(z_old)


def inputs(seed: int = 0) -> dict[str, Any]:
    r = np.random.RandomState(seed)
    widths = [5, 3]
    return {
        "own": r.randn(3, 4, 2, 2), "teachers": [r.randn(3, c, 2, 2) for c in widths],
        "Q": [r.randn(4, c) for c in widths], "b": [r.randn(4) for _ in widths], "w": r.randn(3),
    }  # fmt: skip
