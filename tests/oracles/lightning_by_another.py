"""SDXL-Lightning (Lin, Wang and Yang, 2024), slow and in float64, from the paper's text alone, as no training code is
public, by somebody who had not seen our code.

Times are 0 (clean) to T, entry t of a table alpha_bar ``[T + 1]``. The paper does not say: the mean over the batch;
that "skip-level" is two levels up; one t* a sample.
"""

import math
from itertools import pairwise

import numpy as np

CHAIN = [128, 32, 8, 4, 2, 1]  # 3.6
TRAIN_TIMES_FEW = [250, 500, 750, 1000]  # 3.7.1, students of 1 and 2 steps, T = 1000
RENOISE_TIMES = [10, 250, 500, 750]  # 3.7.2
RENOISE_WEIGHTS = {"first": [1, 1, 1, 1], "later": [5, 1, 1, 1]}


# ---------------------------------------------------------------- losses from logits (eqs. 18-21)
def softplus(z):
    """log(1 + e^z) without overflow, one float."""
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def sigmoid(z):
    return 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))


def adversarial(real, fake):
    """real, fake: logits [B] (a, a^). The same two lines serve D (pair) and D' (relaxed): only the logits differ.
    Batch mean is a CHOICE (the paper writes one sample)."""
    B = len(fake)
    l_d = sum(softplus(-a) for a in real) / B + sum(softplus(b) for b in fake) / B
    l_g = sum(softplus(-b) for b in fake) / B
    return {
        "L_D": l_d,
        "L_G": l_g,
        "dLD_dreal": [-sigmoid(-a) / B for a in real],
        "dLD_dfake": [sigmoid(b) / B for b in fake],
        "dLG_dfake": [-sigmoid(-b) / B for b in fake],
    }


# ---------------------------------------------------------------- diffusion algebra (eqs. 1, 3-5, 24)
def alpha_bar(T, kind="sdxl"):
    """Table [T+1], entry 0 is 1 (clean), entry t the product of the first t (1-beta).
    'sdxl' = scaled-linear .00085 -> .012 (SDXL's config, not in the paper; CHOICE for T != 1000)."""
    assert kind == "sdxl"
    out = [1.0]
    for i in range(T):
        u = i / (T - 1) if T > 1 else 0.0
        out.append(out[-1] * (1.0 - (math.sqrt(0.00085) * (1 - u) + math.sqrt(0.012) * u) ** 2))
    return out


def forward(x0, eps, t, ab):  # eq. 1
    return math.sqrt(ab[t]) * x0 + math.sqrt(1 - ab[t]) * eps


def forward_fixed(x0, eps, t, ab):  # eq. 24, t = T: the noise itself, no trace of x0
    return eps.copy() if t == len(ab) - 1 else forward(x0, eps, t, ab)


def to_x0(xt, eps, t, ab):  # eq. 3, OLD schedule also at t = T
    return (xt - math.sqrt(1 - ab[t]) * eps) / math.sqrt(ab[t])


def to_eps(xt, x0, t, ab):  # eq. 4 (undefined at t = 0)
    return (xt - math.sqrt(ab[t]) * x0) / math.sqrt(1 - ab[t])


def move(xt, u, t, t2, ab, pred="eps"):  # eq. 5
    if t2 == t:
        return xt.copy()  # clamped steps do nothing
    x0 = to_x0(xt, u, t, ab) if pred == "eps" else u
    eps = u if pred == "eps" else to_eps(xt, u, t, ab)
    return forward(x0, eps, t2, ab)


# ---------------------------------------------------------------- times
def teacher_of(student_steps, skip=False):
    """Steps of the teacher in the chain. skip: two levels up ('skip-level teacher', only for students of 2 and 1
    steps; the reading 'two levels up' = 8 for 2, 4 for 1 is OURS)."""
    i = CHAIN.index(student_steps)
    return CHAIN[i - 2] if skip and student_steps in (1, 2) else CHAIN[i - 1]


def clamp(t, T):
    return 0 if t < 0 else T if t > T else t


def round_pairs(T, teacher_steps, student_steps, times=None):
    """The round teacher_steps -> student_steps: n = teacher/student, s = T/teacher, so ns = T/student.
    times None: the sampling grid T, T-ns, ..., ns. Else the given times (3.7.1). Ends clamped to [0, T] (2.3).
    Returns s, n, [(t, t-ns, [teacher's clamped times t, t-s, ..., t-ns])]."""
    assert teacher_steps % student_steps == 0 and T % teacher_steps == 0
    n, s = teacher_steps // student_steps, T // teacher_steps
    if times is None:
        times = [T - k * n * s for k in range(student_steps)]
    return s, n, [(t, clamp(t - n * s, T), [clamp(t - j * s, T) for j in range(n + 1)]) for t in times]


def teacher_target(xt, path, f, ab):  # eqs. 7-13, f(x, t) predicts eps
    x = xt
    for a, b in pairwise(path):
        if a != b:
            x = move(x, f(x, a), a, b, ab)
    return x


# ---------------------------------------------------------------- 3.7.2 and 3.7.3
def renoise(x0_teacher, x0_student, eps_star, t_star, ab):  # eqs. 25-26: ONE eps*, ONE t* for both ends
    out = [np.empty_like(x0_teacher), np.empty_like(x0_student)]
    for o, x in zip(out, (x0_teacher, x0_student), strict=True):
        for i in range(len(x)):
            o[i] = math.sqrt(ab[t_star[i]]) * x[i] + math.sqrt(1 - ab[t_star[i]]) * eps_star[i]
    return out


def renoise_probabilities(phase):
    w = RENOISE_WEIGHTS[phase]
    return [v / sum(w) for v in w]


# ---------------------------------------------------------------- toy discriminator, eqs. 17, 22, 23
# d(x, t, c) = tanh(W x + V c + b t/T), shared by both ends;  pair head: w . [d(end), d(x_t)],  relaxed: v . d(end)
def toy_logit(P, T, end, t_end, c, xt=None, t=None):
    """logit and its gradient to the END (the fake or real x_{t-ns}), one sample."""
    h = np.tanh(P["W"] @ end + P["V"] @ c + P["b"] * (t_end / T))
    H = len(h)
    if xt is None:
        head, rest = P["v"], 0.0
    else:
        head, rest = P["w"][:H], float(P["w"][H:] @ np.tanh(P["W"] @ xt + P["V"] @ c + P["b"] * (t / T)))
    return float(head @ h) + rest, P["W"].T @ (head * (1 - h**2))


def toy_losses(P, T, xt, t, real, fake, t_end, c, relaxed=False):
    B = len(xt)
    a, ga, b, gb = [], [], [], []
    for i in range(B):
        kw = {} if relaxed else {"xt": xt[i], "t": t[i]}
        v, g = toy_logit(P, T, real[i], t_end[i], c[i], **kw)
        a.append(v)
        ga.append(g)
        v, g = toy_logit(P, T, fake[i], t_end[i], c[i], **kw)
        b.append(v)
        gb.append(g)
    r = adversarial(a, b)
    return {
        "real_logits": a,
        "fake_logits": b,
        "L_D": r["L_D"],
        "L_G": r["L_G"],
        "dLG_dfake_end": np.stack([r["dLG_dfake"][i] * gb[i] for i in range(B)]),
    }
