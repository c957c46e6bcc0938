"""RDD (Feng et al., ACM MM 2024), slow and in float64, from its release (cantbebetter2/RDD at 80883607, losses.py), by
somebody who had not seen our code; the paper could not be read.

Maps (B,C,H,W) of a frozen classifier on the student's predicted x_0 and on the teacher's target. With the flags of its
README: 0.1 memory + 1.0 cross-sample + KL(feature). Cross-sample: of every ordered pair of images the cosines of
positions, softmax over the second one's, KL, a mean over B B H W rows. Memory: cosines with places round(linspace(0,
size - 1, n)) of a queue, divided by 0.1, KL, a mean over rows, times 0.1. Feature: KL(softmax(t / 0.9) ||
softmax(s)), a mean over the batch. The release takes rows of the queue from a (B,C,H,W) tensor without a permutation.
`RELEASE` holds what its lines gave in float64, the projection head being the identity.
"""

import math

import numpy as np


def _norm_c(f):
    f = np.asarray(f, np.float64)
    return f / np.maximum(np.sqrt((f**2).sum(1, keepdims=True)), 1e-12)


def kl_row(zt, zs):
    lt, ls = (z - (z.max() + math.log(np.exp(z - z.max()).sum())) for z in (zt, zs))
    return float((np.exp(lt) * (lt - ls)).sum())


def cross_sample(fs, ft):
    """fs, ft (B,C,H,W)."""
    s, t = _norm_c(fs), _norm_c(ft)
    B, C = s.shape[:2]
    s, t = s.reshape(B, C, -1), t.reshape(B, C, -1)
    tot, n = 0.0, 0
    for b in range(B):
        for d in range(B):
            for i in range(s.shape[2]):
                tot += kl_row(t[b, :, i] @ t[d], s[b, :, i] @ s[d])
                n += 1
    return tot / n


def memory(fs, ft, queue, contrast_T=0.1):
    """fs (projected), ft (B,C,H,W); queue (K,C) the sampled normalised rows; without the factor 0.1."""
    s, t = _norm_c(fs), _norm_c(ft)
    B, C = s.shape[:2]
    s, t = s.reshape(B, C, -1), t.reshape(B, C, -1)
    tot = 0.0
    for b in range(B):
        for i in range(s.shape[2]):
            tot += kl_row(queue @ t[b, :, i] / contrast_T, queue @ s[b, :, i] / contrast_T)
    return tot / (B * s.shape[2])


def queue_rows_release(keys):
    """(B,C,H,W) -> (B*H*W, C) as the release takes them."""
    r = np.asarray(keys, np.float64).reshape(keys.shape[1], -1).T
    return r / np.sqrt((r**2).sum(1, keepdims=True))


def enqueue(queue, ptr, rows):
    q, K = queue.copy(), len(rows)
    if ptr + K >= len(q):
        q[-K:] = rows
    else:
        q[ptr : ptr + K] = rows
    return q


def sampled_indices(size=20000, n=4096):
    return np.round(np.linspace(0, size - 1, n)).astype(int)


def feature_kl(s, t, temp=0.9):
    return sum(kl_row(np.asarray(b) / temp, np.asarray(a)) for a, b in zip(s, t, strict=True)) / len(s)


def inputs(seed):
    r = np.random.RandomState(seed)
    q = r.randn(30, 4)
    k = {"fs": r.randn(2, 4, 3, 2), "ft": r.randn(2, 4, 3, 2), "ptr": [0, 10, 27][seed % 3], "n": 8}
    k |= {"queue": q / np.linalg.norm(q, axis=1, keepdims=True)}
    return k | {"ps": r.randn(3, 5), "pt": r.randn(3, 5), "temp": [0.9, 1.0, 0.9][seed % 3]}


def remembered(k):
    """The rows of the queue that are compared, as the release has written it before."""
    rows = queue_rows_release(k["ft"] / np.sqrt((k["ft"] ** 2).sum(1, keepdims=True)))
    return enqueue(k["queue"], k["ptr"], rows)[sampled_indices(30, k["n"])]


#: The memory's with its factor 0.1.
RELEASE = {
    "0": {"cross": 0.13876112972573115, "memory": 0.6852383794986676, "feature": 0.5822562146482101},
    "1": {"cross": 0.21157690391524742, "memory": 0.7777471973961521, "feature": 0.8013806445138426},
    "2": {"cross": 0.15652707295483967, "memory": 0.6654167061407994, "feature": 0.9246706252134622},
}


def cases():
    return [(f"seed{s}", inputs(s), RELEASE[str(s)]) for s in range(3)]
