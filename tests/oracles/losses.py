"""One float64 oracle a loss, named as in the registry, in loops that follow the paper's formula.

An oracle takes NumPy arrays by the same names as the loss (`xmodal_kd.losses.base.INPUTS`) and returns what the loss's
reduction says: ``(n,)`` for rows, ``(b,)`` for items (0 for an item without rows), a scalar for a batch.
0/0 (a constant vector has no direction and no correlation) counts as 0 here, without the small constants of fast code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def kd(student: Array, teacher: Array, *, temperature: float = 4.0) -> Array:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)), summed over the classes of a row (Hinton et al., 2015)."""
    values = np.zeros(len(student))
    for i in range(len(student)):
        log_p = _log_softmax(teacher[i] / temperature)
        log_q = _log_softmax(student[i] / temperature)
        for k in range(len(log_p)):
            values[i] += temperature**2 * np.exp(log_p[k]) * (log_p[k] - log_q[k])
    return values


def logit_mse(student: Array, teacher: Array, *, centre: bool = False) -> Array:
    """Mean over classes of (z_s - z_t)^2, after taking each row's own mean off it if `centre` (Ba, Caruana, 2014)."""
    values = np.zeros(len(student))
    for i in range(len(student)):
        z_s, z_t = student[i], teacher[i]
        if centre:
            z_s, z_t = z_s - z_s.mean(), z_t - z_t.mean()
        values[i] = _mean_square(z_s, z_t)
    return values


def hint(student: Array, teacher: Array) -> Array:
    """Mean over channels of (f_s - f_t)^2: the one-stage mean form of FitNets' hint (Romero et al., 2015)."""
    return np.array([_mean_square(f_s, f_t) for f_s, f_t in zip(student, teacher, strict=True)])


def at(student: Array, teacher: Array, item: Ints, items: int, *, p: float = 2.0) -> Array:
    """Q = mean_c |f|^p, n = Q / ||Q||_2 over an item's rows, then mean over them of (n_s - n_t)^2 (2017, ICLR)."""
    values = np.zeros(items)
    for b in range(items):
        rows = [i for i in range(len(item)) if item[i] == b]
        if rows:
            q_s = np.array([np.mean(np.abs(student[i]) ** p) for i in rows])
            q_t = np.array([np.mean(np.abs(teacher[i]) ** p) for i in rows])
            values[b] = _mean_square(_unit(q_s), _unit(q_t))
    return values


def cka(student: Array, teacher: Array, *, centre: bool = True) -> float:
    """1 - <K_x, K_y>_F / (||K_x||_F ||K_y||_F) with K_x = H X X^T H and H = I - 1 1^T / n (or I, not `centre`)."""
    n = len(student)
    h = np.eye(n) - np.ones((n, n)) / n if centre else np.eye(n)
    k_x = h @ student @ student.T @ h
    k_y = h @ teacher @ teacher.T @ h
    return 1.0 - _ratio(np.sum(k_x * k_y), np.sqrt(np.sum(k_x**2)) * np.sqrt(np.sum(k_y**2)))


def dist(student: Array, teacher: Array, *, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0) -> float:
    """T^2 (beta inter + gamma intra), each one minus a mean Pearson correlation of p = softmax(z / T) (2022, NeurIPS).

    inter correlates the classes of each row, intra the rows of each class.
    """
    p_s = np.array([np.exp(_log_softmax(z / temperature)) for z in student])
    p_t = np.array([np.exp(_log_softmax(z / temperature)) for z in teacher])
    rows, classes = p_s.shape
    inter = 1.0 - sum(_pearson(p_s[b, :], p_t[b, :]) for b in range(rows)) / rows
    intra = 1.0 - sum(_pearson(p_s[:, k], p_t[:, k]) for k in range(classes)) / classes
    return temperature**2 * (beta * inter + gamma * intra)


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max()
    return shifted - np.log(np.sum(np.exp(shifted)))


def _mean_square(a: Array, b: Array) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0


def _unit(vector: Array) -> Array:
    length = np.sqrt(np.sum(vector**2))
    return vector / length if length > 0 else vector


def _pearson(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    return _ratio(np.sum(a * b), np.sqrt(np.sum(a**2)) * np.sqrt(np.sum(b**2)))


ORACLES: Mapping[str, Callable[..., Any]] = {
    "at": at,
    "cka": cka,
    "dist": dist,
    "hint": hint,
    "kd": kd,
    "logit_mse": logit_mse,
}

#: Hyper-parameters to compare at. The first are the loss's own defaults; a loss that is not here is tested at those.
SETTINGS: Mapping[str, list[dict[str, Any]]] = {
    "at": [{}, {"p": 1.0}, {"p": 3.0}],
    "cka": [{}, {"centre": False}],
    "dist": [{}, {"temperature": 4.0}, {"beta": 2.0, "gamma": 0.5}, {"temperature": 0.5, "beta": 0.0, "gamma": 3.0}],
    "kd": [{}, {"temperature": 1.0}, {"temperature": 0.5}, {"temperature": 20.0}],
    "logit_mse": [{}, {"centre": True}],
}
