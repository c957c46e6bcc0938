"""Rows of logits: divergences between distributions over classes, and squared differences."""

from __future__ import annotations

import math

import numpy as np

from .data_free import dfad_discrepancy
from .maths import Array, Ints, kl, log_sigmoid, log_softmax, mean_square, std


def kd(
    student: Array,
    teacher: Array,
    *,
    temperature: float = 4.0,
    standardise: bool = False,
    per_sample: bool = False,
) -> Array:
    """T_t^2 KL(softmax(z_t / T_t) || softmax(z_s / T_s)), summed over the classes of a row (Hinton et al., 2015).

    Both T are `temperature`, or with `per_sample` that times the row's own std, s_t for the teacher and s_s for the
    student (Chi et al., 2023, NormKD). Their release multiplies each row by the square of the teacher's T alone, which
    no gradient goes through; T_s does get one. The std is unbiased, over classes; the mean stays in z, as a softmax
    does not see it. The release divides by a std without a small constant; here a constant row, of T = 0, counts as
    equal logits, so a constant teacher gives 0 and a constant student T_t^2 KL(p_t || uniform).
    `standardise` puts Z(z) = (z - mean) / (std + 1e-7) in the place of z first (Sun et al., 2024), so that with both,
    every T is that of Z.
    """
    values = np.zeros(len(student))
    for i in range(len(student)):
        z_s, z_t = student[i], teacher[i]
        if standardise:
            z_s, z_t = ((z - z.mean()) / (std(z, unbiased=True) + 1e-7) for z in (z_s, z_t))
        t_s, t_t = (temperature * (std(z, unbiased=True) if per_sample else 1.0) for z in (z_s, z_t))
        log_p, log_q = (log_softmax(z / t if t > 0 else 0 * z) for z, t in ((z_t, t_t), (z_s, t_s)))
        values[i] = t_t**2 * kl(log_p, log_q)
    return values


def kd_lskd(student: Array, teacher: Array, *, temperature: float = 2.0) -> Array:
    """`kd` between logits standardised on both sides, T^2 kept (Sun et al., 2024)."""
    return kd(student, teacher, temperature=temperature, standardise=True)


def logit_mse(student: Array, teacher: Array, *, centre: bool = False) -> Array:
    """Mean over classes of (z_s - z_t)^2, after taking each row's own mean off it if `centre` (Ba, Caruana, 2014)."""
    values = np.zeros(len(student))
    for i in range(len(student)):
        z_s, z_t = student[i], teacher[i]
        if centre:
            z_s, z_t = z_s - z_s.mean(), z_t - z_t.mean()
        values[i] = mean_square(z_s, z_t)
    return values


def tkd_target(student: Array, teacher: Array, *, sure: float, objectness: int | None, blend: float) -> Array:
    """The teacher's row where it is sure, elsewhere ``blend t + (1 - blend) s``, a constant (Farhadi, Yang, 2020)."""
    out = np.zeros_like(student)
    for n in range(len(student)):
        if objectness is None:
            confidence = max(math.exp(value) for value in log_softmax(teacher[n]))
        else:
            confidence = 1 / (1 + math.exp(-teacher[n, objectness]))
        blended = blend * teacher[n] + (1 - blend) * student[n]
        out[n] = teacher[n] if confidence >= sure else blended
    return out


def tkd(
    student: Array, teacher: Array, item: Ints, items: int,
    *, sure: float = 0.2, objectness: int | None = None, blend: float = 0.4, bound: float = 0.3,
) -> Array:  # fmt: skip
    """Mean over all elements of an item of ``(s - target)^2``; the bound, which takes the step, leaves the value."""
    squared = (student - tkd_target(student, teacher, sure=sure, objectness=objectness, blend=blend)) ** 2
    return np.array([squared[item == i].mean() if (item == i).any() else 0.0 for i in range(items)])


def logit_mae(student: Array, teacher: Array) -> Array:
    """Mean over classes of |z_s - z_t| (Fang et al., 2019; see `data_free.dfad_discrepancy`)."""
    return np.array([dfad_discrepancy(student[i : i + 1], teacher[i : i + 1]) for i in range(len(student))])


def ce(student: Array, labels: Ints, *, smoothing: float = 0.0) -> Array:
    """-sum_k q_k log p_s, q = 1 - s + s / K at the label and s / K elsewhere, s the smoothing (2016, CVPR)."""
    rows, classes = student.shape
    values = np.zeros(rows)
    for i in range(rows):
        log_p = log_softmax(student[i])
        for k in range(classes):
            own = 1.0 if k == labels[i] else 0.0
            values[i] -= ((1 - smoothing) * own + smoothing / classes) * log_p[k]
    return values


def tfkd_reg(student: Array, labels: Ints, *, temperature: float = 20.0, correct: float = 0.99) -> Array:
    """KL(softmax(u / T) || softmax(z_s)), u = `correct` at the label, (1 - correct) / (K - 1) elsewhere (2020, CVPR).

    As the formula has it: no T^2, and a softmax of u although u is a distribution already.
    """
    rows, classes = student.shape
    values = np.zeros(rows)
    for i in range(rows):
        u = np.array([correct if k == labels[i] else (1 - correct) / (classes - 1) for k in range(classes)])
        values[i] = kl(log_softmax(u / temperature), log_softmax(student[i]))
    return values


