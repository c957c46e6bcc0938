"""What several oracles are made of; 0/0 counts as 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def log_softmax(z: Array) -> Array:
    shifted = z - z.max()
    return shifted - np.log(np.sum(np.exp(shifted)))


def log_sigmoid(x: float) -> float:
    return -np.logaddexp(0.0, -x)


def kl(log_p: Array, log_q: Array) -> float:
    return sum(np.exp(log_p[k]) * (log_p[k] - log_q[k]) for k in range(len(log_p)))


def mean_square(a: Array, b: Array) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def ratio(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0


def unit(vector: Array) -> Array:
    length = np.sqrt(np.sum(vector**2))
    return vector / length if length > 0 else vector


def std(vector: Array, *, unbiased: bool) -> float:
    """Exactly 0 for a constant vector, whatever rounding makes of its mean."""
    if np.all(vector == vector[0]):
        return 0.0
    mean = sum(vector) / len(vector)
    return np.sqrt(sum((x - mean) ** 2 for x in vector) / (len(vector) - unbiased))
