"""Features through a connector, a regressor or the teacher's head, and other differences of whole features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .layers import Params, linear, norm_of, relu, softplus, under
from .maths import Array, Ints, mean_square, unit


def ab(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    *,
    state: Params,
    margin: float = 1.0,
    norm: str = "batch",
) -> Array:
    """Sum over an item of (s + m)^2 1(s > -m, t <= 0) + (s - m)^2 1(s <= m, t > 0), s = P(f_s) (Heo et al., 2019)."""
    s = _connected(student, state, norm)
    values = np.zeros(items)
    for i in range(len(s)):
        for x, t in zip(s[i], teacher[i], strict=True):
            if t <= 0 and x > -margin:
                values[item[i]] += (x + margin) ** 2
            if t > 0 and x <= margin:
                values[item[i]] += (x - margin) ** 2
    return values


def ofd(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    *,
    state: Params,
    norm: str = "batch",
    margins: Sequence[float] | None = None,
) -> Array:
    """Sum over an item of the partial L2 of s = P(f_s) and t' = max(t, m_c): 0 if s <= t' <= 0, else (s - t')^2.

    m_c is given, or the mean of the channel's negative entries, 0 where there are none (Heo et al., 2019, ICCV).
    """
    s = _connected(student, state, norm)
    values = np.zeros(items)
    for c in range(teacher.shape[1]):
        negative = [t for t in teacher[:, c] if t < 0]
        m = sum(negative) / len(negative) if negative else 0.0
        m = m if margins is None else margins[c]
        for i in range(len(s)):
            t = max(teacher[i, c], m)
            if not s[i, c] <= t <= 0:
                values[item[i]] += (s[i, c] - t) ** 2
    return values


def relu_margins(weight: Array, bias: Array) -> Array:
    """E[t | t < 0] of normals of mean b = `bias` and deviation |g| = |`weight`|: b - |g| phi(b / g) / Phi(-b / |g|).

    -3 |g| where Phi < 1e-3, the channel being hardly ever negative (the release's guard).
    """
    margins = []
    for g, b in zip(np.abs(weight), bias, strict=True):
        if g == 0:  # a constant channel, negative always or never
            margins.append(min(b, 0.0))
            continue
        below = 0.5 * math.erfc(b / g / math.sqrt(2))
        density = math.exp(-0.5 * (b / g) ** 2) / math.sqrt(2 * math.pi)
        margins.append(b - g * density / below if below >= 1e-3 else -3 * g)
    return np.array(margins)


def vid(
    student: Array,
    teacher: Array,
    *,
    state: Params,
    variance: float = 5.0,
    eps: float = 1e-5,
) -> Array:
    """Mean over channels of 1/2 ((f_t - mu(f_s))^2 / var_c + log var_c), var = softplus(raw) + eps (Ahn et al., 2019).

    `variance` is where the weights start and is no part of the formula. The constant 1/2 log(2 pi) is left out.
    """
    mu = student
    for layer in ("regressor.0", "regressor.2"):
        mu = relu(linear(mu, under(state, layer)))
    mu = linear(mu, under(state, "regressor.4"))
    var = softplus(state["raw"]) + eps
    values = np.zeros(len(student))
    for i in range(len(student)):
        terms = [(teacher[i, c] - mu[i, c]) ** 2 / var[c] + math.log(var[c]) for c in range(len(var))]
        values[i] = 0.5 * sum(terms) / len(var)
    return values


def srrl(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    head: Callable[[Array], Array],
    *,
    state: Params,
    weight: float = 1.0,
    norm: str = "batch",
    pool: bool = True,
) -> Array:
    """mean_c (g - f_t)^2 + w mean_k (H(g) - H(f_t))^2, H the teacher's head, g = ReLU(norm(W f_s)) (Yang et al., 2021).

    Both of an item's mean row (`pool`), or else of each row, averaged over the item's rows.
    """
    g = relu(_connected(student, state, norm))
    values = np.zeros(items)
    for b in range(items):
        rows = [i for i in range(len(item)) if item[i] == b]
        if not rows:
            continue
        g_b, t_b = (f[rows].mean(0, keepdims=True) if pool else f[rows] for f in (g, teacher))
        values[b] = mean_square(g_b.ravel(), t_b.ravel())
        values[b] += weight * mean_square(np.ravel(head(g_b)), np.ravel(head(t_b)))
    return values


def n_to_one(student: Array, teacher: Array, *, segments: int = 8) -> Array:
    """NORM: mean over segments i and channels of (f_i - f_t)^2, f_i columns i d to (i + 1) d (Liu et al., 2023)."""
    d = teacher.shape[1]
    values = np.zeros(len(student))
    for i in range(len(student)):
        values[i] = sum(mean_square(student[i, k * d : (k + 1) * d], teacher[i]) for k in range(segments)) / segments
    return values


def delta(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    *,
    channel_weights: Sequence[float] | None = None,
) -> Array:
    """1/2 sum_c C W_c ||f_s[c] - f_0[c]||^2 / HW, the norm over an item's rows, HW their number (Li et al., 2019).

    W_c is 1 / C without `channel_weights`. The paper sums over the batch; here the caller's mean is over items.
    """
    channels = student.shape[1]
    w = [1 / channels] * channels if channel_weights is None else channel_weights
    values = np.zeros(items)
    for b in range(items):
        rows = [i for i in range(len(item)) if item[i] == b]
        for c in range(channels) if rows else []:
            values[b] += 0.5 * channels * w[c] * np.sum((student[rows, c] - teacher[rows, c]) ** 2) / len(rows)
    return values


def delta_weights(increase: Array) -> Array:
    """softmax(z / 5), z the z-scores (population deviation) of the losses' increase without each filter."""
    z = (increase - increase.mean()) / increase.std()
    return np.exp(z / 5) / np.sum(np.exp(z / 5))


def jacobian(student: Array, teacher: Array) -> Array:
    """|| g_s / ||g_s|| - g_t / ||g_t|| ||^2, g the gradient at the input (Srinivas, Fleuret, 2018)."""
    return np.array([np.sum((unit(g_s) - unit(g_t)) ** 2) for g_s, g_t in zip(student, teacher, strict=True)])


def _connected(student: Array, state: Params, norm: str) -> Array:
    return norm_of(linear(student, under(state, "connector")), under(state, "norm"), norm)