def dkd(
    student: Array,
    teacher: Array,
    labels: Ints,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Array:
    """T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s)), all of it at temperature T (Zhao et al., 2022).

    b = (p_y, 1 - p_y); q is the softmax over the K - 1 other logits (left out, not masked by -1000), so K = 2 has no q
    term.
    """
    values = np.zeros(len(student))
    for i in range(len(student)):
        b, q = [], []
        for z in (teacher[i] / temperature, student[i] / temperature):
            log_p = log_softmax(z)
            others = [k for k in range(len(z)) if k != labels[i]]
            b.append(np.array([log_p[labels[i]], np.logaddexp.reduce(log_p[others])]))
            q.append(log_softmax(z[others]))
        values[i] = temperature**2 * (alpha * kl(*b) + beta * kl(*q))
    return values


def wsld(student: Array, teacher: Array, labels: Ints, *, temperature: float = 2.0) -> Array:
    """T^2 w soft: w = 1 - exp(-CE(y, z_s) / (CE(y, z_t) + 1e-7)) at T = 1, soft = -sum_k p_t log p_s at T (2021, ICLR).

    The paper's alpha is the caller's weight.
    """
    values = np.zeros(len(student))
    for i in range(len(student)):
        ce_s = -log_softmax(student[i])[labels[i]]
        ce_t = -log_softmax(teacher[i])[labels[i]]
        p_t = np.exp(log_softmax(teacher[i] / temperature))
        log_p_s = log_softmax(student[i] / temperature)
        soft = -sum(p_t[k] * log_p_s[k] for k in range(len(p_t)))
        values[i] = temperature**2 * (1 - np.exp(-ce_s / (ce_t + 1e-7))) * soft
    return values


def gjsd(student: Array, teacher: Array, *, beta: float = 0.5, temperature: float = 1.0) -> Array:
    """T^2 (b KL(P_t || M) + (1 - b) KL(P_s || M)), M = b P_t + (1 - b) P_s (Agarwal et al., 2024).

    Not divided by b or 1 - b, but b = 0 is KL(P_t || P_s) and b = 1 is KL(P_s || P_t).
    """
    values = np.zeros(len(student))
    for i in range(len(student)):
        log_t, log_s = log_softmax(teacher[i] / temperature), log_softmax(student[i] / temperature)
        if beta == 0:
            divergence = kl(log_t, log_s)
        elif beta == 1:
            divergence = kl(log_s, log_t)
        else:
            log_m = _log_mix(beta, log_t, log_s)
            divergence = beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)
        values[i] = temperature**2 * divergence
    return values


def skew_kl(student: Array, teacher: Array, *, alpha: float = 0.1, temperature: float = 1.0) -> Array:
    """T^2 KL(p_t || a p_t + (1 - a) p_s), p = softmax(z / T) (Ko et al., 2024)."""
    values = np.zeros(len(student))
    for i in range(len(student)):
        log_t, log_s = log_softmax(teacher[i] / temperature), log_softmax(student[i] / temperature)
        values[i] = temperature**2 * kl(log_t, _log_mix(alpha, log_t, log_s))
    return values


def skew_rkl(student: Array, teacher: Array, *, alpha: float = 0.1, temperature: float = 1.0) -> Array:
    """T^2 KL(p_s || (1 - a) p_t + a p_s), p = softmax(z / T) (Ko et al., 2024)."""
    values = np.zeros(len(student))
    for i in range(len(student)):
        log_t, log_s = log_softmax(teacher[i] / temperature), log_softmax(student[i] / temperature)
        values[i] = temperature**2 * kl(log_s, _log_mix(alpha, log_s, log_t))
    return values


def multi_label(student: Array, teacher: Array, *, temperature: float = 1.0) -> Array:
    """T^2 times the mean over classes of -(q log sigmoid(x) + (1 - q) log(1 - sigmoid(x))).

    q = sigmoid(z_t / T) and x = z_s / T.
    """
    rows, classes = student.shape
    values = np.zeros(rows)
    for i in range(rows):
        for k in range(classes):
            x = student[i, k] / temperature
            q = np.exp(log_sigmoid(teacher[i, k] / temperature))
            values[i] -= temperature**2 / classes * (q * log_sigmoid(x) + (1 - q) * log_sigmoid(-x))
    return values


def weighted_ce(student: Array, teacher: Array, *, background: int = 0, background_weight: float = 1.5) -> Array:
    """-sum_c w_c p_t log p_s with w = `background_weight` for class `background` and 1 for others (2017, NeurIPS)."""
    values = np.zeros(len(student))
    for i in range(len(student)):
        p_t, log_p_s = np.exp(log_softmax(teacher[i])), log_softmax(student[i])
        for c in range(len(p_t)):
            values[i] -= (background_weight if c == background else 1.0) * p_t[c] * log_p_s[c]
    return values


def ofa(student: Array, teacher: Array, labels: Ints, *, eps: float = 1.0) -> Array:
    """-sum_k ((p_t + 1{k = y})^eps - 1{k = y}) log p_s, y the label that is given (Hao et al., 2023)."""
    values = np.zeros(len(student))
    for i in range(len(student)):
        p_t, log_p_s = np.exp(log_softmax(teacher[i])), log_softmax(student[i])
        for k in range(len(p_t)):
            own = 1.0 if k == labels[i] else 0.0
            values[i] -= ((p_t[k] + own) ** eps - own) * log_p_s[k]
    return values


def _log_mix(weight: float, log_p: Array, log_q: Array) -> Array:
    """log(weight p + (1 - weight) q)."""
    if weight in (0, 1):
        return log_p if weight else log_q
    return np.logaddexp(np.log(weight) + log_p, np.log(1 - weight) + log_q)
