"""A mixture of Gaussians under noise, exactly: density, score, denoiser, velocity, guidance and where the ODE leads.

z = alpha x + sigma eps, where x is drawn from the mixture and eps from N(0, I). Every way to write a process is a pair
(alpha, sigma): variance preserving alpha^2 + sigma^2 = 1, EDM (1, sigma), flow matching (1 - t, t). Points are
``(d,)``, one at a time; alpha = 0 and sigma = 0 are allowed as long as no covariance is singular.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.integrate import solve_ivp

from .maths import Array

#: What a network would say: E[x | z] at (alpha, sigma).
Denoiser = Callable[[Array, float, float], Array]
#: alpha, sigma and their derivatives at a time.
Path = Callable[[float], tuple[float, float, float, float]]


class Mixture:
    """sum_i weights_i N(means_i, covariances_i), of ``(m,)``, ``(m, d)`` and ``(m, d, d)``.

    `classes` ``(m,)`` says which class a part belongs to; by default each is one.
    """

    def __init__(
        self,
        weights: Sequence[float],
        means: Sequence[Sequence[float]],
        covariances: Sequence[Sequence[Sequence[float]]],
        classes: Sequence[int] | None = None,
    ) -> None:
        self.weights = np.array(weights, dtype=np.float64) / sum(weights)
        self.means = np.array(means, dtype=np.float64)
        self.covariances = np.array(covariances, dtype=np.float64)
        self.classes = list(range(len(self.weights))) if classes is None else list(classes)

    @property
    def dimension(self) -> int:
        return int(self.means.shape[1])

    def of_class(self, label: int) -> Mixture:
        """The parts of one class, at weights that sum to 1: what is conditioned on the class."""
        own = [i for i, c in enumerate(self.classes) if c == label]
        return Mixture(self.weights[own], self.means[own], self.covariances[own], [label] * len(own))

    def sample(self, count: int, rng: np.random.Generator) -> Array:
        """Clean points ``(count, d)``."""
        parts = rng.choice(len(self.weights), size=count, p=self.weights)
        roots = [np.linalg.cholesky(c) for c in self.covariances]
        return np.stack([self.means[i] + roots[i] @ rng.normal(size=self.dimension) for i in parts])

    def log_density(self, z: Array, alpha: float, sigma: float) -> float:
        """log p(z), of alpha x + sigma eps."""
        return float(np.logaddexp.reduce(self._log_parts(z, alpha, sigma)))

    def score(self, z: Array, alpha: float, sigma: float) -> Array:
        """d log p(z) / dz."""
        total = np.zeros_like(z)
        for i, share in enumerate(self._shares(z, alpha, sigma)):
            total -= share * np.linalg.solve(self._spread(i, alpha, sigma), z - alpha * self.means[i])
        return total

    def denoiser(self, z: Array, alpha: float, sigma: float) -> Array:
        """E[x | z]: the best estimate of x in the mean square."""
        total = np.zeros_like(z)
        for i, share in enumerate(self._shares(z, alpha, sigma)):
            pull = np.linalg.solve(self._spread(i, alpha, sigma), z - alpha * self.means[i])
            total += share * (self.means[i] + alpha * self.covariances[i] @ pull)
        return total

    def noise(self, z: Array, alpha: float, sigma: float) -> Array:
        """E[eps | z] = -sigma score, at sigma = 0 too."""
        return -sigma * self.score(z, alpha, sigma)

    def v_prediction(self, z: Array, alpha: float, sigma: float) -> Array:
        """E[alpha eps - sigma x | z] (Salimans, Ho, 2022)."""
        return alpha * self.noise(z, alpha, sigma) - sigma * self.denoiser(z, alpha, sigma)

    def flow_velocity(self, z: Array, t: float) -> Array:
        """E[eps - x | z] at (1 - t, t): dz/dt of flow matching, from data at 0 to noise at 1."""
        return self.noise(z, 1 - t, t) - self.denoiser(z, 1 - t, t)

    def class_shares(self, z: Array, alpha: float, sigma: float) -> dict[int, float]:
        """p(class | z)."""
        shares = self._shares(z, alpha, sigma)
        return {c: float(sum(s for s, own in zip(shares, self.classes, strict=True) if own == c)) for c in self.classes}

    def guided(self, z: Array, alpha: float, sigma: float, label: int, scale: float) -> Array:
        """x_u + scale (x_c - x_u), x_c = E[x | z, label] and x_u = E[x | z]: 1 is the condition alone, 0 without it.

        Its score is that of p(z | label)^scale p(z)^(1 - scale), which is not what noise makes of any data unless scale
        is 0 or 1. In the other convention, (1 + w) x_c - w x_u, the scale is 1 + w.
        """
        free = self.denoiser(z, alpha, sigma)
        return free + scale * (self.of_class(label).denoiser(z, alpha, sigma) - free)

    def _spread(self, i: int, alpha: float, sigma: float) -> Array:
        return alpha**2 * self.covariances[i] + sigma**2 * np.eye(self.dimension)

    def _log_parts(self, z: Array, alpha: float, sigma: float) -> Array:
        """log of weight times density, of each part."""
        values = np.zeros(len(self.weights))
        for i in range(len(self.weights)):
            spread, off = self._spread(i, alpha, sigma), z - alpha * self.means[i]
            volume = np.linalg.slogdet(2 * math.pi * spread)[1]
            values[i] = math.log(self.weights[i]) - 0.5 * (off @ np.linalg.solve(spread, off) + volume)
        return values

    def _shares(self, z: Array, alpha: float, sigma: float) -> Array:
        """p(part | z)."""
        parts = self._log_parts(z, alpha, sigma)
        return np.exp(parts - np.logaddexp.reduce(parts))


# ---------------------------------------------------------------- paths and the ODE


def vp(angle: float) -> tuple[float, float, float, float]:
    """(cos u, sin u): every variance-preserving schedule runs along it, at a pace of its own."""
    return math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)


def edm(sigma: float) -> tuple[float, float, float, float]:
    """(1, sigma) (Karras et al., 2022)."""
    return 1.0, sigma, 0.0, 1.0


def flow(t: float) -> tuple[float, float, float, float]:
    """(1 - t, t) (Lipman et al., 2023; Liu et al., 2023), data at 0."""
    return 1 - t, t, -1.0, 1.0


def velocity(denoiser: Denoiser, z: Array, time: float, path: Path) -> Array:
    """dz/dt = alpha' x + sigma' eps of the ODE that keeps p(z_t), with x = denoiser and eps = (z - alpha x) / sigma.

    sigma must not be 0: `Mixture.noise` knows the limit there, a denoiser alone does not.
    """
    alpha, sigma, d_alpha, d_sigma = path(time)
    x = denoiser(z, alpha, sigma)
    return d_alpha * x + d_sigma * (z - alpha * x) / sigma


def solve(denoiser: Denoiser, z: Array, path: Path, start: float, end: float, tolerance: float = 1e-10) -> Array:
    """z at time `end` of the ODE through z at `start`, by Dormand and Prince's method of order 8.

    `tolerance` is relative, per step; a hundredth of it is the absolute one. Neither end may have sigma = 0.
    """
    answer = solve_ivp(
        lambda time, point: velocity(denoiser, point, time, path),
        (start, end),
        z,
        method="DOP853",
        rtol=tolerance,
        atol=tolerance / 100,
    )
    if not answer.success:
        raise ArithmeticError(answer.message)
    return np.array(answer.y[:, -1])


def solve_to_data(mixture: Mixture, z: Array, path: Path, start: float, tolerance: float = 1e-10) -> Array:
    """The clean point at the end of the mixture's own ODE, at time 0 of any of the paths above: sigma = 0 included."""

    def slope(time: float, point: Array) -> Array:
        alpha, sigma, d_alpha, d_sigma = path(time)
        return d_alpha * mixture.denoiser(point, alpha, sigma) + d_sigma * mixture.noise(point, alpha, sigma)

    answer = solve_ivp(slope, (start, 0.0), z, method="DOP853", rtol=tolerance, atol=tolerance / 100)
    if not answer.success:
        raise ArithmeticError(answer.message)
    return np.array(answer.y[:, -1])


# ---------------------------------------------------------------- how far two sets of points are apart


def directions(count: int, dimension: int, rng: np.random.Generator) -> Array:
    """Unit vectors ``(count, dimension)``, evenly over the sphere."""
    drawn = rng.normal(size=(count, dimension))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def wasserstein_line(a: Array, b: Array, order: float = 2.0) -> float:
    """integral over u of |quantile_a(u) - quantile_b(u)|^order, of two sets of numbers of any sizes; no root."""
    a, b = np.sort(a), np.sort(b)
    edges = sorted({i / len(a) for i in range(len(a) + 1)} | {j / len(b) for j in range(len(b) + 1)})
    total = 0.0
    for low, high in itertools.pairwise(edges):
        middle = (low + high) / 2
        gap = abs(a[int(middle * len(a))] - b[int(middle * len(b))])
        total += (high - low) * gap**order
    return float(total)


def sliced_wasserstein(a: Array, b: Array, along: Array, order: float = 2.0) -> float:
    """(mean over directions of the distance^order along it)^(1 / order) (Rabin et al., 2012; Bonneel et al., 2015)."""
    return float(np.mean([wasserstein_line(a @ d, b @ d, order) for d in along]) ** (1 / order))
