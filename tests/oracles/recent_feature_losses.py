"""Feature losses of 2021 to 2024, from their papers' formulas, in loops.

Unlike their neighbours these oracles are of the same hand as the losses, written before them and in another form; what
another hand says of the same rows are the releases' values in `tests/losses/test_released_catalogue.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .layers import Params, conv, linear, norm_of, relu, under
from .logit_losses import kd
from .maths import Array, Ints, log_softmax, unit
from .recent_logit_losses import uskd as uskd_of_logits


def srd(student: Array, teacher: Array, *, state: Params, eps: float = 1e-4) -> float:
    """log(sum over rows and channels of (BN(P s) - BN(t))^4 + 1e-5) (Miles, Mikolajczyk, 2024), BN without affine."""
    s = linear(student, under(state, "projector"))
    total = 1e-5
    for c in range(teacher.shape[1]):
        a, b = ((f[:, c] - f[:, c].mean()) / math.sqrt(f[:, c].var() + eps) for f in (s, teacher))
        total += sum((x - y) ** 4 for x, y in zip(a, b, strict=True))
    return math.log(total)


def vkd(student: Array, teacher: Array, *, state: Params, normalise: str = "layer", eps: float = 1e-5) -> Array:
    """Mean over channels of smooth L1 of (s Q, t'), Q orthonormal (Miles et al., 2024).

    Q comes from the raw matrix by Gram and Schmidt, along its shorter side. t' is each row over its channels with mean
    0 and variance 1 (`layer`), or all rows centred and multiplied by (cov + eps)^(-1/2) (`whiten`), both biased.
    """
    raw = state["raw"]
    tall = raw if raw.shape[0] >= raw.shape[1] else raw.T
    basis: list[Array] = []
    for column in tall.T:
        rest = column - sum((float(column @ q) * q for q in basis), np.zeros(len(column)))
        basis.append(unit(rest))
    q = np.stack(basis, axis=1)
    q = q if raw.shape[0] >= raw.shape[1] else q.T
    made = student @ q.T
    if normalise == "layer":
        target = np.array([(t - t.mean()) / math.sqrt(t.var() + eps) for t in teacher])
    else:
        centred = teacher - teacher.mean(0)
        covariance = centred.T @ centred / len(centred) + eps * np.eye(teacher.shape[1])
        size, axes = np.linalg.eigh(covariance)
        target = centred @ (axes @ np.diag(size**-0.5) @ axes.T)
    values = np.zeros(len(student))
    for i in range(len(student)):
        for x, t in zip(made[i], target[i], strict=True):
            d = abs(x - t)
            values[i] += (0.5 * d * d if d < 1 else d - 0.5) / teacher.shape[1]
    return values


def cirkd(student: Array, teacher: Array, item: Ints, items: int, *, temperature: float = 0.1) -> float:
    """Mean over pairs (i, j) of items, and rows a of i, of KL(t || s) of softmax over rows b of j of cos(f_a, f_b) / T.

    Items without rows form no pair (Yang et al., 2022, the pixel-to-pixel term within the batch).
    """
    rows = [[k for k in range(len(item)) if item[k] == b] for b in range(items)]
    some = [r for r in rows if r]
    total = 0.0
    for i in some:
        for j in some:
            for a in i:
                log_s, log_t = (
                    log_softmax(np.array([np.sum(unit(f[a]) * unit(f[b])) / temperature for b in j]))
                    for f in (student, teacher)
                )
                total += float(np.sum(np.exp(log_t) * (log_t - log_s))) / len(i)
    return total / max(len(some), 1) ** 2


def fgd(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    regions: Ints,
    *,
    state: Params,
    temperature: float = 0.5,
    foreground: float = 1e-3,
    background: float = 5e-4,
    attention: float = 1e-3,
    relation: float = 5e-6,
) -> Array:
    """a L_fg + b L_bg + g L_att + l L_global of an item (Yang et al., 2022).

    L_fg, L_bg: sum (s - t)^2 S_t C_t w; w = 1 / rows of its object where the region is above 0, else 1 / background
    rows of the item. S = n softmax over the item's rows of mean_c |f| / T; C = c softmax over channels of mean
    over rows of |f| / T. L_att: sum |S_s - S_t| + sum |C_s - C_t|. L_global: sum (r_s - r_t)^2,
    r = f + W_2 relu(LN(W_1 x)), x = sum over rows of softmax(W_k f) f.
    """
    values = np.zeros(items)
    channels = student.shape[1]
    for b in range(items):
        rows = [i for i in range(len(item)) if item[i] == b]
        if not rows:
            continue
        n = len(rows)
        spatial, across, related = {}, {}, {}
        for name, f in (("s", student[rows]), ("t", teacher[rows])):
            spatial[name] = n * np.exp(log_softmax(np.abs(f).mean(1) / temperature))
            across[name] = channels * np.exp(log_softmax(np.abs(f).mean(0) / temperature))
            part = under(state, f"context_{name}")
            mask = np.exp(log_softmax(linear(f, under(part, "mask"))[:, 0]))
            context = np.sum(mask[:, None] * f, axis=0, keepdims=True)
            inner = relu(norm_of(linear(context, under(part, "add.0")), under(part, "add.1"), "layer"))
            related[name] = f + linear(inner, under(part, "add.3"))
        kind = [int(regions[i]) for i in rows]
        for k, i in enumerate(rows):
            number = sum(other == kind[k] if kind[k] > 0 else other <= 0 for other in kind)
            weight = (foreground if kind[k] > 0 else background) / number
            for c in range(channels):
                values[b] += weight * (student[i, c] - teacher[i, c]) ** 2 * spatial["t"][k] * across["t"][c]
        values[b] += attention * np.abs(spatial["s"] - spatial["t"]).sum()
        values[b] += attention * np.abs(across["s"] - across["t"]).sum()
        values[b] += relation * np.sum((related["s"] - related["t"]) ** 2)
    return values


def ikl_classes(
    student: Array,
    teacher: Array,
    labels: Ints,
    *,
    state: Params,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    weight_temperature: float = 100.0,
) -> Array:
    """b/4 sum_jk w_j w_k (d_j - d_k)^2 - a sum_k p_t log p_s, d = t - s (Cui et al., 2024, with global weights).

    w is the mean of softmax(t / weight_temperature) of all rows of the label's class so far, before this batch; even
    for a class of which none was seen.
    """
    classes = student.shape[1]
    values = np.zeros(len(student))
    for i, y in enumerate(labels):
        seen = float(state["count"][y])
        w = state["total"][y] / seen if seen > 0 else np.full(classes, 1 / classes)
        d = teacher[i] - student[i]
        for j in range(classes):
            for k in range(classes):
                values[i] += beta / 4 * w[j] * w[k] * (d[j] - d[k]) ** 2
        p_t = np.exp(log_softmax(teacher[i] / temperature))
        values[i] -= alpha * np.sum(p_t * log_softmax(student[i] / temperature))
    return values


def afd(
    student: list[Array],
    teacher: list[Array],
    item: list[Ints],
    items: int,
    cell: list[Ints],
    grid: list[tuple[int, ...]],
    *,
    state: Params,
    width: int = 128,
    norm: str = "batch",
) -> Array:
    """sum_t sum_s a_ts mean over rows (m_s / |m_s| - m_t / |m_t|)^2, m = mean_c f^2 (Ji et al., 2021).

    a_t = softmax_s((K_ts . q_t + p_t . p_s) / sqrt(d)): q = norm(W mean over rows f_t), k = relu(norm(W mean f_s)), K =
    norm(W k), of which each teacher layer has d columns. m_s is brought to the teacher layer's grid by windows of the
    mean, as torch's adaptive pooling cuts them; a cell without a row is 0.
    """
    alive = [b for b in range(items) if np.any(item[0] == b)]
    depth_s, depth_t = len(student), len(teacher)

    def places(j: int, count: int) -> int:
        return j if len(student) == count else 0

    def pooled(f: Array, at: Ints) -> Array:
        return np.array([f[at == b].mean(0) for b in alive])

    query = [
        norm_of(
            linear(pooled(teacher[t], item[places(t, depth_t)]), under(state, f"query.{t}.linear")),
            under(state, f"query.{t}.norm"),
            norm,
        )
        for t in range(depth_t)
    ]
    keys = [
        relu(
            norm_of(
                linear(pooled(student[s], item[s]), under(state, f"key.{s}.linear")),
                under(state, f"key.{s}.norm"),
                norm,
            )
        )
        for s in range(depth_s)
    ]
    stacked = np.stack(keys, axis=1).reshape(-1, width)
    bilinear = norm_of(linear(stacked, under(state, "bilinear.linear")), under(state, "bilinear.norm"), norm)
    bilinear = bilinear.reshape(len(alive), depth_s, depth_t, width)
    values = np.zeros(items)
    for n, b in enumerate(alive):
        for t in range(depth_t):
            at = places(t, depth_t)
            logit = np.array([
                (bilinear[n, s, t] @ query[t][n] + state["place_t"][t] @ state["place_s"][s]) / math.sqrt(width)
                for s in range(depth_s)
            ])  # fmt: skip
            share = np.exp(log_softmax(logit))
            mine = [i for i in range(len(item[at])) if item[at][i] == b]
            theirs = unit(np.array([np.mean(teacher[t][i] ** 2) for i in mine]))
            for s in range(depth_s):
                energy = np.zeros(math.prod(grid[s]))
                for i in range(len(item[s])):
                    if item[s][i] == b:
                        energy[cell[s][i] % math.prod(grid[s])] = np.mean(student[s][i] ** 2)
                seen = _windows(energy.reshape(grid[s]), grid[at]).ravel()
                own = unit(np.array([seen[cell[at][i] % math.prod(grid[at])] for i in mine]))
                values[b] += share[s] * np.mean((own - theirs) ** 2)
    return values


def _windows(x: Array, sizes: tuple[int, ...]) -> Array:
    """Mean over windows from floor(i n / m) to ceil((i + 1) n / m) of each axis."""
    out = np.zeros(sizes)
    for index in np.ndindex(*sizes):
        cut = tuple(slice(i * n // m, -(-(i + 1) * n // m)) for i, n, m in zip(index, x.shape, sizes, strict=True))
        out[index] = x[cut].mean()
    return out


def vitkd(
    student: list[Array],
    teacher: list[Array],
    item: list[Ints],
    items: int,
    cell: list[Ints],
    grid: list[tuple[int, ...]],
    *,
    state: Params,
    keep: Array,
    mimic: float = 3e-5,
    generate: float = 3e-6,
    hidden: float = 0.5,
    kernel: int = 3,
) -> Array:
    """a sum over all but the last pair of |P_l s_l - t_l|^2 + b / h sum over hidden rows |G(x) - t|^2 (Yang et al.).

    x is P s of the last pair, the mask token where a row is hidden: all but the floor((1 - h) n) rows of an item with
    the least noise (`keep`). G is two convolutions with a ReLU.
    """
    values = np.zeros(items)
    for level in range(len(student) - 1):
        made = linear(student[level], under(state, f"align.{level}"))
        for i in range(len(made)):
            values[item[level][i]] += mimic * np.sum((made[i] - teacher[level][i]) ** 2)
    last = len(student) - 1
    made = linear(student[last], under(state, f"align.{last}"))
    covered = []
    for b in range(items):
        rows = sorted((i for i in range(len(item[last])) if item[last][i] == b), key=lambda i: keep[i])
        covered += rows[int(len(rows) * (1 - hidden)) :]
    for i in covered:
        made[i] = state["token"]
    made = relu(conv(made, under(state, "generator.0"), cell[last], grid[last]))
    made = conv(made, under(state, "generator.1"), cell[last], grid[last])
    for i in covered:
        values[item[last][i]] += generate / hidden * np.sum((made[i] - teacher[last][i]) ** 2)
    return values


def uskd(student: list[Array], item: list[Ints], items: int, labels: Ints, *, state: Params, **params: Any) -> Array:
    """USKD, which another hand has written, with a linear head on the second signal for the weak logits."""
    return uskd_of_logits(student[0], linear(student[1], under(state, "head")), labels, **params)


def seed(
    student: Array,
    teacher: Array,
    *,
    state: Params,
    queue: int = 65536,
    temperature: float = 0.2,
    teacher_temperature: float = 0.01,
) -> float:
    """-mean of sum_k p_t log p_s over the teacher's embedding of the row and `keys` (Fang et al., 2021).

    p = softmax of the products of unit vectors over the temperature; the student's is W_2 relu(W_1 s).
    """
    made = linear(relu(linear(student, under(state, "projector.0"))), under(state, "projector.2"))
    total = 0.0
    for s, t in zip(made, teacher, strict=True):
        others = [unit(t), *state["keys"]]
        log_s = log_softmax(np.array([unit(s) @ k for k in others]) / temperature)
        p_t = np.exp(log_softmax(np.array([unit(t) @ k for k in others]) / teacher_temperature))
        total -= float(np.sum(p_t * log_s)) / len(teacher)
    return total


def phi_s(student: Array, teacher: Array, *, state: Params, rows: int = 100000) -> Array:
    """Mean over channels of (A s - R (t - m))^2, R = H U' / sqrt(trace of the covariance / D) (Ranzinger et al., 2025).

    H is Hadamard's matrix of order D, the least power of 2 that holds the channels, its first ones, over sqrt(D): the
    sign at (i, j) is the parity of the bits that i and j share. U are the eigenvectors of the unbiased covariance of
    this batch, which is the first one, by ascending eigenvalue, their largest entry positive.
    """
    assert float(state["count"]) == 0
    moved = teacher - teacher.mean(0)
    covariance = moved.T @ moved / max(len(moved) - 1, 1)
    size, axes = np.linalg.eigh(covariance)
    order = len(state["turn"])
    turn = np.zeros((order, teacher.shape[1]))
    for j in range(teacher.shape[1]):
        axis = axes[:, j] * (1 if axes[np.argmax(np.abs(axes[:, j])), j] > 0 else -1)
        for i in range(order):
            turn[i] += (-1) ** (i & j).bit_count() * axis / math.sqrt(order)
    variance = max(size.clip(0).sum(), 0.0) / order
    target = moved @ turn.T / math.sqrt(variance)
    return np.mean((linear(student, under(state, "adaptor")) - target) ** 2, axis=1)


def diffkd(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    cell: Ints,
    grid: tuple[int, ...],
    *,
    state: Params,
    keep: Array,
    steps: int = 5,
    latent: int | None = None,
    norm: str = "batch",
    diffusion: float = 1.0,
    reconstruction: float = 1.0,
    kernel: int = 3,
    compare: str = "squares",
    temperature: float = 1.0,
) -> Array:
    """|P d(s') - t|^2 + b |e(t_tau) - noise|^2 + r |D E t - t|^2, means over channels (Huang et al., 2023).

    s' = g W s + (1 - g) noise, g the first entry of softmax(V mean over the item of adapter(W s)). d: from the step's
    time on, x_0 = (x - sqrt(1 - a) e) / sqrt(a), then x = sqrt(a') x_0 + sqrt(1 - a') e, a' of the time `1000 // 2
    steps` before, 1 at the end, from time (steps - 1) times that. a is the running product of 1 - beta. `keep` has both
    noises and a number from 0 to 1 a row; an item's time is that of its first row, times 1000.
    """
    beta = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    left = np.cumprod([1 - b for b in beta])

    def bottleneck(x: Array, part: Params) -> Array:
        y = x
        for i in range(3):
            layer = under(part, f"maps.{i}")
            y = conv(y, layer, cell, grid) if i == 1 else linear(y, layer)
            y = norm_of(y, under(part, f"norms.{i}"), norm)
            y = relu(y) if i < 2 else y
        return x + y

    def noise_in(x: Array, times: Ints) -> Array:
        part = under(state, "denoiser")
        y = x + part["time.weight"][times]
        for i in range(2):
            y = bottleneck(y, under(part, f"blocks.{i}"))
        return norm_of(linear(y, under(part, "out")), under(part, "norm"), norm)

    target, values = teacher, np.zeros(len(student))
    if latent is not None:
        target = norm_of(linear(teacher, under(state, "encoder.0")), under(state, "encoder.1"), norm)
        values += reconstruction * np.mean((linear(target, under(state, "decoder")) - teacher) ** 2, axis=1)
    width = target.shape[1]
    keep = keep.astype(np.float64)
    first, other, uniform = keep[:, :width], keep[:, width : 2 * width], keep[:, -1]
    x = linear(student, under(state, "student"))
    adapted = bottleneck(x, under(state, "adapter"))
    mixed = np.zeros_like(x)
    times = np.zeros(len(x), dtype=np.int64)
    for b in range(items):
        rows = [i for i in range(len(item)) if item[i] == b]
        if rows:
            scores = linear(adapted[rows].mean(0, keepdims=True), under(state, "adapted"))[0]
            g = float(np.exp(log_softmax(scores)[0]))
            mixed[rows] = g * x[rows] + (1 - g) * first[rows]
            times[rows] = int(uniform[rows[0]] * 1000)
    ratio = 1000 // (2 * steps)
    for step in range(steps - 1, -1, -1):
        a, before = left[step * ratio], left[(step - 1) * ratio] if step else 1.0
        e = noise_in(mixed, np.full(len(x), step * ratio))
        mixed = math.sqrt(before) * (mixed - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - before) * e
    refined = linear(mixed, under(state, "projector"))
    squares = np.mean((refined - target) ** 2, axis=1)
    values += kd(refined, target, temperature=temperature) if compare == "kl" else squares
    a = left[times][:, None]
    told = noise_in(np.sqrt(a) * target + np.sqrt(1 - a) * other, times)
    return values + diffusion * np.mean((told - other) ** 2, axis=1)
