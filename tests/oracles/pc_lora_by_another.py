"""PC-LoRA by somebody who has not seen its implementation: slow NumPy after summaries of Hwang et al. (2024); no
release was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def decay(n: int, q: int, kind: str) -> float:
    """Factor of the pretrained weight at step n: 1 at n = 0, 0 from n = q on."""
    if n >= q:
        return 0.0
    x = n / q
    return {"linear": 1 - x, "sine": 1 - math.sin(math.pi * x / 2), "cosine": math.cos(math.pi * x / 2)}[kind]


def layer(x: Array, W: Array, b: Array, A: Array, B: Array, lam: float, c: Array) -> Array:
    """``lam (W x + b) + B A x + c`` of rows x; W ``(O, I)``, A ``(r, I)``, B ``(O, r)``."""
    return np.stack([lam * (W @ v + b) + B @ (A @ v) + c for v in x])


def feature(students: Sequence[Array], teachers: Sequence[Array]) -> float:
    pairs = zip(students, teachers, strict=True)
    return float(sum(((s - t) ** 2).mean() for s, t in pairs)) / len(students)


def total(task: float, feat: float, alpha: float = 0.2) -> float:
    return alpha * task + (1 - alpha) * feat
