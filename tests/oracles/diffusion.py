"""Few-step diffusion: the process, its solvers and the losses of distillation, for one sample at a time.

z_t = A_t x + S_t eps with A_t^2 + S_t^2 = 1. A time is a row of the table of alphas_cumprod = A^2; time -1 is clean
data (A = 1, S = 0). A denoiser is x0(z, t): an estimate of x of z's shape. Nothing is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from .maths import Array, mean_square

Denoiser = Callable[[Array, int], Array]


class Schedule:
    """A, S and their relatives of a table of alphas_cumprod; between rows log(S / A) is linear in time."""

    def __init__(self, alphas_cumprod: Sequence[float]) -> None:
        self.table = [float(a) for a in alphas_cumprod]

    def alpha(self, t: float) -> float:
        if t == -1:
            return 1.0
        if t != int(t):
            return 1 / math.sqrt(1 + self.noise_level(t) ** 2)
        return math.sqrt(self.table[int(t)])

    def sigma(self, t: float) -> float:
        if t == -1:
            return 0.0
        if t != int(t):
            return self.noise_level(t) / math.sqrt(1 + self.noise_level(t) ** 2)
        return math.sqrt(1 - self.table[int(t)])

    def noise_level(self, t: float) -> float:
        """s = S / A, EDM's sigma; infinite where A = 0."""
        if t != int(t):
            low = math.floor(t)
            below, above = math.log(self.noise_level(low)), math.log(self.noise_level(low + 1))
            return math.exp(below + (t - low) * (above - below))
        return self.sigma(t) / self.alpha(t) if self.alpha(t) > 0 else math.inf

    def log_snr(self, t: float) -> float:
        """log(A^2 / S^2)."""
        return -2 * _log(self.noise_level(t))


def _log(x: float) -> float:
    return math.log(x) if 0 < x < math.inf else (-math.inf if x == 0 else math.inf)


def cosine_table(steps: int) -> list[float]:
    """squaredcos_cap_v2: betas 1 - f(u + 1/T) / f(u), at most 0.999, f = cos^2 (Nichol, Dhariwal, 2021, eq. 17)."""

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return _cumulate([min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)])


def linear_table(steps: int, start: float = 1e-4, end: float = 0.02) -> list[float]:
    """Betas evenly spaced, both ends included (Ho et al., 2020)."""
    return _cumulate([start + (end - start) * i / (steps - 1) for i in range(steps)])


def scaled_linear_table(steps: int, start: float = 1e-4, end: float = 0.02) -> list[float]:
    """Square roots of the betas evenly spaced (latent diffusion)."""
    low, high = math.sqrt(start), math.sqrt(end)
    return _cumulate([(low + (high - low) * i / (steps - 1)) ** 2 for i in range(steps)])


def _cumulate(betas: Sequence[float]) -> list[float]:
    table, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        table.append(product)
    return table


def trailing(total: int, steps: int) -> list[int]:
    """round(T - k T / N) - 1 for k = 0..N, half to even: from T - 1 to the clean end (Lin et al., 2024, table 2)."""
    return [round(total - k * (total / steps)) - 1 for k in range(steps + 1)]


