"""Distribution matching distillation, one sample at a time in NumPy (Yin et al., 2024a, eq. 7 and 8; 2024b, sec. 4).

z_t = A_t x + S_t eps. A denoiser is an estimate of x; the score of noisy data is (A x - z) / S^2. The gradient of the
KL divergence of real from generated data with regard to a sample x is w A (score_fake - score_real); the paper's weight
is w = S^2 / A^2 / mean|x - x_real|.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .maths import Array

#: x seen in z at (alpha, sigma).
Denoiser = Callable[[Array, float, float], Array]


def gradient(x: Array, noise: Array, alpha: float, sigma: float, real: Denoiser, fake: Denoiser) -> Array:
    """By way of scores: w A (score_fake - score_real) at z, w as above."""
    z = alpha * x + sigma * noise
    seen_real, seen_fake = real(z, alpha, sigma), fake(z, alpha, sigma)
    score_real, score_fake = ((alpha * seen - z) / sigma**2 for seen in (seen_real, seen_fake))
    size = float(np.mean([abs(a - b) for a, b in zip(x.ravel(), seen_real.ravel(), strict=True)]))
    weight = sigma**2 / alpha / size
    return weight * (score_fake - score_real)


def fake_loss(x: Array, noise: Array, alpha: float, sigma: float, fake: Denoiser, weight: float) -> float:
    """weight |fake(z) - x|^2, a mean over dimensions: what the fake denoiser learns of generated samples."""
    z = alpha * x + sigma * noise
    return weight * float(np.mean((fake(z, alpha, sigma) - x).ravel() ** 2))


def simulate(
    student: Denoiser, noise: Array, levels: Sequence[tuple[float, float]], noises: Sequence[Array], index: int
) -> Array:
    """Backward simulation: the sample that the student's own sampler has after step `index`, of 0, 1, ...

    levels are the (alpha, sigma) of its times, falling; noises what is added on the way to the second, third, ...
    """
    z = noise
    for k in range(index):
        alpha, sigma = levels[k + 1]
        z = alpha * student(z, *levels[k]) + sigma * noises[k]
    return student(z, *levels[index])


#: How sure a discriminator is, before the sigmoid, that z at (alpha, sigma) is noisy real data.
Critic = Callable[[Array, float, float], float]


def adversarial_value(
    real: Sequence[tuple[Array, Array, float, float]], made: Sequence[tuple[Array, Array, float, float]], critic: Critic
) -> float:
    """E log D(z_real) + E log(1 - D(z_made)), which the discriminator raises (2024b, eq. 5).

    Each of both is a sequence of (x, noise, alpha, sigma); D is a probability.
    """
    p_real = [_probability(critic(a * x + s * n, a, s)) for x, n, a, s in real]
    p_made = [_probability(critic(a * x + s * n, a, s)) for x, n, a, s in made]
    return float(np.mean([np.log(p) for p in p_real]) + np.mean([np.log1p(-p) for p in p_made]))


def adversarial_pull(x: Array, noise: Array, alpha: float, sigma: float, critic: Critic, step: float = 1e-5) -> Array:
    """d(-log D(z)) / dx of one sample, the loss that does not saturate, by central differences of each value."""
    pull = np.zeros(x.size)
    for i in range(x.size):
        sides = []
        for sign in (1, -1):
            moved = x.copy().ravel()
            moved[i] += sign * step
            sides.append(-np.log(_probability(critic(alpha * moved.reshape(x.shape) + sigma * noise, alpha, sigma))))
        pull[i] = (sides[0] - sides[1]) / (2 * step)
    return pull.reshape(x.shape)


def _probability(logit: float) -> float:
    return 1.0 / (1.0 + float(np.exp(-logit)))
