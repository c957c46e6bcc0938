"""Losses over the regions of items (voxels, superpoints), and rows brought to the teacher's statistics."""

from __future__ import annotations

import numpy as np

from .layers import Params, linear, relu, under
from .maths import Array, Ints, kl, log_softmax, mean_square, unit


def affinity(student: Array, teacher: Array, item: Ints, items: int, regions: Ints, *, least: int = 2) -> Array:
    """Sum over an item's regions of the mean over all pairs of its rows of (cos s_ij - cos t_ij)^2 (Hou et al., 2022).

    A pair may be a row with itself. Regions of fewer than `least` rows add nothing. PVKD has equally many rows in every
    region, some dropped, some padding; here a mean over what there is. A zero row has cosine 0, to itself too.
    """
    values = np.zeros(items)
    for b, rows in _regions(item, regions):
        if len(rows) < least:
            continue
        for i in rows:
            for j in rows:
                own, other = unit(student[i]) @ unit(student[j]), unit(teacher[i]) @ unit(teacher[j])
                values[b] += (own - other) ** 2 / len(rows) ** 2
    return values


def region_kd(
    student: Array, teacher: Array, item: Ints, items: int, regions: Ints, *, temperature: float = 1.0
) -> Array:
    """Sum over an item's regions of T^2 KL(softmax(z_t / T) || softmax(z_s / T)), z the mean of the region's logits.

    The divergence between voxels of PVKD (Hou et al., 2022), of a network that scores points: a voxel scores as they do
    on average.
    """
    values = np.zeros(items)
    for b, rows in _regions(item, regions):
        z_s, z_t = (sum(z[i] for i in rows) / len(rows) for z in (student, teacher))
        values[b] += temperature**2 * kl(log_softmax(z_t / temperature), log_softmax(z_s / temperature))
    return values


def dn(student: Array, teacher: Array, *, state: Params, momentum: float = 0.1, eps: float = 1e-5) -> Array:
    """Mean over channels of (connector(x' sigma + mu) - f_t)^2, x' = BN(W f_s) without gain or bias (Liu et al., 2021).

    mu and sigma are the teacher's moments over the batches seen so far, this one among them: a plain mean of the first
    1 / momentum batches', a running one after. Variances: the student's biased, the teacher's unbiased.
    """
    n, channels = teacher.shape
    x, y = linear(student, under(state, "map")), np.zeros((n, channels))
    share = max(momentum, 1 / (float(state["seen"]) + 1))
    for c in range(channels):
        mean = sum(teacher[:, c]) / n
        variance = sum((t - mean) ** 2 for t in teacher[:, c]) / (n - 1)
        mu = (1 - share) * state["mean"][c] + share * mean
        sigma = np.sqrt((1 - share) * state["variance"][c] + share * variance + eps)
        middle = sum(x[:, c]) / n
        spread = np.sqrt(sum((v - middle) ** 2 for v in x[:, c]) / n + eps)
        for i in range(n):
            y[i, c] = (x[i, c] - middle) / spread * sigma + mu
    out = linear(relu(linear(y, under(state, "connector.0"))), under(state, "connector.2"))
    return np.array([mean_square(out[i], teacher[i]) for i in range(n)])


def _regions(item: Ints, regions: Ints) -> list[tuple[int, list[int]]]:
    """The rows of every region and the item that it lies in; equal numbers in two items are two regions."""
    found: dict[tuple[int, int], list[int]] = {}
    for i in range(len(item)):
        found.setdefault((int(item[i]), int(regions[i])), []).append(i)
    return [(b, rows) for (b, _), rows in found.items()]
