"""Relations among rows: kernels, rankings, channels, nodes of a map, prototypes of regions, neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from .layers import index_of
from .maths import Array, Ints, kl, log_softmax, mean_square, ratio, unit


def cc(student: Array, teacher: Array, *, order: int = 2, gamma: float = 0.4) -> float:
    """Mean over all n^2 pairs of (K_s - K_t)^2, K = exp(-2g) sum_{p <= P} (2g)^p / p! cos^p (Peng et al., 2019)."""
    n = len(student)
    total = 0.0
    for i in range(n):
        for j in range(n):
            k_s, k_t = (_taylor(np.sum(unit(e[i]) * unit(e[j])), order, gamma) for e in (student, teacher))
            total += (k_s - k_t) ** 2
    return total / n**2


def _taylor(cosine: float, order: int, gamma: float) -> float:
    terms = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * sum(terms)


def darkrank(
    student: Array,
    teacher: Array,
    *,
    alpha: float = 3.0,
    beta: float = 3.0,
    nearest: int = 4,
    normalise: bool = True,
) -> float:
    """Hard: mean over queries of -log P_s(the teacher's order of its `nearest` neighbours) (Chen et al., 2018).

    P is Plackett-Luce's with scores S(q, x) = -alpha ||e_q - e_x||^beta, of rows with norm 1 if `normalise`.
    """
    total = 0.0
    for s_t, s_s in _scores(student, teacher, alpha, beta, nearest, normalise):
        order = sorted(range(len(s_t)), key=lambda x: -s_t[x])
        total -= _log_probability([s_s[x] for x in order])
    return total / len(student)


def darkrank_soft(
    student: Array,
    teacher: Array,
    *,
    alpha: float = 3.0,
    beta: float = 3.0,
    nearest: int = 4,
    normalise: bool = True,
) -> float:
    """Soft: mean over queries of KL(P_t || P_s) over all orders of the same neighbours (Chen et al., 2018)."""
    total = 0.0
    for s_t, s_s in _scores(student, teacher, alpha, beta, nearest, normalise):
        orders = list(itertools.permutations(range(len(s_t))))
        log_p, log_q = (np.array([_log_probability([s[x] for x in order]) for order in orders]) for s in (s_t, s_s))
        total += kl(log_p, log_q)
    return total / len(student)


def _scores(
    student: Array, teacher: Array, alpha: float, beta: float, nearest: int, normalise: bool
) -> list[tuple[list[float], list[float]]]:
    """For each query the teacher's and the student's scores of the teacher's nearest other rows."""
    e_s, e_t = ([unit(row) if normalise else row for row in e] for e in (student, teacher))
    scores = []
    for q in range(len(e_t)):
        others = [x for x in range(len(e_t)) if x != q]
        near = sorted(others, key=lambda x: np.sum((e_t[q] - e_t[x]) ** 2))[:nearest]
        s_t, s_s = ([-alpha * math.sqrt(np.sum((e[q] - e[x]) ** 2)) ** beta for x in near] for e in (e_t, e_s))
        scores.append((s_t, s_s))
    return scores


def _log_probability(scores: list[float]) -> float:
    """Of this order: each next one against all that are left."""
    return sum(scores[i] - np.logaddexp.reduce(scores[i:]) for i in range(len(scores)))


def rcka(student: Array, teacher: Array) -> float:
    """1 - the mean of the uncentred CKA of rows and that of columns (after Zhou et al., 2024)."""
    similarity = 0.0
    for x, y in ((student, teacher), (student.T, teacher.T)):
        k_x, k_y = x @ x.T, y @ y.T
        similarity += ratio(np.sum(k_x * k_y), np.sqrt(np.sum(k_x**2)) * np.sqrt(np.sum(k_y**2)))
    return 1 - similarity / 2


def ickd(student: Array, teacher: Array, item: Ints, items: int, *, normalise: bool = True) -> Array:
    """||G_s - G_t||_F^2 / C^2, G the products of an item's channels, of norm 1 if `normalise` (Liu et al., 2021).

    The release divides the rows of G by their norms instead, and by C.
    """
    values = np.zeros(items)
    channels = student.shape[1]
    for b in range(items):
        rows = _rows_of(b, item)
        if not rows:
            continue
        x_s, x_t = (
            [unit(f[rows, c]) if normalise else f[rows, c] for c in range(channels)] for f in (student, teacher)
        )
        for c in range(channels):
            for d in range(channels):
                values[b] += (np.sum(x_s[c] * x_s[d]) - np.sum(x_t[c] * x_t[d])) ** 2 / channels**2
    return values


def skd_pair(
    student: Array,
    teacher: Array,
    cell: Ints,
    items: int,
    grid: Sequence[int],
    *,
    pool: float = 0.5,
    pooling: str = "max",
) -> Array:
    """sum_ij (a_s - a_t)^2 / N^2, a_ij = cos of an item's nodes i and j (Liu et al., 2019).

    A node pools the valid cells of a window of max(1, floor(pool g)) cells on an axis of g, cut off at the end.
    """
    sides = [max(1, int(pool * g)) for g in grid]
    values = np.zeros(items)
    for b in range(items):
        windows: dict[tuple[int, ...], list[int]] = {}
        for i in range(len(cell)):
            if cell[i] // math.prod(grid) == b:
                window = tuple(at // side for at, side in zip(index_of(cell[i], grid), sides, strict=True))
                windows.setdefault(window, []).append(i)
        a_s, a_t = (_cosines([_reduced(f[rows], pooling) for rows in windows.values()]) for f in (student, teacher))
        if windows:
            values[b] = np.sum((a_s - a_t) ** 2) / len(windows) ** 2
    return values


def _reduced(f: Array, pooling: str) -> Array:
    return f.max(0) if pooling == "max" else f.mean(0)


def _cosines(nodes: list[Array]) -> Array:
    return np.array([[np.sum(unit(x) * unit(y)) for y in nodes] for x in nodes])


def ifvd(student: Array, teacher: Array, item: Ints, items: int, regions: Ints) -> Array:
    """(cos(f_s, proto_s) - cos(f_t, proto_t))^2, proto the mean of the item's rows of a region (Wang et al., 2020)."""
    values = np.zeros(len(student))
    for i in range(len(student)):
        same = [j for j in range(len(student)) if item[j] == item[i] and regions[j] == regions[i]]
        c_s, c_t = (np.sum(unit(f[i]) * unit(f[same].mean(0))) for f in (student, teacher))
        values[i] = (c_s - c_t) ** 2
    return values


def intra_kd(student: Array, teacher: Array, item: Ints, items: int, regions: Ints, *, least: int = 1) -> Array:
    """Mean over r = 1, 2, 3 and regions i, j of an item of (A_s - A_t)^2, A_r(i, j) = cos(m_r(i), m_r(j)) (2020, CVPR).

    m1 = mean f, m2 = mean (f - m1)^2, m3 = mean ((f - m1) / (m2 + 1e-6))^3, the division by the variance and not by
    the deviation being the reference's. Regions of fewer than `least` rows are left out.
    """
    values = np.zeros(items)
    for b in range(items):
        of: dict[int, list[int]] = {}
        for i in _rows_of(b, item):
            of.setdefault(int(regions[i]), []).append(i)
        kept = [rows for rows in of.values() if len(rows) >= least]
        if not kept:
            continue
        m_s, m_t = ([_moments(f[rows]) for rows in kept] for f in (student, teacher))
        for r in range(3):
            a_s, a_t = (_cosines([moments[r] for moments in m]) for m in (m_s, m_t))
            values[b] += mean_square(a_s.ravel(), a_t.ravel()) / 3
    return values


def _moments(f: Array) -> tuple[Array, Array, Array]:
    m1 = f.mean(0)
    m2 = ((f - m1) ** 2).mean(0)
    if len(f) < 3:  # one row is its mean, and the cubes of two cancel
        return m1, m2, np.zeros(f.shape[1])
    return m1, m2, (((f - m1) / (m2 + 1e-6)) ** 3).mean(0)


def lsp(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    *,
    neighbours: int = 8,
    sigma: float = 1.0,
) -> Array:
    """KL(LS_s || LS_t), LS a row's softmax over its neighbours of exp(-||f_i - f_j||^2 / (2 sigma^2)) (2020, CVPR).

    Neighbours are the nearest rows of the item in the teacher's features. The student stands first, as in the paper;
    in the release the teacher does.
    """
    values = np.zeros(len(student))
    for i in range(len(student)):
        others = [j for j in _rows_of(item[i], item) if j != i]
        near = sorted(others, key=lambda j: np.sum((teacher[i] - teacher[j]) ** 2))[:neighbours]
        if near:
            log_s, log_t = (
                log_softmax(np.array([math.exp(-np.sum((f[i] - f[j]) ** 2) / (2 * sigma**2)) for j in near]))
                for f in (student, teacher)
            )
            values[i] = kl(log_s, log_t)
    return values


def _rows_of(b: int, item: Ints) -> list[int]:
    return [i for i in range(len(item)) if item[i] == b]
