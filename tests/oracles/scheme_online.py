"""Networks that teach each other or themselves, in float64 loops: a value a row, so that any mean can be taken.

What the formula stops the gradient of is an argument of its own (`targets`): difference quotients of a value in its
other arguments, with these held, are the gradients that a method must have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .logit_losses import ce
from .maths import Array, Ints, kl, log_softmax


def tempered_kl(target: Array, student: Array, temperature: float = 1.0) -> Array:
    """T^2 KL(softmax(target / T) || softmax(student / T)) of each row."""
    pairs = zip(target, student, strict=True)
    t = temperature
    return np.array([t * t * kl(log_softmax(of / t), log_softmax(by / t)) for of, by in pairs])


def dml(
    logits: Sequence[Array], labels: Ints, *, targets: Sequence[Array] | None = None, temperature: float = 1.0
) -> Array:
    """(peers, rows): CE_i + 1 / (m - 1) sum over j != i of KL(sg(p_j) || p_i) (Zhang et al., 2018).

    `targets` are the logits of the peers as they teach: where they take turns, those of a peer after its own step.
    """
    targets = logits if targets is None else targets
    peers, rows = len(logits), len(labels)
    values = np.zeros((peers, rows))
    for i in range(peers):
        values[i] = ce(logits[i], labels)
        for j in range(peers):
            if j != i:
                values[i] += tempered_kl(targets[j], logits[i], temperature) / (peers - 1)
    return values


class One(NamedTuple):
    ensemble: Array
    """(rows, K): z_e = sum_i g_i z_i, logits."""
    branches: Array
    """(branches, rows): CE(z_i)."""
    gate: Array
    """(rows,): CE(z_e)."""
    taught: Array
    """(branches, rows): T^2 KL(z_e || z_i)."""


def one(
    logits: Sequence[Array],
    scores: Array,
    labels: Ints,
    *,
    target: Array | None = None,
    temperature: float = 3.0,
) -> One:
    """Branches taught by their gated sum; `scores` (rows, branches) are W f of the gate (Lan et al., 2018).

    The loss of a row is branches.sum(0) + gate + ramp * taught.sum(0).
    """
    rows = len(labels)
    ensemble = np.zeros_like(logits[0])
    for n in range(rows):
        gates = np.exp(log_softmax(scores[n]))
        for i, z in enumerate(logits):
            ensemble[n] += gates[i] * z[n]
    target = ensemble if target is None else target
    return One(
        ensemble,
        np.stack([ce(z, labels) for z in logits]),
        ce(ensemble, labels),
        np.stack([tempered_kl(target, z, temperature) for z in logits]),
    )


def ramp(epoch: float, epochs: float = 80.0) -> float:
    """exp(-5 (1 - min(epoch, epochs) / epochs)^2): e^-5 at the start, 1 from `epochs` on."""
    return float(np.exp(-5.0 * (1.0 - min(epoch, epochs) / epochs) ** 2))


def okddip_targets(logits: Sequence[Array], features: Sequence[Array], query: Array, key: Array) -> tuple[Array, Array]:
    """Attention alpha (rows, peers, peers) of a to b, a itself among them, and targets t_a (peers, rows, K).

    alpha_ab = softmax over b of (W_q h_a) . (W_k h_b), not scaled; `query` and `key` are (D', D).
    t_a = sum_b alpha_ab z_b, of logits (Chen et al., 2020).
    """
    peers, rows = len(logits), len(logits[0])
    attention = np.zeros((rows, peers, peers))
    targets = np.zeros((peers, *logits[0].shape))
    for n in range(rows):
        for a in range(peers):
            asked = query @ features[a][n]
            attention[n, a] = np.exp(log_softmax(np.array([asked @ (key @ features[b][n]) for b in range(peers)])))
            for b in range(peers):
                targets[a, n] += attention[n, a, b] * logits[b][n]
    return attention, targets


class Okddip(NamedTuple):
    peers: Array
    """(peers, rows): CE(z_a)."""
    leader: Array
    """(rows,): CE(z_L)."""
    among_peers: Array
    """(peers, rows): T^2 KL(t_a || z_a)."""
    to_leader: Array
    """(rows,): T^2 KL(mean_a z_a || z_L)."""


def okddip(
    peers: Sequence[Array],
    leader: Array,
    targets: Array,
    labels: Ints,
    *,
    mean: Array | None = None,
    temperature: float = 3.0,
) -> Okddip:
    """The parts; a row's loss is peers.sum(0) + leader + ramp * alpha * (among_peers.sum(0) + to_leader), alpha = 1.

    `mean` is the target of the leader, the mean of the peers' logits unless given.
    """
    mean = sum(peers) / len(peers) if mean is None else mean
    return Okddip(
        np.stack([ce(z, labels) for z in peers]),
        ce(leader, labels),
        np.stack([tempered_kl(t, z, temperature) for t, z in zip(targets, peers, strict=True)]),
        tempered_kl(mean, leader, temperature),
    )


def disagreement(logits: Sequence[Array]) -> float:
    """Mean over pairs of peers of the part of rows to which they give different classes."""
    answers = [np.argmax(z, axis=1) for z in logits]
    pairs = [(i, j) for i in range(len(answers)) for j in range(i)]
    differ = [sum(float(a != b) for a, b in zip(answers[i], answers[j], strict=True)) for i, j in pairs]
    return sum(differ) / len(pairs) / len(answers[0])


def byot(
    exits: Sequence[Array],
    features: Sequence[Array],
    labels: Ints,
    *,
    target: Array | None = None,
    target_features: Array | None = None,
    temperature: float = 3.0,
    soft: float = 0.3,
    hint: float = 0.03,
) -> Array:
    """(exits, rows): (1 - a) CE + a T^2 KL(p_deepest || p_i) + b ||F_i - F_deepest||^2 (Zhang et al., 2019).

    The deepest exit is the last of `exits` and of `features`, and has its CE alone, with weight 1. Features (rows, D)
    are after the adapters; their squares are summed over D.
    """
    target = exits[-1] if target is None else target
    target_features = features[-1] if target_features is None else target_features
    values = np.zeros((len(exits), len(labels)))
    for i in range(len(exits) - 1):
        values[i] = (1 - soft) * ce(exits[i], labels) + soft * tempered_kl(target, exits[i], temperature)
        for n in range(len(labels)):
            values[i, n] += hint * sum((features[i][n] - target_features[n]) ** 2)
    values[-1] = ce(exits[-1], labels)
    return values


def cs_kd(student: Array, partner: Array, labels: Ints, *, temperature: float = 4.0, weight: float = 1.0) -> Array:
    """CE(z) + lam T^2 KL(sg(p') || p), p' of another sample of the same class (Yun et al., 2020)."""
    return ce(student, labels) + weight * tempered_kl(partner, student, temperature)


def linear_mmd(first: Array, second: Array) -> float:
    """||mean over rows of f_a - mean over rows of f_b||^2, summed over D."""
    return float(sum((sum(first) / len(first) - sum(second) / len(second)) ** 2))


def ddgsd(
    first: Array,
    second: Array,
    labels: Ints,
    *,
    targets: tuple[Array, Array] | None = None,
    temperature: float = 3.0,
    soft: float = 1.0,
) -> Array:
    """CE_a + CE_b + l1 T^2 (KL(sg(p_a) || p_b) + KL(sg(p_b) || p_a)) of each row (Xu, Liu, 2019).

    To the mean over rows the method adds l2 * linear_mmd of the two views' pooled features, l2 = 0.005.
    """
    a, b = (first, second) if targets is None else targets
    taught = tempered_kl(a, second, temperature) + tempered_kl(b, first, temperature)
    return ce(first, labels) + ce(second, labels) + soft * taught


def ps_kd_target(labels: Ints, previous: Array, *, progress: float, final: float = 0.8) -> Array:
    """(rows, K): (1 - a) onehot(y) + a p of the previous epoch, a = final * t / t_max (Kim et al., 2021)."""
    weight = final * progress
    targets = np.zeros_like(previous)
    for n in range(len(labels)):
        targets[n] = weight * np.exp(log_softmax(previous[n]))
        targets[n, labels[n]] += 1 - weight
    return targets


def ps_kd(student: Array, labels: Ints, previous: Array, *, progress: float, final: float = 0.8) -> Array:
    """-sum_k target_k log p_k; `previous` are logits of the model as the last epoch left it."""
    targets = ps_kd_target(labels, previous, progress=progress, final=final)
    return np.array([-sum(targets[n] * log_softmax(student[n])) for n in range(len(labels))])


def ema(start: Array, states: Sequence[Array], decay: float | Sequence[float]) -> Array:
    """The average after each state came: a <- d a + (1 - d) s, from `start`, d a number or one a step."""
    decays = [decay] * len(states) if isinstance(decay, (int, float)) else decay
    average = start
    for state, d in zip(states, decays, strict=True):
        average = d * average + (1 - d) * state
    return average


def kdcl_target(logits: Sequence[Array], labels: Ints, *, how: str = "min_logit") -> Array:
    """What teaches all peers of KDCL (Guo et al., 2020), logits of each row; by the same hand as the scheme;
    `few_step_by_another` has it by another.

    `naive`: those of the peer whose cross-entropy with the label is the least. `min_logit`: every peer's logits less
    the one at the label, then the least of each class.
    """
    rows = []
    for i, y in enumerate(labels):
        if how == "naive":
            losses = [-log_softmax(z[i])[y] for z in logits]
            rows.append(logits[int(np.argmin(losses))][i])
        else:
            moved = [z[i] - z[i, y] for z in logits]
            rows.append(np.array([min(z[k] for z in moved) for k in range(len(moved[0]))]))
    return np.stack(rows)


def kdcl(target: Array, student: Array, labels: Ints, temperature: float = 1.0) -> Array:
    """CE(student) + T^2 KL(target || student) of each row."""
    return ce(student, labels) + tempered_kl(target, student, temperature)


def dot(
    weight: float,
    task: Sequence[float | None],
    teacher: Sequence[float | None],
    *,
    lr: float,
    momentum: float,
    delta: float,
    decay: float,
) -> list[float]:
    """The weight after each step of DOT (Zhao et al., 2023), from both gradients of each, None where one is missing.

    m <- (mu - delta) m + g + decay w and k <- (mu + delta) k + h, the first gradients being the first averages; w loses
    lr (m + k). Where one of the two is missing the other has mu and the decay, and the missing one stands still.
    """
    averages: list[float | None] = [None, None]
    walked = []
    for pair in zip(task, teacher, strict=True):
        both, change = None not in pair, 0.0
        for side, gradient in enumerate(pair):
            if gradient is None:
                continue
            if side == 0 or not both:
                gradient += decay * weight
            by = momentum if not both else momentum - delta if side == 0 else momentum + delta
            before = averages[side]
            now = gradient if before is None else by * before + gradient
            averages[side] = now
            change += now
        weight -= lr * change
        walked.append(weight)
    return walked


def pgd(
    weight: Array, bias: Array, clean: Array, start: Array, aim: Array, *, low: float, high: float, radius: float,
    step: float, steps: int,
) -> Array:  # fmt: skip
    """Rows moved so that a linear classifier W x + b has more cross-entropy with the distributions `aim` (n, K).

    x <- x + step sign(W^T (p(x) - aim)), cut to `radius` about the clean row and to [low, high] (Madry et al., 2018).
    KL(aim || p) has the same slope; labels are distributions of one class.
    """
    moved = np.empty_like(clean)
    for n in range(len(clean)):
        x = np.array(start[n])
        for turn in range(steps + 1):
            for i in range(len(x)):
                x[i] = min(max(x[i], clean[n, i] - radius, low), clean[n, i] + radius, high)
            if turn < steps:
                slope = weight.T @ (np.exp(log_softmax(weight @ x + bias)) - aim[n])
                x = x + step * np.sign(slope)
        moved[n] = x
    return moved


def robust(
    clean: Array, attacked: Array, teacher: Array, labels: Ints, *, share: float, temperature: float = 1.0
) -> Array:
    """CE(clean) + share T^2 KL(teacher || attacked) + (1 - share) T^2 KL(teacher || clean), of each row.

    ARD (Goldblum et al., 2020) with a share of 1, RSLAD (Zi et al., 2021) with 5/6 and without its CE.
    """
    taught = share * tempered_kl(teacher, attacked, temperature)
    return ce(clean, labels) + taught + (1 - share) * tempered_kl(teacher, clean, temperature)
