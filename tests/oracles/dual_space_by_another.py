"""DSKD (Zhang et al., EMNLP 2024) of one vocabulary, slow and in float64, by somebody who had not seen our code.

From its release (songmzhang/DSKD at 077337ac, criterions/dual_space_kd.py); the paper was not read again. ``kd =
CE(z_ts, y) + KL(sg softmax(z_ts / T) || student / T) + KL(teacher / T || softmax(z_st / T))`` with ``z_ts = head_s(P
h_t)``, head_s held, and ``z_st = head_t(Q h_s)``; h is what the head is given, P and Q are linear with a bias; no T^2.
`RELEASE` holds what its lines gave: the three sums over tokens, and sums of the absolute values of the gradient of
their sum.
"""

import math

import numpy as np


def log_softmax(z):
    m = z.max()
    return z - m - math.log(np.exp(z - m).sum())


def kl(a, b):
    """KL(a || b) of two log-distributions."""
    return sum(math.exp(x) * (x - z) for x, z in zip(a, b, strict=True))


def parts(z_s, h_s, z_t, h_t, y, head_s, head_t, state, T):
    """Of one token: CE of the teacher's state behind the student's head, and both KLs."""
    seen = head_s(state["to_student.weight"] @ h_t + state["to_student.bias"])
    told = head_t(state["to_teacher.weight"] @ h_s + state["to_teacher.bias"])
    return (
        -log_softmax(seen)[y],
        kl(log_softmax(seen / T), log_softmax(z_s / T)),
        kl(log_softmax(z_t / T), log_softmax(told / T)),
    )


def dskd(student, teacher, labels, head, own_head, *, state, temperature=2.0):
    """A value a row; signals are the logits and what the heads are given."""
    state = {key: np.asarray(value, np.float64) for key, value in state.items()}
    rows = zip(*student, *teacher, labels, strict=True)
    return np.array([
        sum(parts(z_s, h_s, z_t, h_t, y, own_head, head, state, temperature)) for z_s, h_s, z_t, h_t, y in rows
    ])  # fmt: skip


def inputs(seed):
    """Two texts of four tokens, seven classes; -100 marks tokens that do not count."""
    r = np.random.RandomState(seed)
    B, N, ds, dt, v = 2, 4, 3, 4, 7
    d = {"h_s": r.randn(B, N, ds), "h_t": r.randn(B, N, dt), "head_s": r.randn(v, ds), "head_t": r.randn(v, dt)}
    d |= {"W_t2s": r.randn(ds, dt) * 0.5, "b_t2s": r.randn(ds) * 0.1, "W_s2t": r.randn(dt, ds) * 0.5}
    d |= {"b_s2t": r.randn(dt) * 0.1}
    r.randn(2 * dt, 2 * ds), r.randn(2 * dt), r.randn(v, ds), r.randn(v, dt)  # of the attention
    y = r.randint(0, v, (B, N))
    y[0, 0] = -100
    y[1, 3] = -100
    return d | {"y": y}


#: By seed and T.
RELEASE = {
    (0, 1.0): (
        27.424280176413532,
        8.859069767509446,
        16.27886662808942,
        {
            "h_s": 30.687293217494013,
            "head_s": 11.251123118788183,
            "W_t2s": 61.17489709895733,
            "W_s2t": 43.137355367538966,
        },
    ),
    (0, 2.0): (
        27.424280176413532,
        3.292237140825845,
        5.478161589537375,
        {
            "h_s": 9.59728574904124,
            "head_s": 3.787753051427253,
            "W_t2s": 61.17489709895733,
            "W_s2t": 14.507200676067315,
        },
    ),
    (1, 1.0): (
        11.42252041219751,
        7.29070426898693,
        8.974758535132905,
        {
            "h_s": 20.268039937876146,
            "head_s": 9.870136940472808,
            "W_t2s": 15.181468875086328,
            "W_s2t": 20.63438076443284,
        },
    ),
    (1, 2.0): (
        11.42252041219751,
        2.201029359467002,
        2.7250265237001776,
        {
            "h_s": 6.334660053234334,
            "head_s": 2.784896960946348,
            "W_t2s": 15.181468875086328,
            "W_s2t": 7.110309744163369,
        },
    ),
    (2, 1.0): (
        13.045583114440172,
        13.285847510949893,
        21.799077110441935,
        {
            "h_s": 33.75110540875256,
            "head_s": 20.644637655070614,
            "W_t2s": 21.85689091936646,
            "W_s2t": 58.75606484740711,
        },
    ),
    (2, 2.0): (
        13.045583114440172,
        5.005760100751764,
        7.755732135795899,
        {
            "h_s": 11.23615390656495,
            "head_s": 7.42822081154288,
            "W_t2s": 21.85689091936646,
            "W_s2t": 19.467885724348363,
        },
    ),
}
