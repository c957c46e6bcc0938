"""Phased and trajectory consistency, CTM, LADD and ADD, DMD's regression, of one sample in float64.

By the same hand as the methods, from the papers' statements; `trajectories_by_another` has all but DMD's regression by
somebody else. Noisy samples z = A x + S eps; a jump is one DDIM step with a given x. A level is a pair (A, S); the
clean sample's is (1, 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from .maths import Array

Level = tuple[float, float]
#: x seen in z at a level.
Sees = Callable[[Array, Level], Array]
#: x seen in z at a level for a jump to another.
Jumps = Callable[[Array, Level, Level], Array]


def jump(z: Array, x: Array, at: Level, to: Level) -> Array:
    """Along the line to where the noise, were x the sample, is to[1]: to[0] x + to[1] eps, eps = (z - A x) / S."""
    return to[0] * x + to[1] * (z - at[0] * x) / at[1]


def edge(index: int, grid: int, phases: int) -> int:
    """The lower edge of the phase of the interval `index` of `grid` equal ones, counted from the clean sample up."""
    edges = [grid * m // phases for m in range(phases)]
    return max(e for e in edges if e <= index)


def apart(a: Array, b: Array, kind: str, c: float) -> float:
    values = [(p - q) ** 2 for p, q in zip(a.ravel(), b.ravel(), strict=True)]
    return sum(v if kind == "l2" else math.sqrt(v + c * c) - c for v in values) / len(values)


def trajectory_loss(
    student: Sees, target: Sees, teacher: Sees, z: Array, t: Level, after: Level, end: Level, kind: str, c: float
) -> float:
    """d(f(z, t -> s), f-(z', t' -> s)), z' where the teacher's DDIM step leads: both points as they are."""
    there = jump(z, teacher(z, t), t, after)
    arrived = there if after == end or after[1] == 0 else jump(there, target(there, after), after, end)
    return apart(jump(z, student(z, t), t, end), arrived, kind, c)


def ctm_loss(
    g: Jumps, teacher: Sees, z: Array, levels: Sequence[Level], end: Level, clean: Level = (1.0, 0.0)
) -> float:  # fmt: skip
    """|G(G(z, t, s), s, 0) - G(G(z_u, u, s), s, 0)|^2 / d, z_u by DDIM steps of the teacher through `levels`."""
    reached = z
    for at, to in pairwise(levels):
        reached = jump(reached, teacher(reached, at), at, to)

    def go(z: Array, at: Level, to: Level) -> Array:
        return z if at[1] <= to[1] else jump(z, g(z, at, to), at, to)

    return apart(go(go(z, levels[0], end), end, clean), go(go(reached, levels[-1], end), end, clean), "l2", 0.0)


def dsm_loss(seen: Array, x: Array, level: Level, weight: float) -> float:
    """w |g(z, t, t) - x|^2 / d."""
    return weight * apart(seen, x, "l2", 0.0)


def logit_normal_level(u: float, mean: float, std: float) -> float:
    """sigma / (alpha + sigma) whose logit's distribution function is u, by bisection."""

    def below(level: float) -> float:
        return 0.5 * (1 + math.erf((math.log(level / (1 - level)) - mean) / (std * math.sqrt(2))))

    low, high = 1e-12, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < u else (low, middle)
    return (low + high) / 2


def hinge(real: Sequence[float], made: Sequence[float]) -> float:
    """Of the logits of k heads: what the critic minimises."""
    return float(np.mean([max(0.0, 1 - r) + max(0.0, 1 + m) for r, m in zip(real, made, strict=True)]))


def r1(heads: Sequence[Callable[[Array], float]], features: Sequence[Array], step: float = 1e-5) -> float:
    """A mean over heads of |dD / dF|^2, by central differences."""
    total = 0.0
    for head, feature in zip(heads, features, strict=True):
        for i in np.ndindex(feature.shape):
            move = np.zeros_like(feature)
            move[i] = step
            total += ((head(feature + move) - head(feature - move)) / (2 * step)) ** 2
    return total / len(heads)


def add_distance(x: Array, teacher: Sees, noise: Array, level: Level) -> float:
    """c |x - x_psi(A x + S noise)|^2 / d with c = A / sqrt(A^2 + S^2), what of the scaled noisy sample is signal."""
    A, S = level
    return A / math.hypot(A, S) * apart(x, teacher(A * x + S * noise, level), "l2", 0.0)
