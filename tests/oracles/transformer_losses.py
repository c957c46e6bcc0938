"""Transformers: attention, relations of values, hidden states. Rows are tokens, the same of every signal.

Only tokens of one item meet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .layers import Params, gelu, linear, under
from .maths import Array, Ints, kl, log_sigmoid, log_softmax, mean_square, unit


def minilm(
    student: Sequence[Array], teacher: Sequence[Array], item: Ints | Sequence[Ints], items: int, *, heads: int = 12
) -> Array:
    """L_AT + L_VR of one layer's (q, k, v), each KL(teacher || student), a mean over heads and queries (2020, NeurIPS).

    AT is softmax(Q K^T / sqrt(d_k)), VR is softmax(V V^T / sqrt(d_k)); d_k is a side's own width over `heads`.
    """
    (q_s, k_s, v_s), (q_t, k_t, v_t) = student, teacher
    values = np.zeros(items)
    for b in range(items):
        rows = _rows_of(b, item)
        if rows:
            values[b] = _relation_kl((q_s[rows], k_s[rows]), (q_t[rows], k_t[rows]), heads)
            values[b] += _relation_kl((v_s[rows], v_s[rows]), (v_t[rows], v_t[rows]), heads)
    return values


def minilmv2(
    student: Sequence[Array], teacher: Sequence[Array], item: Ints | Sequence[Ints], items: int, *, heads: int = 48
) -> Array:
    """L_QQ + L_KK + L_VV over `heads` relation heads, cut anew from each side's concatenation (2021, ACL Findings).

    A relation is softmax(A A^T / sqrt(d_r)), d_r a side's own width over `heads`.
    """
    values = np.zeros(items)
    for b in range(items):
        rows = _rows_of(b, item)
        if rows:
            for a_s, a_t in zip(student, teacher, strict=True):
                values[b] += _relation_kl((a_s[rows], a_s[rows]), (a_t[rows], a_t[rows]), heads)
    return values


def tinybert(
    student: Sequence[Array],
    teacher: Sequence[Array],
    item: Ints | Sequence[Ints],
    items: int,
    *,
    state: Params,
    heads: int = 12,
    layers: str = "uniform",
) -> Array:
    """MSE(E_s W_e, E_t) + sum over pairs of MSE(H_s W_h, H_t) + MSE(A_s, A_t) (Jiao et al., 2020).

    A side is (embeddings, then every hidden, every q, every k). A = Q K^T / sqrt(d_k) before the softmax, its mean over
    heads, queries and keys. One W_h serves all pairs. The release's "scores <= -100 become 0" undoes the padding
    mask; only valid tokens are here, so there is nothing to undo.
    """
    values = np.zeros(items)
    embed, hidden = under(state, "embed"), under(state, "hidden")
    for b in range(items):
        rows = _rows_of(b, item)
        if not rows:
            continue
        values[b] = mean_square(linear(student[0][rows], embed).ravel(), teacher[0][rows].ravel())
        for (h_s, q_s, k_s), (h_t, q_t, k_t) in _matched(student[1:], teacher[1:], layers):
            values[b] += mean_square(linear(h_s[rows], hidden).ravel(), h_t[rows].ravel())
            a_s, a_t = _scores(q_s[rows], k_s[rows], heads), _scores(q_t[rows], k_t[rows], heads)
            values[b] += mean_square(a_s.ravel(), a_t.ravel())
    return values


def mobilebert(
    student: Sequence[Array],
    teacher: Sequence[Array],
    item: Ints | Sequence[Ints],
    items: int,
    *,
    heads: int = 4,
    layers: str = "uniform",
) -> Array:
    """Sum over layer pairs of mean (h_t - h_s)^2 + 1 / (A N) sum KL(a_t || a_s) (Sun et al., 2020, ACL).

    A side is (every hidden, every q, every k).
    """
    values = np.zeros(items)
    for b in range(items):
        rows = _rows_of(b, item)
        if not rows:
            continue
        for (h_s, q_s, k_s), (h_t, q_t, k_t) in _matched(student, teacher, layers):
            values[b] += mean_square(h_s[rows].ravel(), h_t[rows].ravel())
            values[b] += _relation_kl((q_s[rows], k_s[rows]), (q_t[rows], k_t[rows]), heads)
    return values


def distilbert(student: Array, teacher: Array) -> Array:
    """1 - cos(h_s, h_t), the cosine part of Sanh et al. (2019)."""
    return np.array([1 - np.sum(unit(h_s) * unit(h_t)) for h_s, h_t in zip(student, teacher, strict=True)])


def distilhubert(student: Sequence[Array], teacher: Sequence[Array], *, state: Params, cosine: float = 1.0) -> Array:
    """L^(l) = 1/D || h^(l) - p^(l) ||_1 - lambda log sigma(cos(h^(l), p^(l))), a mean over l (Chang et al., 2022).

    p^(l) = W2 gelu(W1 x + b1) + b2, of the student's one signal or of its lth.
    """
    values = np.zeros(len(teacher[0]))
    for l, h in enumerate(teacher):  # noqa: E741
        first, last = under(state, f"heads.{l}.0"), under(state, f"heads.{l}.2")
        for t in range(len(h)):
            x = student[0 if len(student) == 1 else l][t]
            p = last["weight"] @ gelu(first["weight"] @ x + first["bias"]) + last["bias"]
            distance = sum(abs(a - b) for a, b in zip(h[t], p, strict=True)) / len(p)
            values[t] += (distance - cosine * log_sigmoid(np.sum(unit(h[t]) * unit(p)))) / len(teacher)
    return values


def pkd(student: Sequence[Array], teacher: Sequence[Array], *, layers: str = "skip") -> Array:
    """Sum over layer pairs of || h_s / ||h_s|| - h_t / ||h_t|| ||^2 (Sun et al., 2019)."""
    values = np.zeros(len(student[0]))
    for m, n in layer_pairs(layers, len(student), len(teacher)):
        for i in range(len(values)):
            values[i] += np.sum((unit(student[m - 1][i]) - unit(teacher[n - 1][i])) ** 2)
    return values


def layer_pairs(name: str, m: int, n: int) -> list[tuple[int, int]]:
    """Layers, from 1, of a student of m and a teacher of n: the last m, every (n / m)th, or these but for the last."""
    if name == "last":
        return [(i, n - m + i) for i in range(1, m + 1)]
    uniform = [(i, math.floor(i * n / m + 0.5)) for i in range(1, m + 1)]
    return uniform[:-1] if name == "skip" and m > 1 else uniform


def _rows_of(b: int, item: Ints | Sequence[Ints]) -> list[int]:
    """Of an item, by the one `item` of all signals or the first of many that agree."""
    item = item[0] if isinstance(item, list | tuple) else item
    return [i for i in range(len(item)) if item[i] == b]


def _matched(
    student: Sequence[Array], teacher: Sequence[Array], layers: str
) -> list[tuple[tuple[Array, ...], tuple[Array, ...]]]:
    """(hidden, q, k) of the layers of each pair, from lists of all hidden, all q, all k."""
    m, n = len(student) // 3, len(teacher) // 3
    return [
        (tuple(student[part * m + i - 1] for part in range(3)), tuple(teacher[part * n + j - 1] for part in range(3)))
        for i, j in layer_pairs(layers, m, n)
    ]


def _scores(a: Array, b: Array, heads: int) -> Array:
    """(heads, n, n): A_h B_h^T / sqrt(d) of the h-th block of d = width / heads columns."""
    n, width = a.shape
    d = width // heads
    scores = np.zeros((heads, n, n))
    for h in range(heads):
        block = slice(h * d, (h + 1) * d)
        for i in range(n):
            for j in range(n):
                scores[h, i, j] = np.sum(a[i, block] * b[j, block]) / np.sqrt(d)
    return scores


def _relation_kl(student: tuple[Array, Array], teacher: tuple[Array, Array], heads: int) -> float:
    """Mean over heads and queries of KL(softmax of the teacher's scores || softmax of the student's)."""
    s, t = _scores(*student, heads), _scores(*teacher, heads)
    n = s.shape[1]
    total = 0.0
    for h in range(heads):
        for i in range(n):
            total += kl(log_softmax(t[h, i]), log_softmax(s[h, i]))
    return total / (heads * n)
