"""What is distilled from CTC models, by summing over every path: for a few frames and symbols, in float64.

`student` and `teacher` are log-probabilities ``(T, V)``, one distribution a frame; a target is a list of labels without
the blank. Each function is of one utterance, and sums over its frames unless it says otherwise: who averages, divides.
Nothing here tells what is constant: `gradient` differentiates the argument that it is given, and the teacher's side is
held by closing over it. A temperature T tempers log-probabilities, which is what it does to logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from . import ctc
from .maths import Array, kl, log_softmax

Target = Sequence[int]


def gradient(function: Callable[[Array], float], point: Array, step: float = 1e-5) -> Array:
    """d function / d point by central differences, of the shape of `point`; wrong by about step^2."""
    slopes = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        ahead, behind = point.copy(), point.copy()
        ahead[index] += step
        behind[index] -= step
        slopes[index] = (function(ahead) - function(behind)) / (2 * step)
    return slopes


def log_softmax_rows(logits: Array) -> Array:
    return np.stack([log_softmax(row) for row in logits])


# ---------------------------------------------------------------- sequences


def ctc_loss(log_probs: Array, target: Target, blank: int = 0) -> float:
    """-log P(target | x), the sum over all paths that spell it (Graves et al., 2006); infinity when none does.

    Not divided by the number of labels.
    """
    return ctc.nll(log_probs, tuple(target), blank)


def full_score(log_probs: Array, target: Target, blank: int = 0) -> float:
    """log P(target | x): what a beam's own score is a lower bound of."""
    return -ctc_loss(log_probs, target, blank)


def n_best(log_probs: Array, n: int, blank: int = 0) -> list[tuple[list[int], float]]:
    """The n most probable label sequences with their full scores, best first; ties by the labels' order."""
    ranked = sorted(ctc.sequences(log_probs, blank).items(), key=lambda entry: (-entry[1], entry[0]))
    return [(list(labels), float(score)) for labels, score in ranked[:n]]


def sequence_weights(teacher: Array, targets: Sequence[Target], temperature: float = 1.0, blank: int = 0) -> Array:
    """q_n proportional to P_t(y_n | x)^(1/T), over the sequences of the list alone ``(n,)``."""
    return np.exp(log_softmax(np.array([full_score(teacher, y, blank) for y in targets]) / temperature))


def sequence_kd(
    student: Array, teacher: Array, targets: Sequence[Target], temperature: float = 1.0, blank: int = 0
) -> float:
    """sum_n q_n CTC(student, y_n) (Takashima et al., 2018, 2019): the cross-entropy between sequences.

    Neither T^2 nor the loss on the reference is in it. Both papers are known here from abstracts only: N, T and the
    weight of the CTC loss are the caller's.
    """
    weights = sequence_weights(teacher, targets, temperature, blank)
    return sum(q * ctc_loss(student, y, blank) for q, y in zip(weights, targets, strict=True))


# ---------------------------------------------------------------- occupancies


def occupancy(log_probs: Array, target: Target, blank: int = 0) -> Array:
    """gamma(t, k) = P(path is at k in frame t | path spells the target) ``(T, V)``."""
    return ctc.occupancy(log_probs, tuple(target), blank)


def lattice_occupancy(log_probs: Array, targets: Sequence[Target], temperature: float = 1.0, blank: int = 0) -> Array:
    """sum_n q_n gamma_n: at T = 1, P(path is at k in frame t | path spells one of the targets) ``(T, V)``."""
    weights = sequence_weights(log_probs, targets, temperature, blank)
    return np.sum([q * occupancy(log_probs, y, blank) for q, y in zip(weights, targets, strict=True)], axis=0)


def occupancy_to_softmax(student: Array, gamma: Array) -> float:
    """-sum_t sum_k gamma(t, k) log y_s(t, k): the teacher's occupancy against the student's own softmax.

    The target of Huang et al., 2018, in its simple form; at the student's logits the gradient is y_s - gamma. KL, which
    takes the entropy of gamma off, has the same gradient.
    """
    frames, symbols = student.shape
    return -sum(gamma[t, k] * student[t, k] for t in range(frames) for k in range(symbols) if gamma[t, k] > 0)


def occupancy_kl(student: Array, teacher: Array, target: Target, blank: int = 0) -> float:
    """sum_t KL(gamma_t(t, .) || gamma_s(t, .)), between the occupancies of the same target, frame by frame.

    Its gradient is *not* gamma_s - gamma_t, since an occupancy depends on every frame: that belongs to `path_kl`.
    """
    gamma_t, gamma_s = occupancy(teacher, target, blank), occupancy(student, target, blank)
    reached = gamma_t > 0
    return float(np.sum(gamma_t[reached] * (np.log(gamma_t[reached]) - np.log(gamma_s[reached]))))


def path_kl(student: Array, teacher: Array, target: Target, blank: int = 0) -> float:
    """KL(P_t(path | target, x) || P_s(path | target, x)), over the paths that spell the target.

    At the student's log-probabilities and logits the gradient is gamma_s - gamma_t.
    """
    total = 0.0
    nll_t, nll_s = ctc_loss(teacher, target, blank), ctc_loss(student, target, blank)
    for path, score_t in ctc.paths(teacher):
        if ctc.collapse(path, blank) == tuple(target):
            score_s = sum(student[t, k] for t, k in enumerate(path))
            total += math.exp(score_t + nll_t) * (score_t + nll_t - score_s - nll_s)
    return total


