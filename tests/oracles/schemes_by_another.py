"""What schemes compute, in float64, from the statements alone, by somebody who had not read the code.

Papers and releases were read, neither the project's schemes nor its present oracles; the values are the releases'.
"""

from __future__ import annotations

import numpy as np

from .maths import Array

# ---------------------------------------------------------------- DOT


def dot_step(
    weight: Array, task: Array | None, taught: Array | None, before: tuple[Array | None, Array | None], *, lr: float,
    momentum: float, delta: float, decay: float, released: bool = False,
) -> tuple[Array, tuple[Array | None, Array | None]]:  # fmt: skip
    """A weight after one step, and its two averages (Zhao et al., 2023, algorithm 1, with what its release adds).

    v_task = g_task + (momentum - delta) v_task, v_taught = g_taught + (momentum + delta) v_taught, and both are gone
    along. An average starts with its gradient. Weights decay in the task's gradient. Where only one gradient is, its
    average has the momentum itself, and weights decay in it; not in the first step of a taught one, as `released`.
    """
    v_task, v_taught = before
    new = np.array(weight)
    if task is not None:
        g = task + decay * weight
        v_task = g if v_task is None else (momentum if taught is None else momentum - delta) * v_task + g
        new = new - lr * v_task
    if taught is not None:
        alone = task is None
        g = taught + decay * weight if alone and not (released and v_taught is None) else taught
        v_taught = g if v_taught is None else (momentum if alone else momentum + delta) * v_taught + g
        new = new - lr * v_taught
    return new, (v_task, v_taught)


# ---------------------------------------------------------------- ARD and RSLAD


def log_softmax(v: Array, temperature: float = 1.0) -> Array:
    v = v / temperature
    most = float(v.max())
    return np.asarray(v - most - np.log(np.exp(v - most).sum()))


def kl(target: Array, said: Array, temperature: float = 1.0) -> float:
    """KL(target || said) of one row of logits."""
    p, q = log_softmax(target, temperature), log_softmax(said, temperature)
    return float((np.exp(p) * (p - q)).sum())


def pgd_step(x: Array, clean: Array, slope: Array, step: float, radius: float, low: float, high: float) -> Array:
    """Up by the slope's sign, then within `radius` of the clean input, then within the values that there are."""
    x = np.clip(x + step * np.sign(slope), clean - radius, clean + radius)
    return np.asarray(np.clip(x, low, high))


def ard(attacked: Array, natural: Array, teacher: Array, label: int, alpha: float, temperature: float) -> float:
    """alpha T^2 KL(t(x) || s(x')) + (1 - alpha) CE(s(x)) of one row (Goldblum et al., 2020, eq. 3).

    The paper writes CE at temperature T, its release has 1; the release also divides KL by the number of classes.
    """
    taught = temperature**2 * kl(teacher, attacked, temperature)
    return float(alpha * taught - (1 - alpha) * log_softmax(natural)[label])


def rslad(attacked: Array, natural: Array, teacher: Array, alpha: float = 5 / 6) -> float:
    """alpha KL(t(x) || s(x')) + (1 - alpha) KL(t(x) || s(x)) of one row (Zi et al., 2021, eq. 6).

    The release divides by the number of classes, and adds 1e-5 in the teacher's logarithm, which has no gradient.
    """
    return alpha * kl(teacher, attacked) + (1 - alpha) * kl(teacher, natural)
