"""Features: row against row, channel against channel, maps over an item's rows."""

from __future__ import annotations

import numpy as np

from .maths import Array, Ints, kl, log_softmax, mean_square, std, unit


def hint(student: Array, teacher: Array) -> Array:
    """Mean over channels of (f_s - f_t)^2: the one-stage mean form of FitNets' hint (Romero et al., 2015)."""
    return np.array([mean_square(f_s, f_t) for f_s, f_t in zip(student, teacher, strict=True)])


def textual_kd(student: Array, teacher: Array, *, summed: bool = False) -> Array:
    """Of each row sum_c |s_c - t_c| (Kim et al., 2021, as released for logits), or the mean over c of it.

    By another: stage 2 is CE + (1/B) sum over rows and classes of |z_a - z_t|, compared with the release's own lines
    (1e-12, gradients too); of stage 1 it takes the mean over all elements, of which the release says nothing.
    """
    values = np.zeros(len(student))
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        values[i] = sum(abs(a - b) for a, b in zip(s, t, strict=True)) / (1 if summed else len(s))
    return values


def at(student: Array, teacher: Array, item: Ints, items: int, *, p: float = 2.0) -> Array:
    """Q = mean_c |f|^p, n = Q / ||Q||_2 over an item's rows, then mean over them of (n_s - n_t)^2 (2017, ICLR)."""
    values = np.zeros(items)
    for b in range(items):
        rows = _rows_of(b, item)
        if rows:
            q_s = np.array([np.mean(np.abs(student[i]) ** p) for i in rows])
            q_t = np.array([np.mean(np.abs(teacher[i]) ** p) for i in rows])
            values[b] = mean_square(unit(q_s), unit(q_t))
    return values


def nst(student: Array, teacher: Array, item: Ints, items: int) -> Array:
    """mean k(t, t) + mean k(s, s) - 2 mean k(s, t), k(x, y) = (x . y)^2 (Huang, Wang, 2017).

    x is a channel over the rows of an item divided by its norm; each mean runs over all pairs of channels, a channel
    with itself included.
    """
    values = np.zeros(items)
    for b in range(items):
        rows = _rows_of(b, item)
        if rows:
            x_s = [unit(student[rows, c]) for c in range(student.shape[1])]
            x_t = [unit(teacher[rows, c]) for c in range(teacher.shape[1])]
            values[b] = _mean_kernel(x_t, x_t) + _mean_kernel(x_s, x_s) - 2 * _mean_kernel(x_s, x_t)
    return values


def cwd(student: Array, teacher: Array, item: Ints, items: int, *, temperature: float = 4.0) -> Array:
    """T^2 / C sum_c KL(phi_t || phi_s), phi the softmax of channel c / T over the rows of an item (2021, ICCV)."""
    values = np.zeros(items)
    for b in range(items):
        rows = _rows_of(b, item)
        if rows:
            for c in range(student.shape[1]):
                phi_t = log_softmax(teacher[rows, c] / temperature)
                phi_s = log_softmax(student[rows, c] / temperature)
                values[b] += temperature**2 / student.shape[1] * kl(phi_t, phi_s)
    return values


def pearson(student: Array, teacher: Array) -> float:
    """Half the mean over rows and channels of (f_s - f_t)^2, each channel standardised over rows (Cao et al., 2022).

    The std is that of the population; a constant channel becomes zeros.
    """
    total = 0.0
    for c in range(student.shape[1]):
        total += 0.5 * mean_square(_standard(student[:, c]), _standard(teacher[:, c]))
    return total / student.shape[1]


def _rows_of(b: int, item: Ints) -> list[int]:
    return [i for i in range(len(item)) if item[i] == b]


def _mean_kernel(a: list[Array], b: list[Array]) -> float:
    return sum(np.sum(x * y) ** 2 for x in a for y in b) / (len(a) * len(b))


def _standard(vector: Array) -> Array:
    spread = std(vector, unbiased=False)
    return (vector - vector.mean()) / spread if spread > 0 else np.zeros(len(vector))
