"""PCM, TCD, CTM, LADD and ADD in float64, from the statements alone, by somebody who had not read the code.

Papers and releases were read, neither the project's methods nor its present oracles; the values are those of the
releases of PCM (train_pcm_lora_sd15.py), of TCD's community training and of CTM, to 1e-14. A network is called on one
sample without a batch axis. alpha_bar is the table of a process that preserves the variance, alpha_bar[t] of the
timesteps t; z_t = sqrt(alpha_bar[t]) x + sqrt(1 - alpha_bar[t]) eps. A loss is a mean over a sample's values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .maths import Array

#: What a network says of z at a time: eps, or the clean sample.
Net = Callable[[Array, int], Array]
Sees = Callable[[Array, float], Array]
#: g(x, t, s) of CTM.
Jumps = Callable[[Array, float, float], Array]


def distance(a: Array, b: Array, kind: str, c: float) -> float:
    """A mean over elements of (a - b)^2, or of sqrt((a - b)^2 + c^2) - c, which the releases of PCM call huber."""
    total = 0.0
    for p, q in zip(np.ravel(a), np.ravel(b), strict=True):
        square = float(p - q) ** 2
        total += square if kind == "l2" else math.sqrt(square + c * c) - c
    return total / np.size(a)


def eps_to_x0(z: Array, eps: Array, level: float) -> Array:
    return (z - math.sqrt(1 - level) * eps) / math.sqrt(level)


def ddim_jump(z: Array, eps: Array, level: float, to: float) -> Array:
    """The deterministic step between two levels alpha_bar."""
    return math.sqrt(to) * eps_to_x0(z, eps, level) + math.sqrt(1 - to) * eps


def exponential_jump(z: Array, eps: Array, level: float, to: float) -> Array:
    """TCD's trajectory function of first order: (sigma_s / sigma_t) z - alpha_s (e^-h - 1) x, h the growth of
    log(alpha / sigma); in its limit at the clean sample."""
    x = eps_to_x0(z, eps, level)
    if to == 1:
        return x
    h = (math.log(to / (1 - to)) - math.log(level / (1 - level))) / 2
    return math.sqrt((1 - to) / (1 - level)) * z - math.sqrt(to) * (math.exp(-h) - 1) * x


def grid_of(timesteps: int, count: int) -> tuple[list[int], list[int]]:
    """Times of LCM's grid, rising, and the one below each; below the first that is time 0, which is not clean."""
    times = [(i + 1) * (timesteps // count) - 1 for i in range(count)]
    return times, [0, *times[:-1]]


def pcm_ends(timesteps: int, count: int, phases: int) -> list[int]:
    """Where the jump from each time of the grid ends: the lower edge of its phase (PCM, section 3.1).

    The paper leaves open where the edges lie; the release has them at every floor(m count / phases)-th of the grid.
    """
    _, before = grid_of(timesteps, count)
    edges = [m * count // phases for m in range(phases)]
    return [before[max(e for e in edges if e <= i)] for i in range(count)]


class Trajectory(NamedTuple):
    loss: float
    student: Array
    target: Array


def trajectory(
    x: Array, noise: Array, times: tuple[int, int, int], alpha_bar: Sequence[float], teacher: Net, student: Net,
    target: Net, *, w: float = 0.0, unconditional: Net | None = None, kind: str = "l2", c: float = 1e-3, tcd: bool,
) -> Trajectory:  # fmt: skip
    """d(f(z_t, t, s), f-(z_t', t', s)) of times t > t' >= s, z_t' one step of the guided teacher from z_t.

    PCM (Wang et al., 2024, eq. 5 to 8) jumps by DDIM to the edge s of its phase, TCD (Zheng et al., 2024, algorithm 1)
    by `exponential_jump` to any s. The teacher says eps + w (eps - eps_unconditional).
    """
    jump = exponential_jump if tcd else ddim_jump
    t, after, end = (float(alpha_bar[k]) for k in times)
    z = math.sqrt(t) * x + math.sqrt(1 - t) * noise
    eps = teacher(z, times[0])
    if unconditional is not None:
        eps = eps + w * (eps - unconditional(z, times[0]))
    reached = ddim_jump(z, eps, t, after)
    arrived = reached if times[1] == times[2] else jump(reached, target(reached, times[1]), after, end)
    said = jump(z, student(z, times[0]), t, end)
    return Trajectory(distance(said, arrived, kind, c), said, arrived)


def strategic_step(
    z: Array, eps: Array, t: int, after: int, alpha_bar: Sequence[float], gamma: float, noise: Array | None
) -> Array:
    """One step of TCD's strategic stochastic sampling (algorithm 2): down to floor((1 - gamma) t'), up by noise to t'.

    The last step has none.
    """
    low = math.floor((1 - gamma) * after)
    down = ddim_jump(z, eps, float(alpha_bar[t]), float(alpha_bar[low]))
    if noise is None:
        return down
    kept = float(alpha_bar[after]) / float(alpha_bar[low])
    return math.sqrt(kept) * down + math.sqrt(1 - kept) * noise


# ---------------------------------------------------------------- CTM


def karras_sigmas(count: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> list[float]:
    """EDM's falling grid of noise."""
    a, b = low ** (1 / rho), high ** (1 / rho)
    return [(b + i / (count - 1) * (a - b)) ** rho for i in range(count)]


def ctm_jump(g: Jumps, x: Array, t: float, s: float) -> Array:
    """G(x, t, s) = s / t x + (1 - s / t) g(x, t, s) (Kim et al., 2024, eq. 5)."""
    return s / t * x + (1 - s / t) * g(x, t, s)


def euler(seen: Sees, x: Array, a: float, b: float) -> Array:
    return x + (b - a) * (x - seen(x, a)) / a


def heun(seen: Sees, x: Array, a: float, b: float) -> Array:
    """EDM's step, which has no correction where it ends at 0; the release corrects all others."""
    first = (x - seen(x, a)) / a
    moved = x + (b - a) * first
    return moved if b == 0 else x + (b - a) * (first + (moved - seen(moved, b)) / b) / 2


def ctm_loss(
    x: Array, noise: Array, sigmas: Sequence[float], s: float, g: Jumps, rests: Jumps, seen: Sees,
    step: Callable[[Sees, Array, float, float], Array] = heun, *, inner: Jumps | None = None, end: float = 0.0,
) -> float:  # fmt: skip
    """|G-(G(x_t, t, s), s, 0) - G-(G-(x_u, u, s), s, 0)|^2 / d (eq. 7 to 9), x_u by the solver through all `sigmas`.

    Args:
        rests: g of weights that do not learn. The release has the average in the outer jumps and the network itself
            in the inner one of the target (`inner`), and ends at sigma_min.
    """
    t, u = sigmas[0], sigmas[-1]

    def to_end(x: Array) -> Array:
        return x if s == end else ctm_jump(rests, x, s, end)

    z = reached = x + t * noise
    for a, b in pairwise(sigmas):
        reached = step(seen, reached, a, b)
    aim = to_end(reached if s == u else ctm_jump(inner or rests, reached, u, s))
    return distance(to_end(ctm_jump(g, z, t, s)), aim, "l2", 0.0)


def ctm_dsm_loss(x: Array, noise: Array, t: float, g: Jumps, sigma_data: float = 0.5) -> float:
    """(t^2 + d^2) / (t d)^2 |x - g(x_t, t, t)|^2 / d (eq. 10), with Karras et al.'s weight, as in the release."""
    weight = (t * t + sigma_data**2) / (t * sigma_data) ** 2
    return weight * distance(g(x + t * noise, t, t), x, "l2", 0.0)


# ---------------------------------------------------------------- LADD and ADD


def noised_again(x: Array, noise: Array, level: float, kind: str) -> Array:
    """Of a rectified flow at time `level`, of EDM at that sigma, of a process that keeps the variance at alpha_bar."""
    if kind == "flow":
        return (1 - level) * x + level * noise
    return x + level * noise if kind == "edm" else math.sqrt(level) * x + math.sqrt(1 - level) * noise


def ladd_losses(
    made: Array, real: Array, noises: tuple[Array, Array], level: float, kind: str,
    features: Callable[[Array], Sequence[Array]], heads: Sequence[Callable[[Array], float]],
) -> tuple[float, float]:  # fmt: skip
    """What student and heads minimise (LADD, section 3; ADD, eq. 2 and 3): the hinge loss summed over the heads."""
    student = critic = 0.0
    told = [features(noised_again(x, n, level, kind)) for x, n in zip((made, real), noises, strict=True)]
    for head, of_made, of_real in zip(heads, *told, strict=True):
        student -= head(of_made)
        critic += max(0.0, 1 - head(of_real)) + max(0.0, 1 + head(of_made))
    return student, critic


def r1_penalty(slopes: Sequence[Array]) -> float:
    """|dD_k / dF_k|^2 summed over the heads, by the features that each reads (ADD, section 3.2)."""
    return sum(float(v) ** 2 for slope in slopes for v in np.ravel(slope))


def add_distillation(
    x: Array, noise: Array, t: int, alpha_bar: Sequence[float], teacher: Net
) -> tuple[float, Array]:  # fmt: skip
    """alpha_t |x - x_teacher|^2, a sum over elements, and its gradient, which the teacher is no part of (ADD, eq. 4).

    Of exponential weights; those of score distillation and of NFSD are others.
    """
    level = float(alpha_bar[t])
    z = math.sqrt(level) * x + math.sqrt(1 - level) * noise
    off = x - eps_to_x0(z, teacher(z, t), level)
    return math.sqrt(level) * sum(float(v) ** 2 for v in np.ravel(off)), 2 * math.sqrt(level) * off
