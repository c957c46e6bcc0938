"""Losses by optimal transport, from their papers' formulas, in loops.

Unlike their neighbours these oracles are of the same hand as the losses, written before them and in another form; what
another hand says of the same rows are the releases' values in `tests/losses/test_released_catalogue.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .maths import Array, Ints, log_softmax, unit


def wkd_l(
    student: Array,
    teacher: Array,
    labels: Ints,
    head: Callable[[Array], Array],
    *,
    temperature: float = 8.0,
    gamma: float = 200.0,
    sharpen: float = 1.0,
    regularisation: float = 0.05,
    iterations: int = 10,
) -> Array:
    """-p_t(y) log p_s(y) + gamma W(q_s, q_t) (Lv et al., 2024): W by Sinkhorn, q the softmax at T without the label.

    Cost of classes i, j: c = 1 - exp(-k d), d = max(0, 1 - cos(w_i, w_j)) of the rows of the teacher's linear head.
    Sinkhorn: u = 1 / (c - 1), then `iterations` times v = q_t / (K'u + 1e-8), u = q_s / (K v + 1e-8), with
    K = exp(-c / reg). W is the sum of the plan u K v times c. The release adds 1e-8 to every cost.
    """
    w = (head(np.eye(teacher.shape[1])) - head(np.zeros((1, teacher.shape[1])))).T
    t = head(teacher)
    classes = len(w)
    cost = np.zeros((classes, classes))
    for i in range(classes):
        for j in range(classes):
            d = 1 - float(np.sum(unit(w[i]) * unit(w[j])))
            cost[i, j] = max(0.0, 1 - math.exp(-sharpen * d)) + 1e-8
    values = np.zeros(len(student))
    for n, y in enumerate(labels):
        rest = [k for k in range(classes) if k != y]
        a, b = (np.exp(log_softmax(z[n, rest] / temperature)) for z in (student, t))
        c = cost[np.ix_(rest, rest)]
        kernel = np.exp(-c / regularisation)
        u = np.full(len(rest), 1 / len(rest))
        v = u
        for _ in range(iterations):
            v = b / (kernel.T @ u + 1e-8)
            u = a / (kernel @ v + 1e-8)
        plan = u[:, None] * kernel * v[None, :]
        target = math.exp(log_softmax(t[n])[y]) * log_softmax(student[n])[y]
        values[n] = -target + gamma * float(np.sum(plan * c))
    return values


def wkd_f(student: Array, teacher: Array, item: Ints, items: int, *, mean: float = 4.0, eps: float = 1e-5) -> Array:
    """r ||m_s - m_t||^2 + ||d_s - d_t||^2: Gaussians of a diagonal covariance over an item's rows (Lv et al., 2024).

    m is the mean of a channel, d = sqrt(unbiased variance + eps); a single row has variance 0.
    """
    values = np.zeros(items)
    for b in range(items):
        rows = [i for i in range(len(item)) if item[i] == b]
        for c in range(student.shape[1]) if rows else []:
            means, deviations = [], []
            for f in (student, teacher):
                x = f[rows, c]
                m = sum(x) / len(x)
                variance = sum((v - m) ** 2 for v in x) / (len(x) - 1) if len(x) > 1 else 0.0
                means.append(m)
                deviations.append(math.sqrt(variance + eps))
            values[b] += mean * (means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2
    return values


def uld(student: Array, teacher: Array, *, temperature: float = 1.0) -> Array:
    """sum_k |p_s(k-th largest) - p_t(k-th largest)|, the shorter list filled up with 0 (Boizard et al., 2024)."""
    values = np.zeros(len(student))
    for i in range(len(student)):
        sides = [sorted(np.exp(log_softmax(z[i] / temperature)), reverse=True) for z in (student, teacher)]
        longest = max(map(len, sides))
        p, q = (side + [0.0] * (longest - len(side)) for side in sides)
        values[i] = sum(abs(a - b) for a, b in zip(p, q, strict=True))
    return values


def multilevel_ot(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    *,
    temperature: float = 1.0,
    kept: int = 50,
    logarithm: float = 0.1,
    sinkhorn: float = 0.1,
    regularisation: float = 0.1,
    iterations: int = 20,
) -> Array:
    """Token level: mean_i (sum_k |p_s - p_t| - l p_t log p_s); sequence level: s sum P C (Cui et al., 2025).

    Each side's classes are ordered by their sum over the item's rows, the first `kept` stay, the shorter list is filled
    up with 0. C_ij = sum_k |p_s[i] - p_t[j]|, P is exp(-C / reg), `iterations` times divided by the sums of its
    rows and then of its columns. The second part is divided by the number of rows, as the first is.
    """
    values = np.zeros(items)
    for b in range(items):
        rows = [i for i in range(len(item)) if item[i] == b]
        if not rows:
            continue
        sides = []
        for z in (student, teacher):
            p = np.array([np.exp(log_softmax(z[i] / temperature)) for i in rows])
            order = sorted(range(p.shape[1]), key=lambda k, p=p: -p[:, k].sum())[:kept]
            sides.append(p[:, order])
        width = max(side.shape[1] for side in sides)
        s, t = (np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in sides)
        n = len(rows)
        for i in range(n):
            for k in range(width):
                values[b] += abs(s[i, k] - t[i, k]) / n
                if t[i, k] > 0:
                    values[b] -= logarithm * t[i, k] * math.log(max(s[i, k], 1e-12)) / n
        cost = np.array([[np.abs(s[i] - t[j]).sum() for j in range(n)] for i in range(n)])
        plan = np.exp(-cost / regularisation)
        for _ in range(iterations):
            plan = plan / plan.sum(axis=1, keepdims=True)
            plan = plan / plan.sum(axis=0, keepdims=True)
        values[b] += sinkhorn * np.sum(plan * cost) / n
    return values
