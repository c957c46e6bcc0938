"""Transformers: attention, relations of values, hidden states. Rows are tokens; only tokens of one item meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .layers import Params, linear, under
from .maths import Array, Ints, kl, log_softmax, mean_square, unit


def minilm(student: Sequence[Array], teacher: Sequence[Array], item: Ints, items: int, *, heads: int = 12) -> Array:
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


def minilmv2(student: Sequence[Array], teacher: Sequence[Array], item: Ints, items: int, *, heads: int = 48) -> Array:
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
    item: Ints,
    items: int,
    *,
    state: Params,
    heads: int = 12,
) -> Array:
    """MSE(E_s W_e, E_t) + sum over pairs of MSE(H_s W_h, H_t) + MSE(A_s, A_t) (Jiao et al., 2020).

    A side is (embeddings, then hidden, q, k of each pair). A = Q K^T / sqrt(d_k) before the softmax, its mean over
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
        for (h_s, q_s, k_s), (h_t, q_t, k_t) in zip(_triples(student[1:]), _triples(teacher[1:]), strict=True):
            values[b] += mean_square(linear(h_s[rows], hidden).ravel(), h_t[rows].ravel())
            a_s, a_t = _scores(q_s[rows], k_s[rows], heads), _scores(q_t[rows], k_t[rows], heads)
            values[b] += mean_square(a_s.ravel(), a_t.ravel())
    return values


def mobilebert(student: Sequence[Array], teacher: Sequence[Array], item: Ints, items: int, *, heads: int = 4) -> Array:
    """Sum over layer pairs, each (hidden, q, k), of mean (h_t - h_s)^2 + 1 / (A N) sum KL(a_t || a_s) (2020, ACL)."""
    values = np.zeros(items)
    for b in range(items):
        rows = _rows_of(b, item)
        if not rows:
            continue
        for (h_s, q_s, k_s), (h_t, q_t, k_t) in zip(_triples(student), _triples(teacher), strict=True):
            values[b] += mean_square(h_s[rows].ravel(), h_t[rows].ravel())
            values[b] += _relation_kl((q_s[rows], k_s[rows]), (q_t[rows], k_t[rows]), heads)
    return values


def distilbert(student: Array, teacher: Array) -> Array:
    """1 - cos(h_s, h_t), the cosine part of Sanh et al. (2019)."""
    return np.array([1 - np.sum(unit(h_s) * unit(h_t)) for h_s, h_t in zip(student, teacher, strict=True)])


def pkd(student: Array, teacher: Array) -> Array:
    """|| h_s / ||h_s|| - h_t / ||h_t|| ||^2, of one pair of layers (Sun et al., 2019)."""
    return np.array([np.sum((unit(h_s) - unit(h_t)) ** 2) for h_s, h_t in zip(student, teacher, strict=True)])


def _rows_of(b: int, item: Ints) -> list[int]:
    return [i for i in range(len(item)) if item[i] == b]


def _triples(signals: Sequence[Array]) -> list[tuple[Array, Array, Array]]:
    return [(signals[i], signals[i + 1], signals[i + 2]) for i in range(0, len(signals), 3)]


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
