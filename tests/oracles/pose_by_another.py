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