def lcm_times(total: int, original: int, steps: int) -> list[int]:
    """LCMScheduler's: every (T // original)-th time, and of these, from the last, those at floor(k original / N)."""
    spaced = [k * (total // original) - 1 for k in range(1, original + 1)][::-1]
    return [spaced[k * original // steps] for k in range(steps)]


def to_x0_and_eps(value: Array, z: Array, alpha: float, sigma: float, source: str) -> tuple[Array, Array]:
    """v = A eps - S x (Salimans, Ho, 2022, appendix D). ZeroDivisionError where `value` does not tell both."""
    if source == "v_prediction":
        return alpha * z - sigma * value, sigma * z + alpha * value
    if (alpha if source == "epsilon" else sigma) == 0:
        raise ZeroDivisionError(f"{source} at alpha {alpha}, sigma {sigma}")
    if source == "epsilon":
        return (z - sigma * value) / alpha, value
    return value, (z - alpha * value) / sigma


def convert(value: Array, z: Array, alpha: float, sigma: float, source: str, target: str) -> Array:
    if source == target:
        return value
    x0, eps = to_x0_and_eps(value, z, alpha, sigma, source)
    return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[target]


def optimal_denoiser(z: Array, alpha: float, sigma: float, mean: Array, variance: Array) -> Array:
    """E[x | z] of x ~ N(mean, diag(variance))."""
    return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (z - alpha * mean)


def exact_flow(
    z: Array, mean: Array, variance: Array, alpha: float, sigma: float, alpha_to: float, sigma_to: float
) -> Array:
    """Where the probability flow of Gaussian data takes z: its distance from the mean in standard deviations stays."""
    deviation = np.sqrt(alpha**2 * variance + sigma**2)
    return alpha_to * mean + (z - alpha * mean) * np.sqrt(alpha_to**2 * variance + sigma_to**2) / deviation


def ddim_step(schedule: Schedule, z: Array, x0: Array, t: int, to: int) -> Array:
    """A' x0 + S' eps, eps = (z - A x0) / S (Song et al., 2021, eq. 12 without noise)."""
    eps = (z - schedule.alpha(t) * x0) / schedule.sigma(t)
    return schedule.alpha(to) * x0 + schedule.sigma(to) * eps


def heun_step(schedule: Schedule, predict: Denoiser, z: Array, t: int, to: int) -> Array:
    """The trapezoid of dy/ds = (y - x0) / s in y = z / A, s = S / A; Euler to s = 0 (Karras et al., 2022, alg. 1)."""
    s, s_to = schedule.noise_level(t), schedule.noise_level(to)
    y = z / schedule.alpha(t)
    slope = (y - predict(z, t)) / s
    y_to = y + (s_to - s) * slope
    if s_to > 0:
        slope_to = (y_to - predict(schedule.alpha(to) * y_to, to)) / s_to
        y_to = y + (s_to - s) * (slope + slope_to) / 2
    return schedule.alpha(to) * y_to


def ddim(schedule: Schedule, predict: Denoiser, z: Array, times: Sequence[int]) -> Array:
    for t, to in pairwise(times):
        z = ddim_step(schedule, z, predict(z, t), t, to)
    return z


def heun(schedule: Schedule, predict: Denoiser, z: Array, times: Sequence[int]) -> Array:
    """From the last timestep, where s is near infinite, the first step is DDIM's: the trapezoid fails over it."""
    for t, to in pairwise(times):
        last = t == len(schedule.table) - 1
        z = ddim_step(schedule, z, predict(z, t), t, to) if last else heun_step(schedule, predict, z, t, to)
    return z


def dpmpp_2m(schedule: Schedule, predict: Denoiser, z: Array, times: Sequence[int]) -> Array:
    """z' = S'/S z - A' (e^-h - 1) D, D = (1 + 1/(2 r)) x0 - 1/(2 r) x0_before (Lu et al., 2022, DPM-Solver++, alg. 2).

    h is the step in lambda = log(A / S) and r = h_before / h. First order (D = x0) at the first step and at the step
    to S = 0, where h is infinite.
    """
    before: tuple[Array, float] | None = None
    for t, to in pairwise(times):
        x0 = predict(z, t)
        here, there = -_log(schedule.noise_level(t)), -_log(schedule.noise_level(to))
        h = there - here
        mixed = x0
        if before is not None and schedule.sigma(to) > 0:
            r = (here - before[1]) / h
            mixed = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before[0]
        ratio = schedule.sigma(to) / schedule.sigma(t)
        z = ratio * z - schedule.alpha(to) * (math.exp(-h) - 1) * mixed
        before = x0, here
    return z


SOLVERS = {"ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m}


def grid_times(total: int, steps: int, index: int) -> tuple[int, int, int]:
    """t, t', t'' at u = (i + 1) / N, u - 0.5 / N and u - 1 / N; index 0 is the last step of sampling, to clean data."""
    fine, place = trailing(total, 2 * steps), 2 * (steps - 1 - index)
    return fine[place], fine[place + 1], fine[place + 2]


def progressive_target(schedule: Schedule, teacher: Denoiser, z: Array, index: int, steps: int) -> tuple[Array, Array]:
    """x~, eps~ that take z_t to the teacher's z'' in one DDIM step (Salimans, Ho, 2022, alg. 2 and appendix G)."""
    t, middle, end = grid_times(len(schedule.table), steps, index)
    z_middle = ddim_step(schedule, z, teacher(z, t), t, middle)
    x_middle = teacher(z_middle, middle)
    z_end = ddim_step(schedule, z_middle, x_middle, middle, end)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    ratio = schedule.sigma(end) / sigma
    x = (z_end - ratio * z) / (schedule.alpha(end) - ratio * alpha) if index > 0 else x_middle
    return x, (z - alpha * x) / sigma


def progressive_loss(
    schedule: Schedule, student: Denoiser, teacher: Denoiser, x: Array, noise: Array, index: int, steps: int
) -> float:
    """The truncated SNR loss: max(||x^ - x~||^2, ||eps^ - eps~||^2), each a mean over dimensions, not a sum."""
    t = grid_times(len(schedule.table), steps, index)[0]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    z = alpha * x + sigma * noise
    x_target, eps_target = progressive_target(schedule, teacher, z, index, steps)
    x_student = student(z, t)
    eps_student = (z - alpha * x_student) / sigma
    in_x = mean_square(x_student.ravel(), x_target.ravel())
    return max(in_x, mean_square(eps_student.ravel(), eps_target.ravel()))


def scalings(t: float, *, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> tuple[float, float]:
    """c_skip, c_out of LCMScheduler (Luo et al., 2023). They make 1, 0 at t = 0; the clean end -1 is made so here."""
    if t == -1:
        return 1.0, 0.0
    scaled = timestep_scaling * t
    return sigma_data**2 / (scaled**2 + sigma_data**2), scaled / math.sqrt(scaled**2 + sigma_data**2)


def consistency_function(predict: Denoiser, z: Array, t: int) -> Array:
    """f(z, t) = c_skip z + c_out x0(z, t); the identity at clean data, where the network is not asked."""
    c_skip, c_out = scalings(t)
    return z if t == -1 else c_skip * z + c_out * predict(z, t)


def pseudo_huber(a: Array, b: Array, c: float) -> float:
    """sqrt(||a - b||^2 + c^2) - c, the norm a sum over all dimensions (Song, Dhariwal, 2024, eq. 7)."""
    return math.sqrt(sum((p - q) ** 2 for p, q in zip(a.ravel(), b.ravel(), strict=True)) + c**2) - c


def consistency_loss(
    schedule: Schedule,
    student: Denoiser,
    ema: Denoiser,
    teacher: Denoiser,
    x: Array,
    noise: Array,
    index: int,
    steps: int,
    *,
    solver: str = "ddim",
    huber: float | None = None,
) -> float:
    """d(f(z_t, t), f_ema(z_s, s)), z_s one teacher step down the N-grid (Song et al., 2023, alg. 2); weight 1.

    d is the squared L2 mean over dimensions, or with `huber` = c the pseudo-Huber distance.
    """
    times = trailing(len(schedule.table), steps)
    t, to = times[steps - 1 - index], times[steps - index]
    z = schedule.alpha(t) * x + schedule.sigma(t) * noise
    z_to = SOLVERS[solver](schedule, teacher, z, (t, to))
    output, target = consistency_function(student, z, t), consistency_function(ema, z_to, to)
    return mean_square(output.ravel(), target.ravel()) if huber is None else pseudo_huber(output, target, huber)


def consistency_sampling(
    schedule: Schedule, predict: Denoiser, z: Array, times: Sequence[int], noises: Sequence[Array]
) -> Array:
    """f, and noise again to the next time, for each of `times`; one noise fewer than times (Song et al., alg. 1)."""
    for k, t in enumerate(times):
        x = consistency_function(predict, z, t)
        if k + 1 < len(times):
            z = schedule.alpha(times[k + 1]) * x + schedule.sigma(times[k + 1]) * noises[k]
    return x


def ect_partner(s: float, q: float, stage: int) -> float:
    """r = max(0, s (1 - q^-(stage + 1) n(s))), n(s) = 1 + 8 sigmoid(-s) (Geng et al., 2025)."""
    sigmoid = 0.5 * (1 - math.tanh(s / 2))
    return max(0.0, s * (1 - q ** -(stage + 1) * (1 + 8 * sigmoid)))


def ect_loss(
    denoise: Callable[[Array, float], Array],
    x: Array,
    noise: Array,
    s: float,
    *,
    q: float,
    stage: int,
    c: float = 0.0,
) -> float:
    """(sqrt(||D(x + s e, s) - D(x + r e, r)||^2 + c^2) - c) / (s - r), norms summed; r = 0 has x itself as target.

    `denoise` is D(y, s) in EDM's variables y = z / A, s = S / A.
    """
    r = ect_partner(s, q, stage)
    target = x if r == 0 else denoise(x + r * noise, r)
    return pseudo_huber(denoise(x + s * noise, s), target, c) / (s - r)
