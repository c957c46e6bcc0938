"""Quantised distillation's stochastic rounding and Huffman size by somebody who has not seen their implementation: slow
NumPy after Polino et al. (ICLR 2018), equal to the authors' release to 1e-12."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
#: What the release gives of `inputs(0)`: mean bits of a code, by bits and bucket (0: none); the first tensor of 2 bits
#: in buckets of 8, rounded by `numbers(0)`.
MEAN_BITS = {
    (1, 0): 1.0,
    (1, 8): 1.0,
    (1, 16): 1.0,
    (2, 0): 1.9166666666666667,
    (2, 8): 2.0,
    (2, 16): 2.0,
    (4, 0): 3.7638888888888897,
    (4, 8): 3.5277777777777777,
    (4, 16): 3.6388888888888893,
}
STOCHASTIC = [
    2.240893199201458,
    1.168169506175501,
    1.168169506175501,
    2.240893199201458,
    2.240893199201458,
    -0.977277879876411,
    1.168169506175501,
    -0.977277879876411,
    -0.10321885179355784,
    0.4159452677919532,
    -0.10321885179355784,
    1.454273506962975,
    0.9351093873774642,
    0.4159452677919532,
    0.4159452677919532,
    -0.10321885179355784,
    1.4940790731576064,
    -0.0713708018152811,
    -0.0713708018152811,
    -0.8540957393017248,
]


def inputs(seed: int = 0) -> list[Array]:
    """Weights of a model: 20, 36, 7 and 9, the last ones equal."""
    r = np.random.RandomState(seed)
    return [r.randn(4, 5), r.randn(3, 2, 2, 3) * 0.2, r.randn(7), np.full(9, 0.25)]


def cut(v: Array, size: int) -> list[list[float]]:
    """Flat, in rows of `size` (0: one row), the last filled up with the last weight; fewer are a short row."""
    flat = list(v.reshape(-1))
    if not size or len(flat) < size:
        return [flat]
    flat += [flat[-1]] * (-len(flat) % size)
    return [flat[i : i + size] for i in range(0, len(flat), size)]


def quantise(w: Array, levels: int, bucket: int, rand: Sequence[float] | None = None) -> tuple[Array, Array]:
    """Evenly spaced points from a bucket's least to its greatest: the values and the levels, both flat.

    Args:
        rand: a number in [0, 1) for each cell of the padded buckets: rounded up where it is below the fraction.
    """
    steps, out, index, k = levels - 1, list[float](), list[int](), 0
    for row in cut(w, bucket):
        low, wide = min(row), max(row) - min(row)
        wide = 1.0 if wide < 1e-10 else wide
        for x in row:
            u = (x - low) / wide * steps
            j = int(np.rint(u)) if rand is None else math.floor(u) + (rand[k] < u - math.floor(u))
            out.append(j / steps * wide + low)
            index.append(int(j))
            k += 1
    return np.array(out[: w.size]), np.array(index[: w.size])


def numbers(seed: int) -> list[float]:
    """For the cells of the first tensor of `inputs`, in buckets of 8."""
    return [float(x) for x in np.random.RandomState(100 + seed).rand(24)]


def mean_bits(counts: Sequence[float]) -> float:
    """Of an optimal prefix code: merge the two smallest until one is left; each merge is a bit more for all in it."""
    c = sorted(x for x in counts if x > 0)
    n, total = sum(c), 0.0
    while len(c) > 1:
        both = c[0] + c[1]
        total += both
        c = sorted([*c[2:], both])
    return total / n
