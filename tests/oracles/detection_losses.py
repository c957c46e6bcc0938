"""Losses of points' own row by row: Law, Deng (2018), Zhou et al. (2019), Yang et al. (2022), Zhang et al. (2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log

import numpy as np

from .layers import linear, norm_of, relu, under
from .maths import log_softmax

Array = np.ndarray


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def gaussian_focal(
    student: Array, item: Array, items: int, labels: Array, *, alpha: float = 2.0, beta: float = 4.0
) -> tuple[Array, Array]:
    """Of each item the sum of CornerNet's eq. 1 without its 1 / N, and N: the number of labels of 1, at least one."""
    total, number = np.zeros(items), np.zeros(items)
    for row in range(len(student)):
        for k in range(student.shape[1]):
            p, y = sigmoid(student[row, k]), labels[row, k]
            if y == 1:
                total[item[row]] -= (1 - p) ** alpha * log(p)
                number[item[row]] += 1
            else:
                total[item[row]] -= (1 - y) ** beta * p**alpha * log(1 - p)
    return total, np.maximum(number, 1)


def reg_l1(student: Array, labels: Array, *, columns: Sequence[float] = ()) -> Array:
    weights = list(columns) or [1.0] * student.shape[1]
    return np.array(
        [
            sum(w * abs(a - b) for w, a, b in zip(weights, s, y, strict=True))
            for s, y in zip(student, labels, strict=True)
        ]
    )


sparsekd_reg = reg_l1


def sparsekd(
    student: Array, teacher: Array, item: Array, items: int, labels: Array, *, rank: int = 0, foreground: bool = True
) -> tuple[Array, Array]:
    """Squared difference of the two heats, summed over classes, in the mean that the mask weighs: its two sums.

    The mask of a position is the teacher's largest class probability, times the largest target of the position, and 0
    where none of the position's probabilities is among the item's `rank` largest.
    """
    above, below = np.zeros(items), np.zeros(items)
    for i in range(items):
        rows = [row for row in range(len(item)) if item[row] == i]
        ranked = sorted(
            ((sigmoid(teacher[row, k]), row) for row in rows for k in range(teacher.shape[1])), reverse=True
        )
        pivotal = {row for _, row in (ranked[:rank] if rank else ranked)}
        for row in rows:
            mask = max(sigmoid(x) for x in teacher[row]) * float(row in pivotal)
            mask *= max(labels[row]) if foreground else 1.0
            apart = sum((sigmoid(s) - sigmoid(t)) ** 2 for s, t in zip(student[row], teacher[row], strict=True))
            above[i] += mask * apart
            below[i] += mask
    return above, below


def pointdistiller(
    student: Array, teacher: Array, item: Array, items: int, regions: Array, *, state: Mapping[str, Array],
    queries: int = 6000, neighbours: int = 128, width: int = 32, temperature: float | None = 1e-2,
    most: int | None = 32, importance: str = "count", difference: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """Of each item ``sum_i w_i mean over its graph's nodes and channels of (g_t - g_s)^2``, and its number of graphs.

    Zhang et al. (2023), 3.2 and eq. 2: the N most important rows, each with the rows nearest to it in the teacher's
    features, itself first; g = relu(BN(W [f_j; f_i])), BN over all nodes of all graphs; w = N softmax(importance / T).
    Of the same hand as the loss: what another hand says are the release's values in `test_local_losses.py`.
    """
    graphs: list[tuple[int, int, list[int]]] = []
    counts = [min(int(n), int(n) if most is None else most) for n in regions]
    score = counts if importance == "count" else [max(t) for t in teacher]
    for b in range(items):
        rows = [i for i in range(len(item)) if item[i] == b]
        for i in sorted(rows, key=lambda i: -score[i])[:queries]:
            others = sorted((float(np.sum((teacher[i] - teacher[j]) ** 2)), j) for j in rows if j != i)
            graphs.append((b, i, [i, *(j for _, j in others[: neighbours - 1])]))
    nodes = [(i, j) for _, i, members in graphs for j in members]
    counted = np.array([sum(b == own for own, _, _ in graphs) for b in range(items)])
    if len(nodes) < 2:
        return np.zeros(items), 0 * counted
    made = {}
    for name, f in (("student", student), ("teacher", teacher)):
        own = under(state, name)
        other = np.array([f[i] - f[j] if difference else f[j] for i, j in nodes])
        x = linear(other, under(own, "other")) + linear(np.array([f[i] for i, _ in nodes]), under(own, "own"))
        made[name] = relu(norm_of(x, under(own, "norm"), "batch"))
    values, at = np.zeros(items), 0
    apart, weigh = [], []
    for _, i, members in graphs:
        part = slice(at, at := at + len(members))
        apart.append(float(np.mean((made["teacher"][part] - made["student"][part]) ** 2)))
        weigh.append(score[i] if importance == "count" else float(made["teacher"][part].max()))
    for b in range(items):
        mine = [k for k, (own_item, _, _) in enumerate(graphs) if own_item == b]
        logits = np.array([weigh[k] / temperature if temperature is not None else 0.0 for k in mine])
        for k, share in zip(mine, np.exp(log_softmax(logits)) if mine else [], strict=True):
            values[b] += len(mine) * share * apart[k]
    return values, counted


def masked_square(student: Array, teacher: Array, mask: Array) -> float:
    """``sum_i m_i |s_i - t_i|^2``: what LabelDistill divides by the sum of its mask (Kim et al., 2024)."""
    return sum(
        float(m) * sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
        for s, t, m in zip(student, teacher, mask, strict=True)
    )


def msfskd(
    student: Sequence[Array], teacher: Sequence[Array], labels: Array, *, state: Mapping[str, Array], hidden: int = 64,
    inner: int = 128, fusion: float = 1.0, cross: float = 0.05,
) -> Array:  # fmt: skip
    """2DPASS (Yan et al., 2022) row by row: cross-entropies of each scale's two heads and of all scales', and KL.

    `hidden` and `inner` are in the shapes of `state`. Of the same hand as the loss; `test_fusion_loss.py` has what the
    release says.
    """
    classes, scales = student[0].shape[1], len(student) - 1
    values = np.zeros(len(labels))

    def head(x: Array, name: str) -> Array:
        own = under(state, name)
        return log_softmax(linear(relu(linear(x, under(own, "0"))), under(own, "2")))

    for i, y in enumerate(labels):
        fused = []
        for k in range(scales):
            own = under(state, f"scales.{k}")
            scan, picture = student[1 + k][i], teacher[1 + k][i]
            learned = relu(linear(scan, under(own, "learner")))
            z = linear(np.concatenate([picture, learned]), under(own, "join"))
            gate = 1 / (1 + np.exp(-linear(z, under(own, "gate"))))
            fused.append(relu(z * gate))
            p, q = head(scan, f"scales.{k}.alone"), head(fused[-1], f"scales.{k}.both")
            values[i] -= p[y] + fusion / scales * q[y]
            values[i] += cross / scales / classes * sum(exp(b) * (b - a) for a, b in zip(p, q, strict=True))
        values[i] -= head(np.concatenate(fused), "together")[y]
    return values
