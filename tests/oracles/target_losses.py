"""Outputs again: several temperatures at once, a learned one, a bounded regression, subclasses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .layers import Params, linear, relu, sigmoid, under
from .logit_losses import kd
from .maths import Array, kl, log_softmax


def mlkd(
    student: Array,
    teacher: Array,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance: float = 1.0,
    batch: float = 1.0,
    classes: float = 1.0,
    confident: str = "all",
) -> float:
    """One view's sum over T of the instance, batch and class terms (Jin et al., 2023).

    instance T^2 KL(p_t || p_s) / n, batch ||p_s p_s^T - p_t p_t^T||_F^2 / n, class ||p_s^T p_s - p_t^T p_t||_F^2 / K
    `half` keeps the samples (classes) whose confidence is not above the median: terms of samples, and rows of the two
    matrices; the divisors stay. `release` scales the reduced terms by the kept shares, as the released code does. The
    confidence of a sample is its largest p_t, that of a class the sum of its p_t, at T = 1.
    """
    n, k = student.shape
    p = np.array([np.exp(log_softmax(z)) for z in teacher])
    samples = np.ones(n) if confident == "all" else 1.0 * (p.max(1) <= np.median(p.max(1)))
    kinds = np.ones(k) if confident == "all" else 1.0 * (p.sum(0) <= np.median(p.sum(0)))
    if confident == "release":
        samples, kinds = np.full(n, samples.mean()), np.full(k, kinds.mean())
    total = 0.0
    for temperature in temperatures:
        log_s = np.array([log_softmax(z / temperature) for z in student])
        log_t = np.array([log_softmax(z / temperature) for z in teacher])
        p_s, p_t = np.exp(log_s), np.exp(log_t)
        for i in range(n):
            total += instance * samples[i] * temperature**2 * kl(log_t[i], log_s[i]) / n
            for j in range(n):
                total += batch * samples[i] * (np.sum(p_s[i] * p_s[j]) - np.sum(p_t[i] * p_t[j])) ** 2 / n
        for a in range(k):
            for b in range(k):
                off = np.sum(p_s[:, a] * p_s[:, b]) - np.sum(p_t[:, a] * p_t[:, b])
                total += classes * kinds[a] * off**2 / k
    return total


def ctkd(
    student: Array,
    teacher: Array,
    progress: float = 0.0,
    *,
    state: Params,
    mode: str = "global",
    start: float = 1.0,
    span: float = 20.0,
    ramp: float = 0.04,
) -> Array:
    """KD at T = start + span sigmoid(theta), T^2 included (Li et al., 2023).

    theta is one number, or for `instance` a row's own: an MLP of [z_s, z_t]. Progress and `ramp` scale the reversed
    gradient of theta only, never the value.
    """
    values = np.zeros(len(student))
    for i in range(len(student)):
        if mode == "instance":
            both = np.concatenate([student[i], teacher[i]])
            theta = linear(relu(linear(both, under(state, "mlp.0"))), under(state, "mlp.2"))[0]
        else:
            theta = state["theta"]
        temperature = float(start + span * sigmoid(theta))
        values[i] = kd(student[i : i + 1], teacher[i : i + 1], temperature=temperature)[0]
    return values


def bounded_reg(student: Array, teacher: Array, labels: Array, *, margin: float = 0.0) -> Array:
    """L_b = ||R_s - y||^2 if ||R_s - y||^2 + m > ||R_t - y||^2, else 0, y the real targets (Chen et al., 2017)."""
    values = np.zeros(len(student))
    for i in range(len(student)):
        off_s, off_t = np.sum((student[i] - labels[i]) ** 2), np.sum((teacher[i] - labels[i]) ** 2)
        values[i] = off_s if off_s + margin > off_t else 0.0
    return values


def lelp(
    student: Sequence[Array],
    teacher: Sequence[Array],
    *,
    state: Params,
    temperature: float = 1.0,
    tau: float = 1.0,
    subclasses: int = 5,
    statistics: str = "",
    head: str = "student",
) -> Array:
    """-T^2 sum_ks q log softmax(z / T) over all K S logits, q_ks = p_t[k] r_k[s] (Loo et al., 2024).

    p_t = softmax(z_t / T); r_k = softmax over s of V_k^T (P h - mu_k) / scale_k / tau, P the projection `null`. The
    student gives z, class after class, the teacher (z_t, h).
    """
    (z_s,), (z_t, embedding) = student, teacher
    kinds, d, subclasses = state["directions"].shape
    values = np.zeros(len(z_s))
    for i in range(len(z_s)):
        p_t = np.exp(log_softmax(z_t[i] / temperature))
        log_p = log_softmax(z_s[i] / temperature)
        h = np.array([np.sum(state["null"][a] * embedding[i]) for a in range(d)])
        for k in range(kinds):
            at = [np.sum(state["directions"][k, :, s] * (h - state["mean"][k])) for s in range(subclasses)]
            r = np.exp(log_softmax(np.array(at) / state["scale"][k] / tau))
            for s in range(subclasses):
                values[i] -= temperature**2 * p_t[k] * r[s] * log_p[k * subclasses + s]
    return values


def lelp_statistics(embedding: Array, labels: Array, classifier: Array, subclasses: int) -> dict[str, Array]:
    """P = I - W^+ W; of each class's P h the mean, leading principal directions, root mean squares along them."""
    null = np.eye(embedding.shape[1]) - np.linalg.pinv(classifier) @ classifier
    projected = embedding @ null.T
    means, directions, scales = [], [], []
    for k in range(len(classifier)):
        h = projected[labels == k]
        values, vectors = np.linalg.eigh((h - h.mean(0)).T @ (h - h.mean(0)) / len(h))
        leading = np.argsort(-values)[:subclasses]
        means.append(h.mean(0))
        directions.append(vectors[:, leading])
        scales.append(np.sqrt(values[leading]))
    return {"null": null, "mean": np.array(means), "directions": np.array(directions), "scale": np.array(scales)}
