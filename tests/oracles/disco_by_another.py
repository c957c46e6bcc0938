"""DisCo (Gao et al., ECCV 2022), slow and in float64, from its release (Yuting-Gao/DisCo-pytorch at 1d732c87: main.py,
builder_kq_mse_largeembedding_2048.py), by somebody who had not seen our code; the paper could not be read.

Student q (view 1) and qk (view 2, with gradient), k of its momentum encoder (view 2), teacher tq and tqk of the same
views, all of length 1: loss = MoCo's NCE(q, k, queue) as a mean over the batch + sum (tq - q)^2 + sum (tqk - qk)^2,
sums over batch and channels. The queue is written after the logits. `RELEASE` is what its forward gave in float64.
"""

import math

import numpy as np


def l2n(x):
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-12)


def nce(q, k, queue, T=0.2):
    """q, k (B,C) normalised; queue (C,K)."""
    tot = 0.0
    for a, b in zip(q, k, strict=True):
        z = np.concatenate([[a @ b], a @ queue]) / T
        tot += -(z[0] - (z.max() + math.log(np.exp(z - z.max()).sum())))
    return tot / len(q)


def distill(s, t):
    """Normalised (B,C): the sum of squares."""
    return float(((s - t) ** 2).sum())


def disco_loss(q, qk, k, tq, tqk, queue, T=0.2, only_mse=False):
    q, qk, k, tq, tqk = (l2n(v) for v in (q, qk, k, tq, tqk))
    return (0.0 if only_mse else nce(q, k, queue, T)) + distill(q, tq) + distill(qk, tqk)


def inputs(seed):
    r = np.random.RandomState(seed)
    rows = {n: r.randn(4, 6) for n in ("q", "qk", "k", "tq", "tqk")}
    return rows | {"queue": l2n(r.randn(9, 6)).T, "T": [0.2, 0.07, 0.5][seed % 3], "only": seed == 2}


RELEASE = {
    "0": {"loss": 23.185926479530295, "nce": 5.282754490160702},
    "1": {"loss": 32.058649834644044, "nce": 12.831629928699355},
    "2": {"loss": 12.354300493377623, "nce": 3.1967546018256723},
}


def cases():
    return [(f"seed{s}", inputs(s), RELEASE[str(s)]) for s in range(3)]
