"""Slow float64 oracles for DeiT's distillation token (Touvron et al. 2021, arXiv 2012.12877, section 4, eq. 2-3).
Release read: github facebookresearch/deit, losses.py, models.py.  NumPy only.

cls (B, K): logits of the class-token head; dist (B, K): of the distillation-token head; teacher (B, K); labels (B,)
or target
probabilities (B, K) (mixup).
"""

import numpy as np


def log_softmax(z):
    z = np.asarray(z, dtype=np.float64)
    m = z.max(axis=-1, keepdims=True)
    return z - m - np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


def cross_entropy(z, target, smoothing=0.0):
    """Mean over rows of -sum q log softmax(z).  target: ints, or probabilities (B, K) (then smoothing is not used).
    smoothing e:
    q = (1 - e) onehot + e / K."""
    lp = log_softmax(z)
    target = np.asarray(target)
    if target.ndim == 2:
        return float(-(target * lp).sum(1).mean())
    out = 0.0
    for b, y in enumerate(target):
        out += -(1 - smoothing) * lp[b, y] - smoothing * lp[b].mean()
    return out / len(target)


def hard_labels(teacher):
    """argmax of the teacher, lowest index on ties."""
    return np.argmax(np.asarray(teacher, np.float64), axis=1)


def hard(cls, dist, teacher, labels, alpha=0.5, smoothing=0.0, teacher_smoothing=0.0):
    """(1 - alpha) CE(cls, labels) + alpha CE(dist, argmax teacher).  Eq. 3: both halves.

    The smoothing is the base loss's only (the release's second CE is plain); the paper says the hard label can be
    smoothed as well:
    teacher_smoothing."""
    return (1 - alpha) * cross_entropy(cls, labels, smoothing) + alpha * cross_entropy(
        dist, hard_labels(teacher), teacher_smoothing
    )


def soft_term(dist, teacher, T=3.0, reduction="batch"):
    """T^2 KL(softmax(teacher / T) || softmax(dist / T)).

    "batch": mean over rows (the paper's eq. 2, KL of distributions).  "numel": the release's default, divided by B *
    K: 1 / K of it.
    The argument order is KL(teacher || student) in the release; the paper's notation KL(psi(Z_s), psi(Z_t)) reads
    the other way, and
    the code is taken.
    """
    lt, ls = log_softmax(np.asarray(teacher, np.float64) / T), log_softmax(np.asarray(dist, np.float64) / T)
    s = T * T * float((np.exp(lt) * (lt - ls)).sum())
    B, K = lt.shape
    return s / B if reduction == "batch" else s / (B * K)


def soft(cls, dist, teacher, labels, alpha=0.1, T=3.0, reduction="batch", smoothing=0.0):
    """(1 - alpha) CE(cls, labels) + alpha soft_term(dist, teacher).  Paper: lambda = 0.1, T = 3.  (Release's
    command-line defaults:
    alpha 0.5, T 1.)  Without a distillation token dist = cls."""
    return (1 - alpha) * cross_entropy(cls, labels, smoothing) + alpha * soft_term(dist, teacher, T, reduction)


def predict(cls, dist, form="logits"):
    """Test time.  "logits": (cls + dist) / 2 (release).  "softmax": mean of the two softmaxes (the paper: softmax
    outputs of both are added).
    Their argmax can differ."""
    cls, dist = np.asarray(cls, np.float64), np.asarray(dist, np.float64)
    if form == "logits":
        return (cls + dist) / 2
    return (np.exp(log_softmax(cls)) + np.exp(log_softmax(dist))) / 2


def grads(cls, dist, teacher, labels, alpha, mode="hard", T=3.0, reduction="batch"):
    """(d / d cls, d / d dist), integer labels, no smoothing."""
    cls, dist = np.asarray(cls, np.float64), np.asarray(dist, np.float64)
    B, K = cls.shape
    gc = np.exp(log_softmax(cls))
    gc[np.arange(B), labels] -= 1
    if mode == "hard":
        gd = np.exp(log_softmax(dist))
        gd[np.arange(B), hard_labels(teacher)] -= 1
        gd /= B
    else:
        gd = T * (np.exp(log_softmax(dist / T)) - np.exp(log_softmax(np.asarray(teacher, np.float64) / T)))
        gd /= B if reduction == "batch" else B * K
    return (1 - alpha) * gc / B, alpha * gd
