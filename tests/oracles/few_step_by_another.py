"""Slow float64 oracles of few-step distillation targets and losses.

Written from the papers' statements by somebody who read no implementation: neither the project's code, nor its tests,
nor its present oracles. Every array is float64. A time or a level is one number, or one per sample: (n,) against
(n, ...) is read per sample; the callables get it in the shape it came in. In every batch axis 0 is the sample.
Derivatives are sixth-order central differences (callables must be smooth and float64: a ReLU's kink or a float32
network spoils them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Time = float | Array
# (y, from, to) -> mean velocity
Mean = Callable[[Array, Time, Time], Array]
# (z, A, S) -> clean sample
Denoiser = Callable[[Array, Time, Time], Array]

# f'(0) ~ sum of weight * (f(k h) - f(-k h)) / h; the error is h^6 f^(7) / 140
_STENCIL = ((1, 3.0 / 4.0), (2, -3.0 / 20.0), (3, 1.0 / 60.0))


def _float(values: object) -> Array:
    return np.asarray(values, dtype=np.float64)


def _per_sample(time: Time, like: Array) -> Array:
    """The time in a shape that multiplies `like`."""
    time = _float(time)
    if time.ndim == 1 and like.ndim > 1 and time.shape[0] == like.shape[0]:
        return time.reshape((-1,) + (1,) * (like.ndim - 1))
    return time


def meanflow_target(u: Mean, v: Array | Callable[[Array, Time], Array], y: Array, s: Time, r: Time) -> Array:
    """v - (s - r) * (d/ds) u(y(s), s, r), with dy/ds = v, ds/ds = 1, dr/ds = 0.

    v is the velocity's values at (y, s), or a function (y, s) that gives them. Only its value at (y, s) counts: a first
    derivative along the curved path is that along its tangent.
    """
    y, s, r = _float(y), _float(s), _float(r)
    velocity = _float(v(y, s)) if callable(v) else _float(v)
    h = 5e-4 / max(1.0, float(np.max(np.abs(velocity))))
    total = np.zeros_like(y)
    for k, weight in _STENCIL:
        ahead = _float(u(y + k * h * velocity, s + k * h, r))
        behind = _float(u(y - k * h * velocity, s - k * h, r))
        total = total + weight * (ahead - behind) / h
    return velocity - _per_sample(s - r, y) * total


def meanflow_loss(said: Array, target: Array, power: float, constant: float) -> float:
    """e / (e + constant)^power, with e the mean squared error over all the elements given.

    The paper weighs per sample: call it on each sample, and average, for that.
    """
    said, target = _float(said).ravel(), _float(target).ravel()
    error = 0.0
    for a, b in zip(said, target, strict=True):
        error += float(a - b) ** 2
    error /= said.size
    return float(error / (error + constant) ** power)


def shortcut_target(u: Mean, y: Array, s: Time, middle: Time, end: Time) -> Array:
    """The velocity whose one step from s to end arrives where s -> middle -> end arrives."""
    y, s, middle, end = _float(y), _float(s), _float(middle), _float(end)
    half_way = y + _per_sample(middle - s, y) * _float(u(y, s, middle))
    arrival = half_way + _per_sample(end - middle, y) * _float(u(half_way, middle, end))
    return (arrival - y) / _per_sample(end - s, y)


def reflow_loss(velocity: Callable[[Array, Time], Array], noise: Array, x: Array, s: Time) -> float:
    """Mean squared error of velocity((1 - s) x + s noise, s) against noise - x."""
    noise, x = _float(noise), _float(x)
    share = _per_sample(s, x)
    point = (1.0 - share) * x + share * noise
    error = _float(velocity(point, s)) - (noise - x)
    return float(np.sum(error * error) / x.size)


def _sid_norm(x: Array, real: Array) -> Array:
    """mean |x - x_real| of each sample, repeated over its elements."""
    if x.ndim < 2:
        raise ValueError("axis 0 is the sample: x must be (n, ...)")
    norm = np.empty_like(x)
    for i in range(x.shape[0]):
        norm[i] = float(np.mean(np.abs(x[i] - real[i])))
    return norm


def _sid_value(
    x: Array, noise: Array, A: Time, S: Time, real: Denoiser, fake: Denoiser, alpha: float, norm: Array | None
) -> float:
    z = _per_sample(A, x) * x + _per_sample(S, x) * noise
    x_real, x_fake = _float(real(z, A, S)), _float(fake(z, A, S))
    if norm is None:
        norm = _sid_norm(x, x_real)
    difference = x_real - x_fake
    terms = difference * ((x_real - x) - alpha * difference) / norm
    return float(np.sum(terms) / x.size)


def sid_loss(x: Array, noise: Array, A: Time, S: Time, real: Denoiser, fake: Denoiser, alpha: float) -> float:
    """Mean over elements of (x_real - x_fake) [(x_real - x) - alpha (x_real - x_fake)] / mean |x - x_real|.

    No other factor depends on the level: the paper's omega(t) a_t^2 / sigma_t^4 is the whole of the normalisation.
    """
    return _sid_value(_float(x), _float(noise), A, S, real, fake, alpha, None)


def sid_gradient(x: Array, noise: Array, A: Time, S: Time, real: Denoiser, fake: Denoiser, alpha: float) -> Array:
    """d sid_loss / dx through x, z and both denoisers, with mean |x - x_real| held at its value."""
    x, noise = _float(x), _float(noise)
    z = _per_sample(A, x) * x + _per_sample(S, x) * noise
    held = _sid_norm(x, _float(real(z, A, S)))
    gradient = np.zeros_like(x)
    h = 2e-4
    for index in np.ndindex(*x.shape):
        for k, weight in _STENCIL:
            ahead, behind = x.copy(), x.copy()
            ahead[index] += k * h
            behind[index] -= k * h
            rise = _sid_value(ahead, noise, A, S, real, fake, alpha, held)
            rise -= _sid_value(behind, noise, A, S, real, fake, alpha, held)
            gradient[index] += weight * rise / h
    return gradient


def moment_losses(made: Array, z: Array, A: Time, S: Time, real: Denoiser, fake: Denoiser) -> tuple[float, Array]:
    """The auxiliary denoiser's loss, and the student's gradient in `made` of mean(made * stop[g - f])."""
    made, z = _float(made), _float(z)
    f, g = _float(real(z, A, S)), _float(fake(z, A, S))
    auxiliary = float(np.sum((made - g) ** 2) / made.size + np.sum((f - g) ** 2) / made.size)
    return auxiliary, (g - f) / made.size


def divergence_weights(name: str, ratios: Array) -> Array:
    """h(r) = f''(r) r^2, over its mean; constant factors of f cancel."""
    ratios = _float(ratios)
    h = np.empty_like(ratios)
    for index in np.ndindex(*ratios.shape):
        r = float(ratios[index])
        if name == "reverse_kl":  # f' = -1/r, f'' = 1/r^2
            h[index] = 1.0
        elif name == "forward_kl":  # f' = log r + 1, f'' = 1/r
            h[index] = r
        elif name == "jensen_shannon":  # f' = log r - log((r+1)/2), f'' = 1/r - 1/(r+1) = 1/(r (r+1))
            h[index] = r / (r + 1.0)
        elif name == "hellinger":  # f' = -r^(-1/2)/2, f'' = r^(-3/2)/4
            h[index] = math.sqrt(r) / 4.0
        else:
            raise ValueError(name)
    return h / (np.sum(h) / h.size)


def ict_count(k: int, K: int, first: int, last: int) -> int:
    """N(k): how many levels; the intervals are one fewer."""
    stage = math.floor(K / (math.log2(last // first) + 1.0))
    if stage < 1:
        raise ValueError("fewer iterations than stages: K' is 0 and N(k) undefined")
    return int(min(first * 2 ** (k // stage), last) + 1)


def ict_levels(count: int, low: float, high: float, rho: float) -> list[float]:
    """Karras levels, ascending."""
    if count < 2:
        raise ValueError("two levels at least")
    bottom, top = low ** (1.0 / rho), high ** (1.0 / rho)
    return [float((bottom + i / (count - 1) * (top - bottom)) ** rho) for i in range(count)]


def ict_shares(levels: Sequence[float], mean: float, std: float) -> list[float]:
    """Probability of each interval (levels[i], levels[i + 1]): one fewer than the levels; they sum to 1."""
    at = []
    for level in levels:
        log = math.log(level) if level > 0 else -math.inf
        at.append(math.erf((log - mean) / (math.sqrt(2.0) * std)))
    masses = [at[i + 1] - at[i] for i in range(len(at) - 1)]
    total = math.fsum(masses)
    return [mass / total for mass in masses]


def ict_loss(f: Callable[[Array, float], Array], x: Array, noise: Array, low: float, high: float) -> float:
    """One sample's pseudo-Huber distance over (high - low); all axes of x are the sample's elements."""
    x, noise = _float(x), _float(noise)
    student = _float(f(x + high * noise, high))
    target = x if low == 0 else _float(f(x + low * noise, low))
    c = 0.00054 * math.sqrt(x.size)
    square = 0.0
    for a, b in zip(student.ravel(), target.ravel(), strict=True):
        square += float(a - b) ** 2
    return float((math.sqrt(square + c * c) - c) / (high - low))


def kdcl_target(logits: Sequence[Array], labels: npt.ArrayLike, *, how: str = "min_logit") -> Array:
    """The teacher's logits (n, c): of the best peer in each row, or the least of the peers' shifted logits."""
    peers = [_float(peer) for peer in logits]
    labels = np.asarray(labels)
    target = np.empty_like(peers[0])
    rows, classes = target.shape
    for i in range(rows):
        label = int(labels[i])
        if how == "naive":
            losses = []
            for peer in peers:
                top = float(np.max(peer[i]))
                log_sum = top + math.log(sum(math.exp(float(value) - top) for value in peer[i]))
                losses.append(log_sum - float(peer[i, label]))
            target[i] = peers[losses.index(min(losses))][i]  # of equals, the first
        elif how == "min_logit":
            for j in range(classes):
                target[i, j] = min(float(peer[i, j]) - float(peer[i, label]) for peer in peers)
        else:
            raise ValueError(how)
    return target
