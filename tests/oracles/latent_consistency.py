"""A slow float64 oracle of the latent consistency distillation loss, for one sample.

Written from a statement of the paper's algorithm (Luo et al., 2023, section 4 and algorithm 1) by somebody who read no
implementation of the loss. The time -1 (any negative time) stands for the clean sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Denoiser = Callable[[Array, int], Array]

SCALING = 10.0
SIGMA_DATA = 0.5


def _alpha(abar: Array, t: int) -> float:
    return 1.0 if t < 0 else math.sqrt(float(abar[t]))


def _sigma(abar: Array, t: int) -> float:
    return 0.0 if t < 0 else math.sqrt(1.0 - float(abar[t]))


def _grid(total: int, steps: int) -> list[int]:
    """The trailing times from noise to data, and the clean sample (-1) after the last."""
    if steps < 1 or total % steps != 0:
        raise ValueError(f"{steps} steps do not divide {total} timesteps")
    times: list[int] = []
    t = total - 1
    for _ in range(steps):
        times.append(t)
        t -= total // steps
    times.append(t)
    return times


def _psi(abar: Array, denoiser: Denoiser, z: Array, t: int, to: int) -> Array:
    """The change of z by one deterministic DDIM step from t to `to` under one condition's denoiser."""
    x0 = np.asarray(denoiser(z.copy(), t), dtype=np.float64)
    eps = (z - _alpha(abar, t) * x0) / _sigma(abar, t)
    return _alpha(abar, to) * x0 + _sigma(abar, to) * eps - z


def _consistency(denoiser: Denoiser, z: Array, t: int) -> Array:
    if t < 0:
        return z
    scaled = SCALING * t
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / math.sqrt(scaled**2 + SIGMA_DATA**2)
    return c_skip * z + c_out * np.asarray(denoiser(z.copy(), t), dtype=np.float64)


def loss(
    abar: Array,
    student: Denoiser,
    target: Denoiser,
    told: Denoiser,
    untold: Denoiser,
    x: Array,
    noise: Array,
    index: int,
    steps: int,
    w: float,
    *,
    c: float | None,
) -> float:
    """The loss of one sample x at the index-th skipping step, counted from the data's side."""
    abar = np.asarray(abar, dtype=np.float64)
    x = np.asarray(x, dtype=np.float64)
    noise = np.asarray(noise, dtype=np.float64)
    if not 0 <= index < steps:
        raise ValueError(f"index {index} is not one of {steps} steps")
    rising = sorted(_grid(len(abar), steps))
    to, t = rising[index], rising[index + 1]

    z = _alpha(abar, t) * x + _sigma(abar, t) * noise
    moved = z + (1.0 + w) * _psi(abar, told, z, t, to) - w * _psi(abar, untold, z, t, to)
    ours = _consistency(student, z, t)
    theirs = _consistency(target, moved, to)
    if ours.shape != x.shape or theirs.shape != x.shape:
        raise ValueError("a denoiser's output has not the sample's shape")

    total = 0.0
    count = 0
    for a, b in zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True):
        diff = a - b
        total += diff * diff if c is None else math.sqrt(diff * diff + c * c) - c
        count += 1
    return total / count


def guidance_waves(w: float, width: int) -> list[float]:
    """The embedding of the guidance scale w: sines, then cosines, then one zero when the width is odd."""
    half = width // 2
    if half < 2:
        raise ValueError(f"width {width} leaves the frequencies undefined: at least 4 is needed")
    angles: list[float] = []
    for i in range(half):
        angles.append(1000.0 * w * 10000.0 ** (-i / (half - 1)))
    waves: list[float] = []
    for angle in angles:
        waves.append(math.sin(angle))
    for angle in angles:
        waves.append(math.cos(angle))
    if width % 2 == 1:
        waves.append(0.0)
    return waves
