"""Losses on logits of 2020 to 2025, by their papers' formulas and, where a release says otherwise, by its own.

`student` and `teacher` are logits ``(n, c)``, `labels` ``(n,)``. Returned are values of the rows ``(n,)``, whose mean
is what the releases minimise, or a scalar where one is said. The weight of a loss, its warm-up and the cross-entropy
with the labels beside it are the caller's. The papers' full texts were not at hand, so that equations are cited as the
releases have them; each release was read, and its values on fixed rows are in `tests/losses/test_release_values.py`.
What a gradient goes through is said where it is not the student alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .logit_losses import skew_kl
from .maths import Array, Ints, kl, log_softmax, std


def nkd(student: Array, teacher: Array, labels: Ints, *, temperature: float = 1.0, gamma: float = 1.5) -> Array:
    """-p_t(y) log p_s(y) - gamma T^2 sum_k q_t log q_s (Yang et al., 2023): (yzd-v/cls_KD).

    p is at T = 1; q is the softmax at T over the c - 1 logits without the label's. Both terms are cross-entropies, so
    that the loss of an equal student is not 0. Defaults are those of ImageNet; CIFAR-100 has T = 3, gamma = 3.5.
    """
    values = np.zeros(len(student))
    for i, y in enumerate(labels):
        others = [k for k in range(student.shape[1]) if k != y]
        q_t = np.exp(log_softmax(teacher[i, others] / temperature))
        log_q_s = log_softmax(student[i, others] / temperature)
        target = np.exp(log_softmax(teacher[i])[y]) * log_softmax(student[i])[y]
        values[i] = -target - gamma * temperature**2 * sum(q_t[k] * log_q_s[k] for k in range(len(others)))
    return values


def uskd(
    student: Array,
    weak: Array,
    labels: Ints,
    *,
    alpha: float = 1.0,
    beta: float = 0.1,
    mu: float = 0.005,
    ranks: str = "log",
) -> Array:
    """alpha target + beta non-target + mu weak, without a teacher (Yang et al., 2023; yzd-v/cls_KD).

    `weak` are the logits of a linear head on a middle layer. Target: -P log p(y), P = p(y)^2 + 1 - mean p(y)^2 over the
    batch. Non-target: -sum_k Z log q, q the softmax over the other c - 1 logits, Z proportional to 1 / rank, where the
    most probable class has rank 1 and the label takes part in the ranking but not in Z. Weak: cross-entropy of `weak`
    with the label smoothed by 0.1. P and Z are constants.

    Ambiguous: a class ranks by its share of what the label leaves, w / (1 - w(y)) of the weak head, plus the student's;
    for the latter the release has overwritten p by its logarithm, log p / (1 - log p(y)). `ranks` is `log` for the
    release's, `probability` for p / (1 - p(y)). 1e-6 is added to each denominator.
    """
    rows, classes = student.shape
    log_p, log_w = (np.stack([log_softmax(z) for z in logits]) for logits in (student, weak))
    mean_square = sum(np.exp(2 * log_p[i, y]) for i, y in enumerate(labels)) / rows
    values = np.zeros(rows)
    for i, y in enumerate(labels):
        own = log_p[i] if ranks == "log" else np.exp(log_p[i])
        w = np.exp(log_w[i])
        order = w / (1 - w[y] + 1e-6) + own / (1 - own[y] + 1e-6)
        others = [k for k in range(classes) if k != y]
        zipf = np.array([1 / (1 + sum(order[j] > order[k] for j in range(classes))) for k in others])
        log_q = log_softmax(student[i, others])
        target = np.exp(2 * log_p[i, y]) + 1 - mean_square
        smoothed = -sum((0.9 * (k == y) + 0.1 / classes) * log_w[i, k] for k in range(classes))
        values[i] = -alpha * target * log_p[i, y] - beta * np.sum(zipf / zipf.sum() * log_q) + mu * smoothed
    return values


def ttm(student: Array, teacher: Array, *, temperature: float = 4.0) -> Array:
    """KL(p_t^(1/T) / sum p_t^(1/T) || p_s): only the teacher is tempered, and no T^2 (Zheng, Yang, 2024; zkxufo/TTM).

    The papers tune 1 / T for each pair; 4 is no default of theirs.
    """
    values = np.zeros(len(student))
    for i in range(len(student)):
        power = np.exp(log_softmax(teacher[i])) ** (1 / temperature)
        values[i] = kl(np.log(power / power.sum()), log_softmax(student[i]))
    return values


def wttm(student: Array, teacher: Array, *, temperature: float = 4.0) -> Array:
    """`ttm` of each row times sum_k p_t^(1/T), which is largest for an even teacher (Zheng, Yang, 2024; zkxufo/TTM)."""
    sums = [np.sum(np.exp(log_softmax(z)) ** (1 / temperature)) for z in teacher]
    return np.array(sums) * ttm(student, teacher, temperature=temperature)


def spherical_kd(student: Array, teacher: Array, *, temperature: float = 4.0, scale: str = "row") -> Array:
    """T^2 KL(softmax(z_t / T) || softmax(r z_s / T)): the student's logits at the teacher's length (Guo et al., 2020).

    Ambiguous. `row`: r = std(z_t) / std(z_s) of the row, unbiased, the teacher as it is; what the release trains with
    (forjiuzhou/Spherical-Knowledge-Distillation). `batch`: both sides z / ||z|| times the mean ||z_t|| of the batch, no
    mean taken off, as the method is usually summarised. The release's README has a third, z standardised on both sides
    times a constant of 2 to 3. The student's std and length get a gradient; the teacher's do not. The paper also takes
    the cross-entropy of the rescaled logits. A constant student stays as it is, equal logits.
    """
    values = np.zeros(len(student))
    length = sum(np.sqrt(np.sum(z**2)) for z in teacher) / len(teacher)
    for i in range(len(student)):
        z_s, z_t = student[i], teacher[i]
        if scale == "row":
            own = std(z_s, unbiased=True)
            z_s = z_s * (std(z_t, unbiased=True) / own if own > 0 else 1.0)
        else:
            z_s, z_t = (z * (length / np.sqrt(np.sum(z**2)) if np.any(z) else 1.0) for z in (z_s, z_t))
        values[i] = temperature**2 * kl(log_softmax(z_t / temperature), log_softmax(z_s / temperature))
    return values


def abkd(student: Array, teacher: Array, *, alpha: float = 0.5, beta: float = 0.5, temperature: float = 1.0) -> Array:
    """-1 / (a b) sum_k (p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b)), p of the teacher, q of the student.

    Both at temperature T, no T^2 (Wang et al., 2025; ghwang-s/abkd). (1, 0) is KL(p || q), (0, 1) is KL(q || p). Where
    a, b or a + b is 0, the value is the limit of the formula (Cichocki et al., 2011): for b = 0 and for a + b = 0 over
    a^2, for a = 0 over b^2. The release divides by a or b there, once, and agrees only at 1.
    """
    values = np.zeros(len(student))
    for i in range(len(student)):
        log_p, log_q = log_softmax(teacher[i] / temperature), log_softmax(student[i] / temperature)
        values[i] = sum(_alpha_beta(log_p[k], log_q[k], alpha, beta) for k in range(len(log_p)))
    return values


def _alpha_beta(log_p: float, log_q: float, alpha: float, beta: float) -> float:
    """One class's share of the divergence."""
    both = alpha + beta
    if alpha == 0 and beta == 0:
        return 0.5 * (log_p - log_q) ** 2
    if alpha == 0:
        return (np.exp(beta * log_q) * beta * (log_q - log_p) + np.exp(beta * log_p) - np.exp(beta * log_q)) / beta**2
    if beta == 0:
        return _alpha_beta(log_q, log_p, 0, alpha)
    if both == 0:
        return (alpha * (log_q - log_p) + np.exp(alpha * (log_p - log_q)) - 1) / alpha**2
    own = alpha / both * np.exp(both * log_p) + beta / both * np.exp(both * log_q)
    return (own - np.exp(alpha * log_p + beta * log_q)) / (alpha * beta)


