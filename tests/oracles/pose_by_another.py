"""Slow float64 oracle of integral pose distillation (Xu et al., IEEE SPL 2020), after its abstract: the paper's
equations were not at hand, and its structure term here is a design of ours. NumPy only."""

import math

import numpy as np


def soft_argmax(h, beta=1.0):
    """h (J, H, W): the expected (x, y) of each joint in positions under softmax(beta h)."""
    joints, height, width = h.shape
    out = np.zeros((joints, 2))
    for j in range(joints):
        e = np.exp(beta * (h[j] - h[j].max()))
        p = e / e.sum()
        for y in range(height):
            for x in range(width):
                out[j] += p[y, x] * np.array([x, y])
    return out


def distances(u, visible):
    """Of visible pairs i < j, divided by their mean."""
    n = len(u)
    d = {
        (i, j): math.sqrt(((u[i] - u[j]) ** 2).sum())
        for i in range(n) for j in range(i + 1, n) if visible[i] and visible[j]
    }  # fmt: skip
    mean = sum(d.values()) / len(d) if d else 1.0
    return {k: v / mean for k, v in d.items()}


def smooth_l1(a, b, delta=1.0):
    e = abs(a - b)
    return 0.5 * e * e / delta if e < delta else e - 0.5 * delta


def structure(student, teacher, visible, beta=1.0, delta=1.0):
    """Mean over the visible pairs of the batch; 0 without any."""
    total, n = 0.0, 0
    for s, t, v in zip(student, teacher, visible, strict=True):
        ds, dt = distances(soft_argmax(s, beta), v), distances(soft_argmax(t, beta), v)
        for pair in ds:
            total += smooth_l1(ds[pair], dt[pair], delta)
            n += 1
    return total / n if n else 0.0


def maps_mse(one, other, visible):
    """Mean square over the positions of visible joints."""
    total = sum(
        ((one[b][j] - other[b][j]) ** 2).sum() for b in range(len(one)) for j in range(one.shape[1]) if visible[b][j]
    )
    return total / max(visible.sum() * one.shape[2] * one.shape[3], 1)


def inputs(seed=0, B=3, J=5, H=6, W=7):
    r = np.random.RandomState(seed)
    return r.randn(B, J, H, W), r.randn(B, J, H, W), r.rand(B, J, H, W), r.rand(B, J) > 0.25


# ---------------------------------------------------------------- dynamic kernels (Nie et al., 2019), after a summary


def match(features, kernels):
    """features (B, C, H, W) of a frame, kernels (B, J, C, k, k) of the one before: each sample's correlation with its
    own, zeros around: (B, J, H, W)."""
    items, channels, height, width = features.shape
    joints, k = kernels.shape[1], kernels.shape[-1]
    pad = k // 2
    out = np.zeros((items, joints, height, width))
    for b in range(items):
        x = np.zeros((channels, height + 2 * pad, width + 2 * pad))
        x[:, pad : pad + height, pad : pad + width] = features[b]
        for j in range(joints):
            for y in range(height):
                for z in range(width):
                    out[b, j, y, z] = (x[:, y : y + k, z : z + k] * kernels[b, j]).sum()
    return out


def heatmap_loss(maps, right):
    """maps and right (T, B, J, H, W): the sum over frames of each one's mean of squares."""
    return sum(((m - r) ** 2).mean() for m, r in zip(maps, right, strict=True))


def reconstruction(again, maps):
    """The sum over changes from frame to frame of the mean square by which they were made again wrongly."""
    return sum(((again[i] - (maps[i + 1] - maps[i])) ** 2).mean() for i in range(len(maps) - 1))


def began(real, fake, kappa, gamma=0.5, rate=1e-3):
    """The critic's loss, the student's, the next kappa (Berthelot et al., 2017)."""
    return real - kappa * fake, fake, min(max(kappa + rate * (gamma * real - fake), 0.0), 1.0)
