"""DSKD (Zhang et al., EMNLP 2024), slow and in float64, by somebody who had not seen our code.

From its release (songmzhang/DSKD at 077337ac, criterions/dual_space_kd.py, and its neighbour with cross-model
attention, of which `cross` is); the paper was not read again. Of one vocabulary ``kd = CE(z_ts, y) + KL(sg softmax(z_ts
/ T) || student / T) + KL(teacher / T || softmax(z_st / T))`` with ``z_ts = head_s(P h_t)``, head_s held, and ``z_st =
head_t(Q h_s)``; h is what the head is given, P and Q are linear with a bias; no T^2. `RELEASE` and `RELEASE_CROSS` hold
what its lines gave: the three sums over tokens, and sums of the absolute values of the gradient of their sum; the
second was run on tokens that all count, as its deviations are of padding, too.
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


def cross(student, teacher, y, head, own_head, state, T, deviations):
    """Of one text: both sums of a student's tokens and the one of a teacher's. Lists are logits, h and embeddings."""
    (z_s, h_s, e_s), (z_t, h_t, e_t) = student, teacher
    dt = h_t.shape[1]

    def linear(name, x):
        return state[f"{name}.weight"] @ x + state[f"{name}.bias"]

    std_h, std_e, std_next = deviations
    key, value = e_t / std_e, h_t / std_h + e_t[:, dt:] / std_next
    a = np.array([[linear("query", e) @ k / math.sqrt(2 * dt) for k in key] for e in e_s])
    out = np.zeros(3)
    for i in range(len(h_s)):
        w = np.exp(log_softmax(a[i]))
        z = own_head(sum(w[j] * linear("to_student", value[j]) for j in range(len(h_t))))
        out[0] -= log_softmax(z)[y[i]]
        if int(np.argmax(z)) == y[i]:
            out[1] += kl(log_softmax(z / T), log_softmax(z_s[i] / T))
    for j in range(len(h_t)):
        w = np.exp(log_softmax(a[:, j]))
        z = head(sum(w[i] * linear("to_teacher", h_s[i]) for i in range(len(h_s))))
        out[2] += kl(log_softmax(z_t[j] / T), log_softmax(z / T))
    return out


def dskd_cma(student, teacher, labels, item, teacher_item, items, head, own_head, *, state, temperature=2.0):
    """A sum a text; one that a side has nothing of is 0, and its rows are not counted in the deviations."""
    state = {key: np.asarray(value, np.float64) for key, value in state.items()}
    rows = [(item[0] == b, teacher_item[0] == b) for b in range(items)]
    real = np.isin(teacher_item[0], [b for b, (mine, theirs) in enumerate(rows) if mine.any() and theirs.any()])
    h_t, e_t = teacher[1][real], teacher[2][real]
    deviations = [math.sqrt(((x - x.mean()) ** 2).sum() / (x.size - 1)) for x in (h_t, e_t, e_t[:, h_t.shape[1] :])]
    values = np.zeros(items)
    for b, (mine, theirs) in enumerate(rows):
        if mine.any() and theirs.any():
            sides = [x[mine] for x in student], [x[theirs] for x in teacher]
            values[b] = cross(*sides, labels[mine], head, own_head, state, temperature, deviations).sum()
    return values


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


def inputs_cross(seed):
    """As `inputs`, of a teacher with five tokens a text and six classes; all count. e holds the two tables."""
    r = np.random.RandomState(seed)
    B, N, M, ds, dt, vs, vt = 2, 4, 5, 3, 4, 7, 6
    d = {"h_s": r.randn(B, N, ds), "h_t": r.randn(B, M, dt), "head_s": r.randn(vs, ds), "head_t": r.randn(vt, dt)}
    d |= {"W_t2s": r.randn(ds, dt) * 0.5, "b_t2s": r.randn(ds) * 0.1, "W_s2t": r.randn(dt, ds) * 0.5}
    d |= {"b_s2t": r.randn(dt) * 0.1, "W_q": r.randn(2 * dt, 2 * ds) * 0.5, "b_q": r.randn(2 * dt) * 0.1}
    d |= {"emb_s": r.randn(vs, ds), "emb_t": r.randn(vt, dt)}
    r.randint(0, vs, (B, N)), r.randint(0, vt, (B, M))  # its labels, some of which do not count
    d |= {"in_s": r.randint(0, vs, (B, N)), "in_t": r.randint(0, vt, (B, M))}
    r = np.random.RandomState(100 + seed)
    return d | {"y_s": r.randint(0, vs, (B, N)), "y_t": r.randint(0, vt, (B, M))}


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

#: The same with cross-model attention.
RELEASE_CROSS = {
    (0, 1.0): (
        19.926073649744914,
        3.564777738072867,
        14.03015259031329,
        {
            "h_s": 14.48007004595743,
            "head_s": 6.565322289463186,
            "W_t2s": 21.162585227386298,
            "W_s2t": 42.11687502846377,
            "W_q": 37.97926277643059,
        },
    ),
    (0, 2.0): (
        19.926073649744914,
        1.0237067950700016,
        5.201973084259115,
        {
            "h_s": 4.363204041288428,
            "head_s": 1.9799941446991187,
            "W_t2s": 21.162585227386298,
            "W_s2t": 11.741123914793398,
            "W_q": 29.896085115813303,
        },
    ),
    (1, 1.0): (
        18.222574733881654,
        2.0072041037986637,
        5.043253847745806,
        {
            "h_s": 9.94696132080847,
            "head_s": 5.505696672355615,
            "W_t2s": 28.574416754421268,
            "W_s2t": 11.822667538098829,
            "W_q": 48.30226885036491,
        },
    ),
    (1, 2.0): (
        18.222574733881654,
        0.6783122865102127,
        1.4031598345470113,
        {
            "h_s": 3.1896925647499184,
            "head_s": 1.5797951885960089,
            "W_t2s": 28.574416754421268,
            "W_s2t": 3.8034864718671058,
            "W_q": 48.28196862770787,
        },
    ),
    (2, 1.0): (
        13.187397663188175,
        2.1172324444050745,
        8.736706741427945,
        {
            "h_s": 10.317538823284568,
            "head_s": 3.8973131853672904,
            "W_t2s": 18.42501536895757,
            "W_s2t": 22.308711747276384,
            "W_q": 15.241538873524576,
        },
    ),
    (2, 2.0): (
        13.187397663188175,
        0.6076949250110569,
        4.572556593778067,
        {
            "h_s": 3.1725628731366555,
            "head_s": 1.1257284444523454,
            "W_t2s": 18.42501536895757,
            "W_s2t": 9.780982211704936,
            "W_q": 9.692792032678717,
        },
    ),
}
