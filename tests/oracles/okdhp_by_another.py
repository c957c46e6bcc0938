"""Slow float64 oracle of OKDHP (Li et al., ICCV 2021, arXiv 2108.02092), in loops; equal to the release's own forward
and losses to 1e-9 (github zhengli97/OKDHP d0bf3c45: lib/models/hourglass_okd.py, lib/core/loss.py). NumPy only."""

import math

import numpy as np


def conv(x, w, b, pad):
    """x (c, h, w), w (o, c, k, k)."""
    c, height, width = x.shape
    k = w.shape[-1]
    padded = np.zeros((c, height + 2 * pad, width + 2 * pad))
    padded[:, pad : pad + height, pad : pad + width] = x
    return np.array([
        [[(w[o] * padded[:, i : i + k, j : j + k]).sum() + b[o] for j in range(width)] for i in range(height)]
        for o in range(len(w))
    ])  # fmt: skip


def softmax(v):
    e = np.exp(v - v.max())
    return e / e.sum()


def aggregation(x, heat, p):
    """x (B, C, H, W) features of the shared stem, heat (B, M, J, h, w) the branches' maps, kernels 3, 5, 7 and so on.

    The mixture (B, J, h, w) and the weights (B, M, J), a softmax over branches. Batch norm in training mode, no gain.
    """
    branches = heat.shape[1]
    u = np.zeros_like(x)
    for m in range(branches):
        f = np.stack([conv(one, p[f"cw{m}"], p[f"cb{m}"], 1 + m) for one in x])
        mean, variance = f.mean((0, 2, 3)), f.var((0, 2, 3))
        u += np.maximum((f - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None], 0)
    out, weights = [], []
    for b in range(len(x)):
        z = p["fw"] @ u[b].mean((1, 2)) + p["fb"]
        v = np.stack([p[f"hw{m}"] @ z + p[f"hb{m}"] for m in range(branches)])
        a = np.stack([softmax(v[:, j]) for j in range(v.shape[1])], 1)
        weights.append(a)
        out.append((heat[b] * a[:, :, None, None]).sum(0))
    return np.stack(out), np.stack(weights)


def mse(prediction, right, w):
    """Half the mean over items and positions, mean over joints; w (B, J, 1) is 0 where a joint is not labelled."""
    joints = prediction.shape[1]
    return sum(
        0.5 * np.mean([(w[b, j, 0] * (prediction[b, j] - right[b, j])) ** 2 for b in range(len(prediction))])
        for j in range(joints)
    ) / joints  # fmt: skip


def kl(prediction, target, w):
    """KL(target || prediction) of softmaxes over positions, summed over joints, over B and the positions."""
    items, joints, height, width = prediction.shape
    total = 0.0
    for b in range(items):
        for j in range(joints):
            p, q = (softmax(w[b, j, 0] * one[b, j].ravel()) for one in (target, prediction))
            total += (p * (np.log(p) - np.log(q))).sum()
    return total / items / (height * width)


def ramp(epoch, length):
    return 1.0 if length == 0 else math.exp(-5 * (1 - min(max(epoch, 0), length) / length) ** 2)


def inputs(seed=0, B=2, C=4, M=3, J=5, H=6):
    r = np.random.RandomState(seed)
    mid = 3
    p = {"fw": r.randn(mid, C), "fb": r.randn(mid)}
    for m in range(M):
        k = 3 + 2 * m
        p |= {
            f"cw{m}": r.randn(C, C, k, k) * 0.3, f"cb{m}": r.randn(C) * 0.1,
            f"hw{m}": r.randn(J, mid), f"hb{m}": r.randn(J),
        }  # fmt: skip
    x, heat, right = r.randn(B, C, H, H), r.rand(B, M, J, H, H) * 3, r.rand(B, J, H, H)
    w = (r.rand(B, J, 1) > 0.3).astype(float)
    return x, heat, right, w, p
