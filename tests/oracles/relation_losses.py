"""Relations: what all rows of a batch are to each other."""

from __future__ import annotations

import numpy as np

from .maths import Array, log_softmax, ratio, unit


def cka(student: Array, teacher: Array, *, centre: bool = True) -> float:
    """1 - <K_x, K_y>_F / (||K_x||_F ||K_y||_F) with K_x = H X X^T H and H = I - 1 1^T / n (or I, not `centre`)."""
    n = len(student)
    h = np.eye(n) - np.ones((n, n)) / n if centre else np.eye(n)
    k_x = h @ student @ student.T @ h
    k_y = h @ teacher @ teacher.T @ h
    return 1.0 - ratio(np.sum(k_x * k_y), np.sqrt(np.sum(k_x**2)) * np.sqrt(np.sum(k_y**2)))


def dist(student: Array, teacher: Array, *, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0) -> float:
    """T^2 (beta inter + gamma intra), each one minus a mean Pearson correlation of p = softmax(z / T) (2022, NeurIPS).

    inter correlates the classes of each row, intra the rows of each class.
    """
    p_s = np.array([np.exp(log_softmax(z / temperature)) for z in student])
    p_t = np.array([np.exp(log_softmax(z / temperature)) for z in teacher])
    rows, classes = p_s.shape
    inter = 1.0 - sum(_pearson(p_s[b, :], p_t[b, :]) for b in range(rows)) / rows
    intra = 1.0 - sum(_pearson(p_s[:, k], p_t[:, k]) for k in range(classes)) / classes
    return temperature**2 * (beta * inter + gamma * intra)


def pkt(student: Array, teacher: Array) -> float:
    """Mean over all n^2 pairs of P_t log((P_t + 1e-7) / (P_s + 1e-7)) (Passalis, Tefas, 2018).

    P is S divided by the sums of its rows, S = (cos(e_i, e_j) + 1) / 2, the diagonal included.
    """
    n = len(student)
    p = []
    for rows in (teacher, student):
        u = [unit(e) for e in rows]
        s = np.array([[(np.sum(u[i] * u[j]) + 1) / 2 for j in range(n)] for i in range(n)])
        p.append([s[i] / sum(s[i]) for i in range(n)])
    p_t, p_s = p
    pairs = [(i, j) for i in range(n) for j in range(n)]
    return sum(p_t[i][j] * np.log((p_t[i][j] + 1e-7) / (p_s[i][j] + 1e-7)) for i, j in pairs) / n**2


def rkd(student: Array, teacher: Array, *, distance: float = 25.0, angle: float = 50.0) -> float:
    """distance L_D + angle L_A, smooth L1 (threshold 1) of distances and of cosines of angles (Park et al., 2019).

    d_ij = ||e_i - e_j|| over its mean for i != j (coinciding rows count in that mean), L_D a mean over all n^2 pairs;
    a_ijk = cos(e_i - e_j, e_k - e_j), 0 where either is a zero vector, L_A a mean over all n^3 triples.
    """
    n = len(student)
    d_s, d_t = _distances(student), _distances(teacher)
    a_s, a_t = _angles(student), _angles(teacher)
    l_d = sum(_smooth_l1(d_s[i, j] - d_t[i, j]) for i in range(n) for j in range(n)) / n**2
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    l_a = sum(_smooth_l1(a_s[index] - a_t[index]) for index in triples) / n**3
    return distance * l_d + angle * l_a


def sp(student: Array, teacher: Array) -> float:
    """||G_t - G_s||_F^2 / n^2, G = f f^T with each row divided by its norm (Tung, Mori, 2019)."""
    n = len(student)
    total = 0.0
    for i in range(n):
        g_s = unit(np.array([np.sum(student[i] * student[j]) for j in range(n)]))
        g_t = unit(np.array([np.sum(teacher[i] * teacher[j]) for j in range(n)]))
        total += sum((g_t[j] - g_s[j]) ** 2 for j in range(n))
    return total / n**2


def _pearson(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    return ratio(np.sum(a * b), np.sqrt(np.sum(a**2)) * np.sqrt(np.sum(b**2)))


def _smooth_l1(x: float) -> float:
    return 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5


def _distances(e: Array) -> Array:
    n = len(e)
    d = np.array([[np.sqrt(np.sum((e[i] - e[j]) ** 2)) for j in range(n)] for i in range(n)])
    mean = ratio(sum(d[i, j] for i in range(n) for j in range(n) if i != j), n * (n - 1))
    return np.array([[ratio(d[i, j], mean) for j in range(n)] for i in range(n)])


def _angles(e: Array) -> Array:
    n = len(e)
    a = np.zeros((n, n, n))
    for j in range(n):
        from_j = [unit(e[i] - e[j]) for i in range(n)]
        for i in range(n):
            for k in range(n):
                a[i, j, k] = np.sum(from_j[i] * from_j[k])
    return a