def ikl(
    student: Array,
    teacher: Array,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    weight_temperature: float = 100.0,
    weights: Array | None = None,
) -> Array:
    """beta / 4 sum_jk w_j w_k ((t_j - t_k) - (s_j - s_k))^2 - alpha sum_k p_t log p_s (Cui et al., 2024).

    p is at temperature T, without T^2; the differences are of plain logits. w is softmax(t / `weight_temperature`), or
    `weights` ``(n, c)``, the mean teacher distribution of the row's class, where the paper's global information is on.
    Defaults are those of CIFAR-100 in the release (jiequancui/DKL, first version); the second version raises w to a
    power and divides by its sum. The student gets the gradient of both terms: DKL, which equals KL, has none in the
    first.
    """
    rows, classes = student.shape
    values = np.zeros(rows)
    for i in range(rows):
        w = np.exp(log_softmax(teacher[i] / weight_temperature)) if weights is None else weights[i]
        for j in range(classes):
            for k in range(classes):
                difference = (teacher[i, j] - teacher[i, k]) - (student[i, j] - student[i, k])
                values[i] += beta / 4 * w[j] * w[k] * difference**2
        p_t, log_p_s = np.exp(log_softmax(teacher[i] / temperature)), log_softmax(student[i] / temperature)
        values[i] -= alpha * sum(p_t[k] * log_p_s[k] for k in range(classes))
    return values