# ---------------------------------------------------------------- spikes, two views, layers


def spikes(teacher: Array, blank: int = 0) -> list[tuple[int, int]]:
    """(frame, symbol) of every frame whose best symbol is not the blank; ties go to the lowest symbol."""
    best = [min(range(len(row)), key=lambda k: (-row[k], k)) for row in teacher]
    return [(t, k) for t, k in enumerate(best) if k != blank]


def guided_ctc(student: Array, teacher: Array, blank: int = 0) -> float:
    """-sum of y_s(t, k) over the teacher's spikes: probabilities, no log (Kurata, Audhkhasi, 2019).

    It is added to the CTC loss with a weight that the statement at hand leaves open.
    """
    return -sum(math.exp(student[t, k]) for t, k in spikes(teacher, blank))


def consistency(view_a: Array, view_b: Array, held_a: Array | None = None, held_b: Array | None = None) -> float:
    """1/2 sum_t (KL(sg(b_t) || a_t) + KL(sg(a_t) || b_t)) (Yao et al., 2024, CR-CTC), summed over frames and symbols.

    `held_a` and `held_b` are what stands behind the stop-gradient sg, the views themselves by default: hand them over
    to differentiate at a view.
    """
    held_a, held_b = view_a if held_a is None else held_a, view_b if held_b is None else held_b
    return 0.5 * sum(kl(held_b[t], view_a[t]) + kl(held_a[t], view_b[t]) for t in range(len(view_a)))


def cr_ctc(view_a: Array, view_b: Array, target: Target, weight: float = 0.2, blank: int = 0) -> float:
    """1/2 (CTC(a) + CTC(b)) + weight * `consistency` (Yao et al., 2024): of an utterance, over no number of frames."""
    both = ctc_loss(view_a, target, blank) + ctc_loss(view_b, target, blank)
    return 0.5 * both + weight * consistency(view_a, view_b)


def inter_ctc(last: Array, between: Sequence[Array], target: Target, weight: float = 0.3, blank: int = 0) -> float:
    """(1 - w) CTC(last) + w mean_k CTC(between_k) (Lee, Watanabe, 2021); w = 0.3 is from memory of the paper."""
    mean = sum(ctc_loss(layer, target, blank) for layer in between) / len(between)
    return (1 - weight) * ctc_loss(last, target, blank) + weight * mean


# ---------------------------------------------------------------- frames by the rule of the blank


def frames_kept(
    teacher: Array,
    rule: str,
    *,
    left: int = 1,
    right: int = 1,
    threshold: float = 0.1,
    blank: int = 0,
) -> list[bool]:
    """Which frames are distilled (Hilmes et al., 2025), by the teacher's own spikes.

    `all`; `eliminate`: spikes; `neighbours`: those at most `left` frames before or `right` frames after a spike, not
    round the utterance's ends; `trim`: from the first to the last spike; `threshold`: spikes, and frames whose other
    symbols than the blank have `threshold` or more of the probability. Without a spike, all rules but the first and the
    last keep nothing. The defaults of `left`, `right` and `threshold` are this file's, not the paper's.
    """
    frames = range(len(teacher))
    at = [t for t, _ in spikes(teacher, blank)]
    if rule == "all":
        return [True for _ in frames]
    if rule == "eliminate":
        return [t in at for t in frames]
    if rule == "neighbours":
        return [any(s - left <= t <= s + right for s in at) for t in frames]
    if rule == "trim":
        return [bool(at) and at[0] <= t <= at[-1] for t in frames]
    if rule == "threshold":
        others = [sum(math.exp(p) for k, p in enumerate(row) if k != blank) for row in teacher]
        return [t in at or others[t] >= threshold for t in frames]
    raise ValueError(f"no rule of the blank is called {rule}")


def frame_kd(student: Array, teacher: Array, kept: Sequence[bool], temperature: float = 1.0) -> Array:
    """T^2 KL(softmax(log y_t / T) || softmax(log y_s / T)) of each kept frame and 0 of others ``(T,)``."""
    values = np.zeros(len(student))
    for t in range(len(student)):
        if kept[t]:
            log_p, log_q = (log_softmax(row[t] / temperature) for row in (teacher, student))
            values[t] = temperature**2 * kl(log_p, log_q)
    return values


def delayed_kd(student: Array, teacher: Array, delay: int, over: str = "least", temperature: float = 1.0) -> float:
    """Least, or mean, over d = 0 .. delay of the mean over t of T^2 KL(teacher at t || student at t + d) ``(T, K)``.

    Of the same hand as the loss, from its docstring, in loops.
    """
    found = []
    for late in range(min(delay, len(teacher) - 1) + 1):
        values = []
        for t in range(len(teacher) - late):
            log_p, log_q = log_softmax(teacher[t] / temperature), log_softmax(student[t + late] / temperature)
            values.append(temperature**2 * kl(log_p, log_q))
        found.append(float(np.mean(values)))
    return min(found) if over == "least" else float(np.mean(found))
