"""SemCKD, AttnFD, Af-DCD, CRCD and PointDistiller in float64, from the statements alone, not from the code.

By somebody who had read papers and releases, neither the project's losses nor its present oracles; the values are those
of the releases to 1e-15. Maps are ``(b, c, h, w)``, learned weights are given as matrices. A loss is of each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .maths import Array

#: (W1, b1, W2, b2) of two layers with a ReLU between them.
Mlp = tuple[Array, Array, Array, Array]


def unit(v: Array) -> Array:
    return v / math.sqrt(float((v * v).sum()))


def softmax(v: Array) -> Array:
    e = np.exp(v - v.max())
    return np.asarray(e / e.sum())


def sigmoid(v: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-v)))


def mlp(layers: Mlp, v: Array) -> Array:
    first, bias, second, last = layers
    return np.asarray(second @ np.maximum(first @ v + bias, 0) + last)


def convolved(x: Array, kernel: Array) -> Array:
    """One ``(c, h, w)`` map by ``(d, c, k, k)``, zeros around it."""
    side = kernel.shape[2]
    wide = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    out = np.zeros((len(kernel), *x.shape[1:]))
    for i, j in np.ndindex(*x.shape[1:]):
        out[:, i, j] = (kernel * wide[:, i : i + side, j : j + side]).sum(axis=(1, 2, 3))
    return out


def batch_norm(x: Array, gain: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Channels, on axis 1, over all else, with the biased variance."""
    others = tuple(k for k in range(x.ndim) if k != 1)
    mean, var = x.mean(axis=others, keepdims=True), x.var(axis=others, keepdims=True)
    along = [-1 if k == 1 else 1 for k in range(x.ndim)]
    return np.asarray((x - mean) / np.sqrt(var + eps) * gain.reshape(along) + bias.reshape(along))


# ---------------------------------------------------------------- SemCKD


