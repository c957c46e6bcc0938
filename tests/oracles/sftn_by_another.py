"""SFTN's tuning of the teacher by somebody who has not seen its implementation: slow NumPy after a summary of Park et
al. (NeurIPS 2021); no release was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def softmax(v: Array) -> Array:
    e = np.exp(v - v.max())
    return np.asarray(e / e.sum())


def ce(z: Array, y: Sequence[int]) -> float:
    return -sum(math.log(softmax(a)[k]) for a, k in zip(z, y, strict=True)) / len(y)


def kl(zp: Array, zq: Array, T: float) -> float:
    """The mean over rows of KL(softmax(zp / T) || softmax(zq / T)), no T^2."""
    total = 0.0
    for a, b in zip(zp, zq, strict=True):
        p, q = softmax(a / T), softmax(b / T)
        total += float((p * (np.log(p) - np.log(q))).sum())
    return total / len(zp)


def stage1(
    z_t: Array, branches: Sequence[Array], y: Sequence[int], l_ce: float = 1.0, l_kl: float = 1.0, T: float = 1.0,
) -> float:  # fmt: skip
    """Teacher's cross entropy, and means over branches of theirs and of their divergence from the teacher."""
    n = len(branches)
    return ce(z_t, y) + l_kl * sum(kl(z_t, z, T) for z in branches) / n + l_ce * sum(ce(z, y) for z in branches) / n
