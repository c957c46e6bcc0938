"""Few-step distillation beyond consistency and DMD2, for one sample in float64 NumPy, from the papers' equations.

By the same hand as the methods; `few_step_by_another` has most of them by somebody else, and a test that they agree.

Straight paths: y = (1 - s) x + s eps, s from 0 (data) to 1 (noise); a velocity is an estimate of eps - x. Noisy samples
z = A x + S eps; a denoiser is an estimate of x, the score of noisy data is (A x - z) / S^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from .maths import Array

#: u(y, s, r): the mean velocity from level s down to r.
Mean = Callable[[Array, float, float], Array]
#: x seen in z at (A, S).
Denoiser = Callable[[Array, float, float], Array]


# ---------------------------------------------------------------- mean velocities


def meanflow_target(u: Mean, v: Array, y: Array, s: float, r: float, step: float = 1e-4) -> Array:
    """v - (s - r) d u(y(s), s, r) / ds along dy/ds = v with r held (Geng et al., 2025, eq. 10), by Richardson."""

    def central(h: float) -> Array:
        return (u(y + h * v, s + h, r) - u(y - h * v, s - h, r)) / (2 * h)

    return v - (s - r) * (4 * central(step / 2) - central(step)) / 3


def meanflow_loss(said: Array, target: Array, power: float, constant: float) -> float:
    """|e|^2 / (|e|^2 + c)^p with |e|^2 a mean over dimensions: the weight is no part of the gradient."""
    square = float(np.mean((said - target).ravel() ** 2))
    return square / (square + constant) ** power


def shortcut_target(u: Mean, y: Array, s: float, middle: float, end: float) -> Array:
    """The velocity of a straight line to where two steps lead, the first to `middle` (Frans et al., 2025, eq. 5)."""
    there = y + (middle - s) * u(y, s, middle)
    arrived = there + (end - middle) * u(there, middle, end)
    return (arrived - y) / (end - s)


def reflow_loss(velocity: Callable[[Array, float], Array], noise: Array, x: Array, s: float) -> float:
    """|(eps - x) - v|^2 on the line of a pair (Liu et al., 2023, eq. 1), a mean over dimensions."""
    return float(np.mean((noise - x - velocity(x + s * (noise - x), s)).ravel() ** 2))


# ---------------------------------------------------------------- critics


def sid_loss(x: Array, noise: Array, A: float, S: float, real: Denoiser, fake: Denoiser, alpha: float) -> float:
    """By way of scores (Zhou et al., 2024, eq. 23): w d . ((s_real - s_x) - alpha d), d = s_real - s_fake, a mean.

    s_x is the score of z given x, -eps / S; w = S^4 / A^2 over mean|x - real(z)|, which has no gradient.
    """
    return _sid_unweighted(x, noise, A, S, real, fake, alpha) / _off(x, real(A * x + S * noise, A, S))


def sid_gradient(
    x: Array, noise: Array, A: float, S: float, real: Denoiser, fake: Denoiser, alpha: float, step: float = 1e-5
) -> Array:
    """With regard to x, through both denoisers, by central differences of each value."""
    found, size = np.zeros(x.size), _off(x, real(A * x + S * noise, A, S))
    for i in range(x.size):
        move = np.zeros(x.size)
        move[i] = step
        sides = [
            _sid_unweighted(x + sign * move.reshape(x.shape), noise, A, S, real, fake, alpha) for sign in (1.0, -1.0)
        ]
        found[i] = (sides[0] - sides[1]) / (2 * step) / size
    return found.reshape(x.shape)


def _off(x: Array, seen: Array) -> float:
    return sum(abs(a - b) for a, b in zip(x.ravel(), seen.ravel(), strict=True)) / x.size


def _sid_unweighted(x: Array, noise: Array, A: float, S: float, real: Denoiser, fake: Denoiser, alpha: float) -> float:
    z = A * x + S * noise
    s_real, s_fake, s_x = ((A * of - z) / S**2 for of in (real(z, A, S), fake(z, A, S), x))
    d = s_real - s_fake
    return S**4 / A**2 * float(np.mean(d * ((s_real - s_x) - alpha * d)))


def moment_losses(made: Array, z: Array, A: float, S: float, real: Denoiser, fake: Denoiser) -> tuple[float, Array]:
    """The auxiliary denoiser's |x~ - g|^2 + |f - g|^2, and the student's gradient g - f in x~; f is the teacher's.

    Salimans et al. (2024), algorithm 2 with w = 1, means over dimensions.
    """
    f, g = real(z, A, S), fake(z, A, S)
    return float(np.mean((made - g) ** 2) + np.mean((f - g) ** 2)), (g - f) / made.size


#: f of f-divergences D = E_fake f(p_real / p_fake) (Xu et al., 2025, table 1), up to factors.
DIVERGENCES: dict[str, Callable[[float], float]] = {
    "reverse_kl": lambda r: -math.log(r),
    "forward_kl": lambda r: r * math.log(r),
    "jensen_shannon": lambda r: r * math.log(r) - (r + 1) * math.log((r + 1) / 2),
    "hellinger": lambda r: 1 - math.sqrt(r),
    "jeffreys": lambda r: (r - 1) * math.log(r),
    "softened_reverse_kl": lambda r: (r + 1) * math.log((r + 1) / r),
}


def divergence_weights(name: str, ratios: Sequence[float], step: float = 1e-3) -> Array:
    """f''(r) r^2 of each ratio over their mean, f'' by differences."""
    f = DIVERGENCES[name]

    def second(r: float) -> float:
        def about(h: float) -> float:
            return (f(r + h) - 2 * f(r) + f(r - h)) / h**2

        h = step * r
        return (4 * about(h / 2) - about(h)) / 3

    h = np.array([second(r) * r**2 for r in ratios])
    return h / h.mean()


# ---------------------------------------------------------------- improved consistency training


def ict_count(k: int, K: int, first: int, last: int) -> int:
    """N(k) (Song and Dhariwal, 2024, eq. 14 and table 1): doubled every K' steps up to the last, and one."""
    every = math.floor(K / (math.log2(math.floor(last / first)) + 1))
    intervals, passed = first, k
    while passed >= every and intervals < last:
        intervals, passed = 2 * intervals, passed - every
    return min(intervals, last) + 1


def ict_levels(count: int, low: float, high: float, rho: float) -> list[float]:
    """sigma_1 < ... < sigma_N (Karras et al., 2022, eq. 5)."""
    a, b = low ** (1 / rho), high ** (1 / rho)
    return [(a + i / (count - 1) * (b - a)) ** rho for i in range(count)]


def ict_shares(levels: Sequence[float], mean: float, std: float) -> list[float]:
    """p(sigma_i), i < N: the normal distribution of log sigma between neighbours (section 3.5), scaled to the sum 1."""
    marks = [math.erf((math.log(s) - mean) / (math.sqrt(2) * std)) for s in levels]
    parts = [b - a for a, b in pairwise(marks)]
    return [part / sum(parts) for part in parts]


def ict_loss(f: Callable[[Array, float], Array], x: Array, noise: Array, low: float, high: float) -> float:
    """(sqrt(|f(x + high eps, high) - f(x + low eps, low)|^2 + c^2) - c) / (high - low), c = 0.00054 sqrt(d)."""
    aim = f(x + low * noise, low) if low > 0 else x
    c = 0.00054 * math.sqrt(x.size)
    off = float(np.sum((f(x + high * noise, high) - aim) ** 2))
    return (math.sqrt(off + c**2) - c) / (high - low)
