"""Deterministic samplers of the probability-flow ODE, given a function that predicts the clean sample.

State is kept in float64, the function sees the type of the noise. Heun's method works in y = z / alpha and
s = sigma / alpha, in which the ODE is dy/ds = (y - x(y, s)) / s (Karras et al., 2022). It leaves the last timestep by a
DDIM step: s is near infinite there (20,000 on a cosine schedule), and the mean of two slopes over the first interval
would be off by as much as that ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from xmodal_kd.runtime.errors import UserError, nearest

from .process import Process, expand

SOLVERS = ("ddim", "heun", "dpmpp_2m")
#: ``predict(z, t) -> x`` of z's shape.
Predict = Callable[[Tensor, int], Tensor]


def solve(predict: Predict, process: Process, z: Tensor, times: Sequence[int], solver: str = "ddim") -> Tensor:
    """Integrate from z at ``times[0]`` to ``times[-1]``.

    Args:
        z: ``(b, ...)``.
        times: falling timesteps; -1, the clean sample, may be the last.
        solver: ``ddim`` (Song et al., 2021), ``heun`` (Karras et al., 2022, algorithm 1 without churn) or ``dpmpp_2m``
            (Lu et al., 2022: DPM-Solver++ of second order, multistep).
    """
    if solver not in SOLVERS:
        raise UserError(f"unknown solver {solver!r}{nearest(solver, SOLVERS)}")
    state, before = z.double(), None
    for t, after in pairwise(times):
        x = predict(state.to(z.dtype), t).double()
        if solver == "heun" and corrects(process, t, after):
            euler = ddim_step(process, state, x, t, after)
            corrected = predict(euler.to(z.dtype), after).double()
            state = heun_step(process, state, x, euler, corrected, t, after)
        elif solver == "dpmpp_2m" and before is not None and after >= 0:
            state = _second_order(process, state, x, before[0], t, after, before[1])
        else:
            state = ddim_step(process, state, x, t, after)
        before = (x, t)
    return state.to(z.dtype)


def corrects(process: Process, t: int, after: int) -> bool:
    """Whether Heun's method corrects this step."""
    return after >= 0 and t < process.T - 1


def ddim_step(process: Process, z: Tensor, x: Tensor, t: Tensor | int, after: Tensor | int) -> Tensor:
    """Along the ODE from t to `after` as if the clean sample were x: z' = alpha' x + (sigma' / sigma) (z - alpha x)."""
    alpha, sigma = process.pair(t, z)
    alpha_after, sigma_after = process.pair(after, z)
    return alpha_after * x + sigma_after / sigma * (z - alpha * x)


def joined_steps(
    process: Process, x1: Tensor, x2: Tensor, t: Tensor | int, middle: Tensor | int, after: Tensor | int
) -> Tensor:
    """The x that a DDIM step from t to `after` must see to arrive where two lead.

    These see x1 at t and x2 at `middle`. It is their mean with weights a = alpha'' - alpha' sigma'' / sigma' of x2 and
    b = (alpha' - alpha sigma' / sigma) sigma'' / sigma' of x1, which is Salimans and Ho's target (2022, algorithm 2),
    (z'' - (sigma''/sigma) z) / (alpha'' - (sigma''/sigma) alpha), without its cancellations. Where `middle` is `after`,
    or the clean sample, it is x1.
    """
    (alpha, sigma), (alpha_after, sigma_after) = ((process.alpha(k), process.sigma(k)) for k in (t, after))
    alpha_middle, sigma_middle = process.alpha(middle), process.sigma(middle)
    ratio = sigma_after / sigma_middle
    a = alpha_after - alpha_middle * ratio
    b = (alpha_middle - alpha * sigma_middle / sigma) * ratio
    weight = expand((a / (a + b)).where(sigma_middle > 0, torch.zeros_like(a)), x1)
    return weight * x2 + (1 - weight) * x1


def heun_step(
    process: Process, z: Tensor, x: Tensor, euler: Tensor, corrected: Tensor, t: Tensor | int, after: Tensor | int
) -> Tensor:
    """A DDIM step from z, which saw x and led to `euler`, with the mean of the slopes at both ends.

    `corrected` is the sample seen at `euler`; `after` is above -1.
    """
    (alpha, sigma), (alpha_after, sigma_after) = process.pair(t, z), process.pair(after, z)
    y, s = z / alpha, sigma / alpha
    y_after, s_after = euler / alpha_after, sigma_after / alpha_after
    slope = ((y - x) / s + (y_after - corrected) / s_after) / 2
    return alpha_after * (y + (s_after - s) * slope)


def _second_order(process: Process, z: Tensor, x: Tensor, x_before: Tensor, t: int, after: int, before: int) -> Tensor:
    """DPM-Solver++(2M): x extrapolated in lambda = log(alpha / sigma) from this step and the last."""
    half_log_snr = [process.log_snr(time) / 2 for time in (before, t, after)]
    h_before, h = half_log_snr[1] - half_log_snr[0], half_log_snr[2] - half_log_snr[1]
    slope = (h / h_before / 2).to(z)
    return ddim_step(process, z, x + slope * (x - x_before), t, after)


def evaluations(solver: str, steps: int) -> int:
    """Network evaluations of `steps` steps over the whole process: Heun corrects neither the first nor the last."""
    return max(1, 2 * steps - 2) if solver == "heun" else steps


def most_steps(solver: str, nfe: int) -> int:
    """The most steps that `nfe` evaluations pay for."""
    if solver == "heun":
        return 1 if nfe == 1 else (nfe + 2) // 2
    return nfe


__all__ = ["SOLVERS", "Predict", "ddim_step", "evaluations", "heun_step", "joined_steps", "most_steps", "solve"]
