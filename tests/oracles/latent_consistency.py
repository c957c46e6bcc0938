"""Latent consistency distillation, one sample at a time (Luo et al., 2023, sections 4.2 and 4.3, algorithm 1).

Written from the paper by the implementation's own author, and so compared with the release beside it (see the test).

w is the paper's: the scale of guidance less 1. A denoiser is x0(z, t) here, of the condition or of none.
"""

from __future__ import annotations

import math

from .diffusion import Denoiser, Schedule, consistency_function, trailing
from .maths import Array


def guided_step(
    schedule: Schedule, told: Denoiser, untold: Denoiser, z: Array, t: int, to: int, w: float
) -> Array:  # fmt: skip
    """z + (1 + w) Psi(z, t, to, c) - w Psi(z, t, to, nothing), Psi the change of z by one DDIM step (eq. 15)."""

    def change(predict: Denoiser) -> Array:
        x0 = predict(z, t)
        eps = (z - schedule.alpha(t) * x0) / schedule.sigma(t)
        return schedule.alpha(to) * x0 + schedule.sigma(to) * eps - z

    return z + (1 + w) * change(told) - w * change(untold)


def loss(
    schedule: Schedule, student: Denoiser, target: Denoiser, told: Denoiser, untold: Denoiser, x: Array, noise: Array,
    index: int, steps: int, w: float, *, c: float | None,
) -> float:  # fmt: skip
    """d(f(z_t, w, c, t), f_target(z_s, w, c, s)), s = t - T / steps; d a mean of squares, or of sqrt(d^2 + c^2) - c."""
    times = trailing(len(schedule.table), steps)
    t, to = times[steps - 1 - index], times[steps - index]
    z = schedule.alpha(t) * x + schedule.sigma(t) * noise
    z_to = guided_step(schedule, told, untold, z, t, to, w)
    said, aim = consistency_function(student, z, t), consistency_function(target, z_to, to)
    squares = [float(a - b) ** 2 for a, b in zip(said.ravel(), aim.ravel(), strict=True)]
    if c is None:
        return sum(squares) / len(squares)
    return sum(math.sqrt(square + c**2) - c for square in squares) / len(squares)


def guidance_waves(w: float, width: int) -> list[float]:
    """The scale as the network is told it: sines, then cosines, of 1000 w at rates 10000^(-i / (half - 1))."""
    half = width // 2
    angles = [1000 * w * 10000 ** (-i / (half - 1)) for i in range(half)]
    return [*map(math.sin, angles), *map(math.cos, angles), *[0.0] * (width % 2)]
