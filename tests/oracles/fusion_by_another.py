"""Slow float64 oracles for FFL (Kim et al. 2020, ICPR, arXiv 1904.09058, "Feature Fusion for Online Mutual Knowledge
Distillation").
Release read: github Jangho-Kim/FFL-pytorch, train_FFL.py, utils.py, our_network.py.  NumPy only.

branches: list of m logit arrays (B, K); fused (B, K): the fused classifier's logits; labels (B,).
"""

import numpy as np


def log_softmax(z):
    z = np.asarray(z, dtype=np.float64)
    m = z.max(axis=-1, keepdims=True)
    return z - m - np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


def cross_entropy(z, labels):
    lp = log_softmax(z)
    return float(np.mean([-lp[b, y] for b, y in enumerate(labels)]))


def kl(student, target, T=3.0, form="paper"):
    """T^2 KL(softmax(target / T) || softmax(student / T)), mean over rows; the target is a constant (detached).

    form="paper": exact.  form="release": the target distribution plus 1e-7 in every class, NOT renormalised (it sums
    to 1 + 1e-7 K):
    sum q' (log q' - log p).
    """
    lp, lq = log_softmax(np.asarray(student, np.float64) / T), log_softmax(np.asarray(target, np.float64) / T)
    q = np.exp(lq)
    if form == "release":
        q = q + 1e-7
        lq = np.log(q)
    return T * T * float((q * (lq - lp)).sum(1).mean())


def ensemble(branches):
    """Mean of the branches' LOGITS (not of probabilities).  The paper's z_e; fused logits are not in it."""
    return sum(np.asarray(z, np.float64) for z in branches) / len(branches)


def mutual(branches, fused, T=3.0, form="paper"):
    """Mutual KD: kl(fused <- ensemble) + sum_k kl(branch k <- fused).

    The ensemble teaches the fused classifier, the fused classifier teaches each branch; both targets carry no
    gradient.
    """
    return kl(fused, ensemble(branches), T, form) + sum(kl(z, fused, T, form) for z in branches)


def ramp_up(epoch, length=80.0):
    """exp(-5 (1 - e / length)^2), e clipped to [0, length]; 1 if length == 0.  Weight of `mutual` in the release's
    training."""
    if length == 0:
        return 1.0
    e = min(max(float(epoch), 0.0), length)
    return float(np.exp(-5.0 * (1.0 - e / length) ** 2))


def total(branches, fused, labels, T=3.0, weight=1.0, form="paper"):
    """sum_k CE(branch k) + CE(fused) + weight * mutual.  Batch means.  The paper's weight is 1; the release's is
    ramp_up(epoch)."""
    return (
        sum(cross_entropy(z, labels) for z in branches)
        + cross_entropy(fused, labels)
        + weight * mutual(branches, fused, T, form)
    )


def total_grads(branches, fused, labels, T=3.0, weight=1.0):
    """([d total / d branch k], d total / d fused) with detached targets, exact form: (softmax - onehot) / B
    + weight T (softmax(z / T) - target) / B."""
    B = len(labels)

    def one(z, target):
        z = np.asarray(z, np.float64)
        g = np.exp(log_softmax(z))
        for b, y in enumerate(labels):
            g[b, y] -= 1
        return (
            g / B
            + weight * T * (np.exp(log_softmax(z / T)) - np.exp(log_softmax(np.asarray(target, np.float64) / T))) / B
        )

    return [one(z, fused) for z in branches], one(fused, ensemble(branches))


def fusion_logits(maps, dw, bn1, pw, bn2, fc_w, fc_b, eps=1e-5):
    """The fused classifier in eval mode.  maps: list of m arrays (B, C, H, W), concatenated over channels; dw (mC,
    3, 3) depthwise
    3x3, padding 1, no bias; bn = (gamma, beta, mean, var); ReLU; pw (C, mC) 1x1, no bias; bn; ReLU; mean over
    positions; linear."""
    x = np.concatenate([np.asarray(a, np.float64) for a in maps], axis=1)
    B, D, H, W = x.shape
    pad = np.zeros((B, D, H + 2, W + 2))
    pad[:, :, 1:-1, 1:-1] = x
    y = sum(pad[:, :, i : i + H, j : j + W] * dw[None, :, i, j, None, None] for i in range(3) for j in range(3))

    def bn(a, p):
        gam, bet, mu, var = (np.asarray(v, np.float64)[None, :, None, None] for v in p)
        return np.maximum((a - mu) / np.sqrt(var + eps) * gam + bet, 0)

    y = bn(y, bn1)
    y = bn(np.einsum("oc,bchw->bohw", pw, y), bn2)
    return y.mean(axis=(2, 3)) @ np.asarray(fc_w).T + np.asarray(fc_b)
