"""Contrast: a pair against others, from memory banks or within the batch."""

from __future__ import annotations

import math

import numpy as np

from .layers import Params, linear, under
from .maths import Array, Ints, log_softmax, unit


def crd(
    student: Array,
    teacher: Array,
    item: Ints,
    ids: Ints,
    *,
    state: Params,
    drawn: Ints,
    samples: int = 50000,
    negatives: int = 16384,
    width: int = 128,
    temperature: float = 0.07,
    momentum: float = 0.5,
) -> float:
    """-(sum over rows of log h(pos) + sum over negatives of log(1 - h(neg))) / n, both directions (Tian et al., 2020).

    h = v / (v + N / M), v = exp(g . m / tau) / Z, M = `samples` rows in a bank, N = len(drawn) ids, drawn once for the
    batch; one that is the row's own is left out of the sum. Z is the state's, or, where that is not positive, the mean
    over rows of exp(g . m / tau) of the positive and all that were drawn, times M. `state` is that before the call.
    """
    return _crd(student, teacher, ids[item], state, drawn, samples, temperature, np.full(len(student), -1), None)


def crd_exact(
    student: Array,
    teacher: Array,
    item: Ints,
    ids: Ints,
    labels: Ints,
    *,
    state: Params,
    drawn: Ints,
    samples: int = 50000,
    negatives: int = 16384,
    width: int = 128,
    temperature: float = 0.07,
    momentum: float = 0.5,
) -> float:
    """`crd` that leaves out negatives known to be of the row's class, by `known` with this batch's labels in it."""
    known = state["known"].copy()
    known[ids[item]] = labels
    return _crd(student, teacher, ids[item], state, drawn, samples, temperature, labels, known)


def crd_update(
    student: Array, teacher: Array, item: Ints, ids: Ints, *, state: Params, momentum: float = 0.5
) -> tuple[Array, Array]:
    """The banks after the call: rows of this batch are unit(momentum old + (1 - momentum) embedding)."""
    bank_s, bank_t = state["bank_s"].copy(), state["bank_t"].copy()
    for bank, rows, name in ((bank_s, student, "embed_s"), (bank_t, teacher, "embed_t")):
        for i, row in enumerate(rows):
            at = ids[item[i]]
            bank[at] = unit(momentum * bank[at] + (1 - momentum) * unit(linear(row, under(state, name))))
    return bank_s, bank_t


def _crd(
    student: Array,
    teacher: Array,
    own: Ints,
    state: Params,
    drawn: Ints,
    samples: int,
    temperature: float,
    classes: Ints,
    known: Ints | None,
) -> float:
    total = 0.0
    for rows, embed, bank, constant in (
        (student, "embed_s", state["bank_t"], float(state["z_s"])),
        (teacher, "embed_t", state["bank_s"], float(state["z_t"])),
    ):
        g = [unit(linear(row, under(state, embed))) for row in rows]
        positive = [math.exp(np.sum(g[i] * bank[own[i]]) / temperature) for i in range(len(g))]
        negative = [[math.exp(np.sum(g[i] * bank[j]) / temperature) for j in drawn] for i in range(len(g))]
        everything = sum(positive) + sum(sum(row) for row in negative)
        z = constant if constant > 0 else everything / (len(g) * (1 + len(drawn))) * samples
        noise = len(drawn) / samples
        for i in range(len(g)):
            total -= math.log(positive[i] / z / (positive[i] / z + noise)) / len(g)
            for j, e in zip(drawn, negative[i], strict=True):
                if j != own[i] and (known is None or known[j] != classes[i]):
                    total -= math.log(noise / (e / z + noise)) / len(g)
    return total


def infonce(student: Array, teacher: Array, *, temperature: float = 0.07, symmetric: bool = True) -> float:
    """-mean log softmax_j(cos(s_i, t_j) / tau) at j = i; if `symmetric`, its mean with that of the other direction."""
    forward = _infonce(student, teacher, temperature)
    return 0.5 * (forward + _infonce(teacher, student, temperature)) if symmetric else forward


def infonce_regions(
    student: Array,
    teacher: Array,
    item: Ints,
    regions: Ints,
    *,
    temperature: float = 0.07,
    symmetric: bool = True,
) -> float:
    """`infonce` of the means of the rows of each (item, region)."""
    of: dict[tuple[int, int], list[int]] = {}
    for i in range(len(student)):
        of.setdefault((int(item[i]), int(regions[i])), []).append(i)
    means = (np.array([f[rows].mean(0) for rows in of.values()]) for f in (student, teacher))
    return infonce(*means, temperature=temperature, symmetric=symmetric)


def _infonce(anchors: Array, others: Array, temperature: float) -> float:
    total = 0.0
    for i in range(len(anchors)):
        scores = np.array([np.sum(unit(anchors[i]) * unit(other)) / temperature for other in others])
        total -= log_softmax(scores)[i]
    return total / len(anchors)
