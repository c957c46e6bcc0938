"""Relations between layers: flow matrices, graphs of instances, singular vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .layers import Params, norm_of, under
from .maths import Array, Ints, kl, log_softmax, mean_square, ratio, unit


def fsp(student: Sequence[Array], teacher: Sequence[Array], item: Sequence[Ints], items: int) -> Array:
    """Sum over stages of mean (G_s - G_t)^2, G = 1 / HW sum_hw F1[hw] F2[hw]^T of a stage's start, end (2017, CVPR)."""
    values = np.zeros(items)
    for stage in range(0, len(student), 2):
        for b in range(items):
            rows = _rows_of(b, item[stage])
            if rows:
                g_s, g_t = (
                    sum(np.outer(f[stage][i], f[stage + 1][i]) for i in rows) / len(rows) for f in (student, teacher)
                )
                values[b] += mean_square(g_s.ravel(), g_t.ravel())
    return values


def irg(
    student: Sequence[Array],
    teacher: Sequence[Array],
    *,
    vertex: float = 0.1,
    edge: float = 5.0,
    transform: float = 5.0,
) -> float:
    """Vertices, edges and transformations of the instance relationship graph, each an MSE (Liu et al., 2019).

    Vertices are the last signal. Edges: for each other layer the squared distances of all pairs over the largest, a
    mean over layers. Transformation: the squared distance of each row between the first two layers over the largest.
    """
    value = vertex * mean_square(student[-1].ravel(), teacher[-1].ravel())
    layers = len(student) - 1
    for f_s, f_t in zip(student[:-1], teacher[:-1], strict=True):
        e_s, e_t = (_over_max(np.array([[np.sum((x - y) ** 2) for x in f] for y in f]).ravel()) for f in (f_s, f_t))
        value += edge * mean_square(e_s, e_t) / layers
    if transform:
        moved = [_over_max(_moved(f[0], f[1])) for f in (student, teacher)]
        value += transform * mean_square(*moved)
    return value


def _moved(a: Array, b: Array) -> Array:
    """Squared distance of each row between two layers; k times more channels: means of k neighbouring ones first."""
    width = min(a.shape[1], b.shape[1])
    a, b = (np.array([[np.mean(group) for group in np.split(x, width)] for x in f]) for f in (a, b))
    return np.array([np.sum((x - y) ** 2) for x, y in zip(a, b, strict=True)])


def _over_max(x: Array) -> Array:
    return np.array([ratio(v, x.max()) for v in x])


def kdsvd(
    student: Sequence[Array],
    teacher: Sequence[Array],
    item: Sequence[Ints],
    items: int,
    *,
    k: int = 1,
    extra: int = 3,
    relative: bool = True,
) -> Array:
    """Sum over consecutive layers of (R_s - R_t)^2, R[i, j, m] = exp(-(v_l[i, m] - v_{l-1}[j, m])^2 / 8) (2018, ECCV).

    v holds right singular vectors of an item's rows times the teacher's singular values (over their norm if
    `relative`), the student's aligned with the teacher's.
    """
    values = np.zeros(items)
    for b in range(items):
        before: tuple[Array, Array] | None = None
        for f_s, f_t, place in zip(student, teacher, item, strict=True):
            rows = _rows_of(b, place)
            if not rows:
                before = None
                continue
            sigma, v_t = _right(f_t[rows], k)
            v_s = _aligned(_right(f_s[rows], k + extra)[1], v_t)
            sigma = unit(sigma) if relative else sigma
            now = v_s * sigma, v_t * sigma
            if before is not None:
                r_s, r_t = (_rbf(v, u) for v, u in zip(now, before, strict=True))
                values[b] += np.sum((r_s - r_t) ** 2)
            before = now
    return values


def mhgd(
    student: Sequence[Array],
    teacher: Sequence[Array],
    item: Sequence[Ints],
    items: int,
    *,
    state: Params,
    heads: int = 8,
    drop: float = 0.1,
) -> float:
    """Sum over layer pairs and heads of the mean over items of KL(sm(tanh A_s) || sm(tanh A_t)) (Lee, Song, 2019).

    A = norm(W_k V_{l+1}) . norm(W_q V_l)^T for each head, V the first right singular vector of each item. The student
    stands first in the KL, as in the release. `drop` and the estimators only train the heads.
    """
    v_s, v_t = [], []
    for f_s, f_t, place in zip(student, teacher, item, strict=True):
        nodes = [_rows_of(b, place) for b in range(items)]
        of_t = [_right(f_t[rows], 1)[1] for rows in nodes if rows]
        of_s = [_right(f_s[rows], 4)[1] for rows in nodes if rows]
        v_t.append(np.array([v[:, 0] for v in of_t]))
        v_s.append(np.array([_aligned(s, t)[:, 0] for s, t in zip(of_s, of_t, strict=True)]))
    value = 0.0
    for pair in range(len(student) - 1):
        for head in range(heads):
            a_s, a_t = (_attention(v[pair], v[pair + 1], state, pair, head, heads) for v in (v_s, v_t))
            for row_s, row_t in zip(a_s, a_t, strict=True):
                value += kl(log_softmax(np.tanh(row_s)), log_softmax(np.tanh(row_t))) / len(a_s)
    return value


def _attention(v: Array, v_next: Array, state: Params, pair: int, head: int, heads: int) -> Array:
    keys = norm_of(v_next @ state[f"keys.{pair}.weight"].T, under(state, f"key_norms.{pair}"), "batch")
    queries = norm_of(v @ state[f"queries.{pair}.weight"].T, under(state, f"query_norms.{pair}"), "batch")
    d = keys.shape[1] // heads
    block = slice(head * d, (head + 1) * d)
    return np.array([[np.sum(key[block] * query[block]) for query in queries] for key in keys])


def _right(f: Array, k: int) -> tuple[Array, Array]:
    """Singular values (k,) and right singular vectors (c, k), each with its component of largest magnitude positive."""
    _, sigma, vh = np.linalg.svd(f, full_matrices=False)
    v = np.array([row * np.sign(row[np.argmax(np.abs(row))]) for row in vh[:k]]).T
    return sigma[:k], v


def _aligned(v_s: Array, v_t: Array) -> Array:
    """For each of the teacher's vectors the student's of largest |cos|, turned to make the cosine positive."""
    chosen = []
    for j in range(v_t.shape[1]):
        cosines = [np.sum(v_s[:, i] * v_t[:, j]) for i in range(v_s.shape[1])]
        best = int(np.argmax(np.abs(cosines)))
        chosen.append(v_s[:, best] * np.sign(cosines[best]))
    return np.array(chosen).T


def _rbf(v: Array, u: Array) -> Array:
    """R (c_l, c_{l-1}, k): vector m of a layer against vector m of the one before."""
    common = min(v.shape[1], u.shape[1])
    return np.array(
        [
            [[np.exp(-((v[i, m] - u[j, m]) ** 2) / 8) for m in range(common)] for j in range(len(u))]
            for i in range(len(v))
        ]
    )


def _rows_of(b: int, item: Ints) -> list[int]:
    return [i for i in range(len(item)) if item[i] == b]
