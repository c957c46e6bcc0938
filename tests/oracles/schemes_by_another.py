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