def ntce(
    student: Array,
    teacher: Array,
    labels: Ints,
    *,
    temperature: float = 4.0,
    factors: Sequence[float] = (2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0),
) -> Array:
    """Mean over f of T^2 KL at T after f m is taken off the target's logit on both sides (Li et al., 2024, MKL).

    m is the teacher's largest logit less its second, a constant. At the teacher it comes off its *largest* logit, at
    the student off the *label's*: the same class only where the teacher is right (lan-long/NTCE-KD). Ties go to the
    lowest class. The augmentation of NTCE-KD and its weight of 8 (2 on ImageNet) are the caller's.
    """
    values = np.zeros(len(student))
    for i, y in enumerate(labels):
        second, first = np.sort(teacher[i])[-2:]
        for factor in factors:
            z_s, z_t = student[i].copy(), teacher[i].copy()
            z_t[np.argmax(teacher[i])] -= factor * (first - second)
            z_s[y] -= factor * (first - second)
            divergence = kl(log_softmax(z_t / temperature), log_softmax(z_s / temperature))
            values[i] += temperature**2 * divergence / len(factors)
    return values


def sdd(
    student: Array,
    teacher: Array,
    labels: Ints,
    *,
    temperature: float = 4.0,
    complementary: float = 2.0,
    agree: str = "right",
) -> Array:
    """Mean over an item's m cells of w T^2 KL (Wei et al., 2024), of logits of cells ``(n, m, c)``; ``(n,)``.

    Cell 0 is the whole item (the head on the mean of all positions), of w = 1; others have w = `complementary` where
    they disagree with cell 0 by the teacher, else 1. Ambiguous: in the release (shicaiwei123/SDD-CVPR2024) cells
    disagree when one is `right` about the label and the other is wrong, so two different mistakes agree; `agree` =
    `class` compares the best classes. Which scales give the cells ([1, 2, 4] there) is the caller's; so is a base loss
    other than KD.
    """
    items, cells, _ = student.shape
    values = np.zeros(items)
    for i in range(items):
        best = [int(np.argmax(teacher[i, m])) for m in range(cells)]
        verdict = [b == labels[i] for b in best] if agree == "right" else best
        for m in range(cells):
            weight = 1.0 if verdict[m] == verdict[0] else complementary
            divergence = kl(log_softmax(teacher[i, m] / temperature), log_softmax(student[i, m] / temperature))
            values[i] += weight * temperature**2 * divergence / cells
    return values


def distillm2(
    student: Array,
    teacher: Array,
    own_student: Array,
    own_teacher: Array,
    *,
    alpha: float = 0.1,
    own_alpha: float = 0.1,
    beta: float = 1.0,
    held: Array | None = None,
) -> float:
    """(2 - beta) mean KL(p || a p + (1 - a) q) + beta mean KL(q || (1 - a) p + a q) (Ko et al., 2025): one scalar.

    For one prompt with its two answers: p is the teacher's distribution of a token, q the student's. The first mean is
    over the tokens ``(n, c)`` of the teacher's answer, the second over those ``(m, c)`` of the student's own. The
    release (jongwooko/distillm-2) holds q in the second mixture constant, unlike the skewed reverse KL of DistiLLM:
    `held` are the logits of the student that stand there, its own by default. Its alphas stay 0.1; the paper's, which
    follow each pair's log-probabilities, and the growth of beta to 1.5 are not in here, and no factor 1/2 is.
    """
    held = own_student if held is None else held
    forward = skew_kl(student, teacher, alpha=alpha).mean()
    backward = 0.0
    for q, p, constant in zip(own_student, own_teacher, held, strict=True):
        mixture = np.log((1 - own_alpha) * np.exp(log_softmax(p)) + own_alpha * np.exp(log_softmax(constant)))
        backward += kl(log_softmax(q), mixture) / len(own_student)
    return float((2 - beta) * forward + beta * backward)
