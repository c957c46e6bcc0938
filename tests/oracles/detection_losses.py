"""Losses of centre heads cell by cell, from formulas of Law, Deng (2018), Zhou et al. (2019), Yang et al. (2022)."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

import numpy as np

Array = np.ndarray


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def gaussian_focal(
    student: Array, item: Array, items: int, labels: Array, *, alpha: float = 2.0, beta: float = 4.0
) -> tuple[Array, Array]:
    """Of each item the sum of CornerNet's eq. 1 without its 1 / N, and N: the number of labels of 1, at least one."""
    total, number = np.zeros(items), np.zeros(items)
    for row in range(len(student)):
        for k in range(student.shape[1]):
            p, y = sigmoid(student[row, k]), labels[row, k]
            if y == 1:
                total[item[row]] -= (1 - p) ** alpha * log(p)
                number[item[row]] += 1
            else:
                total[item[row]] -= (1 - y) ** beta * p**alpha * log(1 - p)
    return total, np.maximum(number, 1)


def reg_l1(student: Array, labels: Array, *, columns: Sequence[float] = ()) -> Array:
    weights = list(columns) or [1.0] * student.shape[1]
    return np.array(
        [
            sum(w * abs(a - b) for w, a, b in zip(weights, s, y, strict=True))
            for s, y in zip(student, labels, strict=True)
        ]
    )


sparsekd_reg = reg_l1


def sparsekd(
    student: Array, teacher: Array, item: Array, items: int, labels: Array, *, rank: int = 0, foreground: bool = True
) -> tuple[Array, Array]:
    """Squared difference of the two heats, summed over classes, in the mean that the mask weighs: its two sums.

    The mask of a position is the teacher's largest class probability, times the largest target of the position, and 0
    where none of the position's probabilities is among the item's `rank` largest.
    """
    above, below = np.zeros(items), np.zeros(items)
    for i in range(items):
        rows = [row for row in range(len(item)) if item[row] == i]
        ranked = sorted(
            ((sigmoid(teacher[row, k]), row) for row in rows for k in range(teacher.shape[1])), reverse=True
        )
        pivotal = {row for _, row in (ranked[:rank] if rank else ranked)}
        for row in rows:
            mask = max(sigmoid(x) for x in teacher[row]) * float(row in pivotal)
            mask *= max(labels[row]) if foreground else 1.0
            apart = sum((sigmoid(s) - sigmoid(t)) ** 2 for s, t in zip(student[row], teacher[row], strict=True))
            above[i] += mask * apart
            below[i] += mask
    return above, below