def averaged(x: Array, side: int) -> Array:
    """Adaptive average pooling of one square map: cell i is of floor(i H / h) up to ceil((i + 1) H / h)."""
    _, high, wide = x.shape
    out = np.zeros((len(x), side, side))
    for i, j in np.ndindex(side, side):
        rows = slice(i * high // side, -(-(i + 1) * high // side))
        out[:, i, j] = x[:, rows, j * wide // side : -(-(j + 1) * wide // side)].mean(axis=(1, 2))
    return out


def semckd_shares(
    student: Sequence[Array], teacher: Sequence[Array], query: Sequence[Mlp], key: Sequence[Mlp]
) -> Array:
    """``(b, s, t)`` softmax over teacher layers of q . k (Chen et al., 2021, eq. 5 to 7).

    q and k are directions of what an MLP of each layer makes of a sample's row of products with the batch's maps, as
    they are. Two layers and the norm are the release's.
    """

    def embedded(maps: Array, layers: Mlp) -> list[Array]:
        flat = maps.reshape(len(maps), -1)
        return [unit(mlp(layers, np.array([float(a @ b) for b in flat]))) for a in flat]

    q = [embedded(f, m) for f, m in zip(student, query, strict=True)]
    k = [embedded(f, m) for f, m in zip(teacher, key, strict=True)]
    return np.array([
        [softmax(np.array([own[b] @ other[b] for other in k])) for own in q] for b in range(len(student[0]))
    ])  # fmt: skip


def semckd(
    student: Sequence[Array], teacher: Sequence[Array], shares: Array,
    project: Sequence[Sequence[Callable[[Array], Array]]],
) -> Array:  # fmt: skip
    """sum_st a_st mean (r_st(F_s) - F_t)^2 / layers of the student, larger maps averaged down to the smaller ones.

    The paper's eq. 8 is the sum without the division, which is the release's.
    """
    out = np.zeros(len(shares))
    for s, own in enumerate(student):
        for t, other in enumerate(teacher):
            side = min(own.shape[2], other.shape[2])
            seen, aim = (np.stack([averaged(x, side) for x in maps]) for maps in (own, other))
            out += shares[:, s, t] * ((project[s][t](seen) - aim) ** 2).mean(axis=(1, 2, 3))
    return np.asarray(out / len(student))


# ---------------------------------------------------------------- AttnFD


def weighed_teacher(x: Array) -> Array:
    """CBAM without anything learnt: channels by sigmoid(mean + max), then cells by sigmoid(max + mean)."""
    out = []
    for v in x:
        v = v * sigmoid(v.mean(axis=(1, 2)) + v.max(axis=(1, 2)))[:, None, None]
        out.append(v * sigmoid(v.max(axis=0) + v.mean(axis=0)))
    return np.stack(out)


def weighed_student(x: Array, layers: Mlp, kernel: Array, gain: Array, bias: Array) -> Array:
    """CBAM: an MLP of mean and of max for the channels; a convolution of (max, mean) and a batch norm for the cells."""
    wide = np.stack([
        v * sigmoid(mlp(layers, v.mean(axis=(1, 2))) + mlp(layers, v.max(axis=(1, 2))))[:, None, None] for v in x
    ])  # fmt: skip
    where = np.stack([convolved(np.stack([v.max(axis=0), v.mean(axis=0)]), kernel) for v in wide])
    return np.asarray(wide * sigmoid(batch_norm(where, gain, bias)))


def attnfd(student: Array, teacher: Array, norm: str = "sample") -> Array:
    """|A_s / |A_s| - A_t / |A_t||^2 (Mansourian et al., 2024).

    Norms are a sample's, or, in the release, the whole ``batch``'s, by which a sample's value hangs on the others: the
    mean over samples is then the release's number.
    """
    lengths = [[float((v**2).sum()) ** 0.5 for v in side] for side in (student, teacher)]
    if norm == "batch":
        lengths = [[math.sqrt(sum(v * v for v in side))] * len(side) for side in lengths]
    return np.array([((s / m - t / n) ** 2).sum() for s, t, m, n in zip(student, teacher, *lengths, strict=True)])


# ---------------------------------------------------------------- Af-DCD


def most_of(x: Array, side: int) -> Array:
    channels, high, wide = x.shape
    return np.asarray(x.reshape(channels, high // side, side, wide // side, side).max(axis=(2, 4)))


def af_dcd(made: Array, teacher: Array, groups: int, pool: int, patch: int, tau: float) -> Array:
    """-log softmax at the teacher's own token of -|s - t|_1 / tau (Fan et al., 2023).

    A token is a group of channels at a cell of the pooled map. Rivals are all tokens of the patch that are of other
    groups, those of the same cell among them; tokens of one group at other cells are neither. Summed over groups, a
    mean over cells, as in the release.
    """
    out = []
    for s, t in zip(made, teacher, strict=True):
        own, other = most_of(s, pool), most_of(t, pool)
        channels, high, wide = other.shape
        each, total = channels // groups, 0.0
        for top, left in np.ndindex(high // patch, wide // patch):
            cells = [(top * patch + i, left * patch + j) for i, j in np.ndindex(patch, patch)]
            tokens = [(m, *cell) for cell in cells for m in range(groups)]
            for m, y, x in tokens:
                said = own[m * each : (m + 1) * each, y, x]
                scores = [
                    -float(np.abs(said - other[k * each : (k + 1) * each, i, j]).sum()) / tau
                    for k, i, j in [(m, y, x), *(one for one in tokens if one[0] != m)]
                ]
                total -= math.log(float(softmax(np.array(scores))[0]))
        out.append(total / (high * wide))
    return np.array(out)


# ---------------------------------------------------------------- CRCD


def crcd_scores(
    f: Array, bank: Array, own: Sequence[int], negatives: Sequence[int], pair: tuple[int, int], tau: float, eps: float
) -> Array:  # fmt: skip
    """exp(cos / tau) ``(1 + n,)`` of sample i's relation to anchor a with those of the positive and of negatives.

    The relation of i is f_i - m_a, m the other network's bank, with which the anchor is taken, too; those it is told
    from are m_i - m_a and m_k - m_a (Zhu et al., 2021; its release, by which eps is added to the differences).
    """
    i, a = pair
    anchor = bank[own[a]]
    mine = unit(f[i] - anchor + eps)
    return np.array([math.exp(float(mine @ unit(bank[j] - anchor + eps)) / tau) for j in (own[i], *negatives)])


def crcd_row(scores: Array, z: float, samples: int, eps: float) -> float:
    """Noise contrast of one relation: -[log p / (p + n/N) + sum_k log (n/N) / (q_k + n/N)]; eps in the denominators."""
    p, share = scores / z, (len(scores) - 1) / samples
    told = math.log(p[0] / (p[0] + share + eps))
    return -(told + sum(math.log(share / (q + share + eps)) for q in p[1:]))


def remembered(bank: Array, f: Array, own: Sequence[int], momentum: float) -> Array:
    out = bank.copy()
    for row, i in zip(f, own, strict=True):
        out[i] = unit(momentum * bank[i] + (1 - momentum) * row)
    return out


# ---------------------------------------------------------------- PointDistiller


class Graphs(NamedTuple):
    values: Array
    centres: list[int]
    neighbours: list[list[int]]


def edges(rows: Array, graphs: Graphs, weight: Array, difference: bool) -> Array:
    """ReLU(BN(W [f_j; f_i])) of each edge ``(q, k, c)``, or of [f_i - f_j; f_i]; the statistics are over all edges."""
    out = np.stack([
        [weight @ np.concatenate([rows[i] - rows[j] if difference else rows[j], rows[i]]) for j in near]
        for i, near in zip(graphs.centres, graphs.neighbours, strict=True)
    ])  # fmt: skip
    flat = out.reshape(-1, out.shape[-1])
    normal = (out - flat.mean(axis=0)) / np.sqrt(flat.var(axis=0) + 1e-5)
    return np.maximum(normal, 0)


def pointdistiller(
    student: Array, teacher: Array, counts: Sequence[int], maps: tuple[Array, Array], queries: int, neighbours: int,
    temperature: float | None, difference: bool = False,
) -> Graphs:  # fmt: skip
    """w_i mean_jc (g_t - g_s)^2 of the rows i that hold the most points (Zhang et al., 2023, eq. 2), of one scene.

    Neighbours are nearest in the teacher's features, itself among them, w is a softmax of counts / temperature times
    the number of rows. The release has twice that, and one set of all scenes of a batch.
    """
    centres = sorted(range(len(counts)), key=lambda j: (-counts[j], j))[:queries]
    apart = [[float(((teacher[i] - other) ** 2).sum()) for other in teacher] for i in centres]
    near = [sorted(range(len(row)), key=lambda j, row=row: (row[j], j))[:neighbours] for row in apart]  # type: ignore[misc]
    graphs = Graphs(np.zeros(0), centres, near)
    own, other = (edges(rows, graphs, w, difference) for rows, w in zip((student, teacher), maps, strict=True))
    weights = np.ones(len(centres))
    if temperature is not None:
        weights = len(centres) * softmax(np.array([counts[i] for i in centres]) / temperature)
    return graphs._replace(values=weights * ((other - own) ** 2).mean(axis=(1, 2)))
