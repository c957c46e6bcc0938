"""Several teachers, teachers of other label sets, and learning without forgetting.

Lists of teachers are lists of arrays, one for each; rows are samples, frames or points that all of them see. Where the
text leaves a reading open, it is a keyword here and its default is the reading taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from .maths import Array, Ints, kl, log_softmax, unit


def mean_probabilities(teachers: Sequence[Array], *, temperature: float = 4.0) -> Array:
    """``(n, K)``: the mean over teachers of softmax(z_j / T) (You et al., 2017): of probabilities, not of logits."""
    total = np.zeros(teachers[0].shape)
    for logits in teachers:
        for i, row in enumerate(logits):
            total[i] += np.exp(log_softmax(row / temperature))
    return total / len(teachers)


def against_mean(student: Array, teachers: Sequence[Array], *, temperature: float = 4.0) -> Array:
    """``(n,)``: T^2 KL(mean_j softmax(z_j / T) || softmax(z_s / T))."""
    target = mean_probabilities(teachers, temperature=temperature)
    return np.array([
        temperature**2 * kl(np.log(target[i]), log_softmax(student[i] / temperature)) for i in range(len(student))
    ])  # fmt: skip


# ---------------------------------------------------------------- triplets (You et al., 2017)


def distance(a: Array, b: Array, *, squared: bool = False) -> float:
    """Euclidean; the text says d and no more."""
    total = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return total if squared else float(np.sqrt(total))


def ordered(teachers: Sequence[Array], triplets: Ints, *, normalise: bool = True) -> list[tuple[int, int, int]]:
    """The triplets (i, j, k) that the teachers order, turned so that most of them have d(i, j) < d(i, k).

    Each teacher's embeddings are brought to length 1, row by row, if `normalise`. A teacher to whom both are equally
    far has no vote; triplets of as many votes for either order are dropped.
    """
    kept = []
    for i, j, k in triplets.tolist():
        votes = 0
        for rows in teachers:
            seen = [unit(row) if normalise else row for row in (rows[i], rows[j], rows[k])]
            near, far = distance(seen[0], seen[1]), distance(seen[0], seen[2])
            votes += (near < far) - (near > far)
        if votes != 0:
            kept.append((i, j, k) if votes > 0 else (i, k, j))
    return kept


def you_triplet(
    student: Array,
    teachers: Sequence[Array],
    triplets: Ints,
    *,
    margin: float = 0.0,
    normalise: bool = True,
    squared: bool = False,
) -> float:
    """Mean over the kept triplets of max(0, d_s(i, j) - d_s(i, k) + m); 0 where none is kept.

    The student's embeddings are normalised as the teachers' are (the text asks it of the teachers only; without it, a
    margin has no scale).

    Args:
        student: ``(n, c)`` embeddings of the intermediate layer.
        teachers: ``(n, c_j)`` of each teacher; widths may differ.
        triplets: ``(t, 3)`` row numbers, j and k in any order.
    """
    rows = [unit(row) if normalise else row for row in student]
    kept = ordered(teachers, triplets, normalise=normalise)
    total = 0.0
    for i, j, k in kept:
        near, far = (distance(rows[i], rows[other], squared=squared) for other in (j, k))
        total += max(0.0, near - far + margin)
    return total / len(kept) if kept else 0.0


# ---------------------------------------------------------------- weights of teachers


def ca_mkd_weights(teachers: Sequence[Array], labels: Ints) -> Array:
    """``(n, m)``: w_j = (1 - exp(CE_j) / sum_i exp(CE_i)) / (m - 1) of each row (Zhang et al., 2022); 1 of one teacher.

    CE_j is teacher j's cross entropy with the row's label at T = 1. The weights of a row sum to 1.
    """
    m = len(teachers)
    weights = np.ones((len(labels), m))
    if m == 1:
        return weights
    for i, label in enumerate(labels):
        costs = np.array([-log_softmax(logits[i])[label] for logits in teachers])
        share = np.exp(log_softmax(costs))
        weights[i] = (1 - share) / (m - 1)
    return weights


def ca_mkd(student: Array, teachers: Sequence[Array], labels: Ints, *, temperature: float = 4.0) -> Array:
    """``(n,)``: sum_j w_j T^2 KL(softmax(z_j / T) || softmax(z_s / T)) with `ca_mkd_weights`."""
    weights = ca_mkd_weights(teachers, labels)
    values = np.zeros(len(student))
    for i in range(len(student)):
        log_q = log_softmax(student[i] / temperature)
        for j, logits in enumerate(teachers):
            values[i] += weights[i, j] * temperature**2 * kl(log_softmax(logits[i] / temperature), log_q)
    return values


def kd_gradients(student: Array, teachers: Sequence[Array], *, temperature: float = 4.0) -> Array:
    """``(m, n * K)``: g_j = dL_j / dz_s, L_j the mean over rows of T^2 KL(teacher j || student).

    Of row i: T (softmax(z_s / T) - softmax(z_j / T)) / n.
    """
    found = []
    for logits in teachers:
        rows = [
            temperature * (np.exp(log_softmax(z_s / temperature)) - np.exp(log_softmax(z_t / temperature)))
            for z_s, z_t in zip(student, logits, strict=True)
        ]
        found.append(np.concatenate(rows) / len(student))
    return np.array(found)


def ae_kd_weights(gradients: Array, *, cap: float) -> Array:
    """``(m,)``: the w of least ||sum_j w_j g_j||^2 with sum w = 1 and 0 <= w_j <= C / m (Du et al., 2020); C >= 1.

    Exact, by trying every choice of weights that lie at 0 and at C / m: the others solve a linear system. Where several
    w are as good (gradients on one line), any of them: compare `ae_kd_value` then.

    Args:
        gradients: ``(m, d)``.
        cap: C; m or more caps nothing, 1 leaves the mean.
    """
    m = len(gradients)
    gram = np.array([[np.sum(a * b) for b in gradients] for a in gradients])
    high = min(1.0, cap / m)
    best, best_value = np.full(m, 1 / m), np.inf
    for states in product(("low", "high", "free"), repeat=m):
        free = [j for j in range(m) if states[j] == "free"]
        weights = np.array([high if state == "high" else 0.0 for state in states])
        rest = 1 - weights.sum()
        if free:
            # stationary: G_ff w_f + G_fh w_h = mu for all free, and the free ones make up the rest
            system = np.zeros((len(free) + 1, len(free) + 1))
            system[:-1, :-1] = gram[np.ix_(free, free)]
            system[:-1, -1], system[-1, :-1] = -1.0, 1.0
            known = np.array([-np.sum(gram[j] * weights) for j in free] + [rest])
            weights[free] = np.linalg.lstsq(system, known, rcond=None)[0][:-1]
        inside = np.all(weights >= -1e-12) and np.all(weights <= high + 1e-12)
        if not inside or abs(weights.sum() - 1) > 1e-9:
            continue
        value = ae_kd_value(gradients, weights)
        if value < best_value - 1e-15:
            best, best_value = weights.clip(0.0, high), value
    return best


def ae_kd_value(gradients: Array, weights: Array) -> float:
    """||sum_j w_j g_j||^2."""
    mixed = sum(w * g for w, g in zip(weights, gradients, strict=True))
    return float(np.sum(mixed**2))


# ---------------------------------------------------------------- other label sets, old tasks


def uhc(student: Array, teacher: Array, classes: Ints, *, temperature: float = 1.0) -> Array:
    """``(n,)``: T^2 KL(p_t || p_s renormalised on the teacher's classes) (Vongkulbhisal et al., 2019).

    To renormalise softmax(z_s / T) on a subset is to take the softmax of the subset's z_s / T. Several teachers: the
    sum of their values.

    Args:
        student: ``(n, K)``.
        teacher: ``(n, k)``, k <= K.
        classes: ``(k,)``, the student's number of each of the teacher's classes.
    """
    values = np.zeros(len(student))
    for i in range(len(student)):
        p = np.exp(log_softmax(student[i] / temperature))[classes]
        log_p = log_softmax(teacher[i] / temperature)
        values[i] = temperature**2 * kl(log_p, np.log(p / p.sum()))
    return values


def lwf(student: Array, old: Array, *, temperature: float = 2.0) -> Array:
    """``(n,)``: -sum_k y'_k log y^_k of the old task's classes, both q_k^(1/T) / sum q^(1/T) (Li & Hoiem, 2016).

    A cross entropy without T^2: T^2 KL has T^2 times its gradient, and differs by the entropy of y' besides.
    """
    values = np.zeros(len(student))
    for i in range(len(student)):
        recorded, now = (np.exp(log_softmax(z)) ** (1 / temperature) for z in (old[i], student[i]))
        recorded, now = recorded / recorded.sum(), now / now.sum()
        values[i] = -sum(recorded[k] * np.log(now[k]) for k in range(len(now)))
    return values


def pdr(
    new: Array,
    expert: Array,
    old_on_new: tuple[Array, Array],
    old_on_exemplars: tuple[Array, Array],
    *,
    temperature: float = 2.0,
    retrospection: float = 1.0,
) -> float:
    """KD(new | expert) + lam (KD(old | old model, new data) + KD(old | old model, exemplars)) (Hou et al., 2018).

    Each KD is the mean over its own rows of T^2 KL(teacher || student): exemplars are fewer rows and weigh as much as
    all of the new data.

    Args:
        new: the student's scores of the new task's classes, on new data; `expert` likewise.
        old_on_new: student's and old model's scores of the old classes on the new data.
        old_on_exemplars: the same on the exemplars.
    """

    def distilled(student: Array, teacher: Array) -> float:
        rows = [
            temperature**2 * kl(log_softmax(z_t / temperature), log_softmax(z_s / temperature))
            for z_s, z_t in zip(student, teacher, strict=True)
        ]
        return sum(rows) / len(rows)

    return distilled(new, expert) + retrospection * (distilled(*old_on_new) + distilled(*old_on_exemplars))


def tkd_rate(rate: float, loss: float, before: float) -> float:
    """Per cent of the frames that are key frames, of the release of TKD (Farhadi, Yang, 2020).

    Doubled below 50, 10 more below 90, where the loss fell by more than 0.1 or rose by more than 1; else 1 less, down
    to 10. It was read from the release's thread, not run.
    """
    if loss < before - 0.1 or loss > before + 1:
        return rate * 2 if rate < 50 else rate + 10 if rate < 90 else rate
    return rate - 1 if rate > 10 else rate
