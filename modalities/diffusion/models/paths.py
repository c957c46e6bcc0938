"""Processes that are not variance preserving: EDM (Karras et al., 2022) and flow matching (Lipman et al., 2023).

Both run through all noise levels without steps of their own, so their table of T timesteps is ours: on it a sampler's
steps are equally far apart, and every halving of a power of two falls on whole timesteps, as in `Process`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from xmodal_kd.runtime.errors import UserError, nearest

from .process import MOST_TIMESTEPS, Process, expand

#: Timesteps of our tables.
STEPS = 1024


class _Path(Process):
    """What both share: conversions from what a prediction is made of, real times without a table."""

    def convert(self, value: Tensor, z: Tensor, t: Tensor | int, source: str, target: str) -> Tensor:
        """As `Process.convert`, among all names that `weights` knows.

        With P = p x + q eps and z = alpha x + sigma eps: x = (sigma P - q z) / (sigma p - alpha q), and eps likewise.
        """
        alpha, sigma = self.pair(t, value)
        p, q = self.weights(source, alpha, sigma)
        self.weights(target, alpha, sigma)
        if source == target:
            return value
        scale = sigma * p - alpha * q
        x = value if source == "sample" else (sigma * value - q * z) / scale
        if target == "sample":
            return x
        eps = value if source == "epsilon" else (p * z - alpha * value) / scale
        if target == "epsilon":
            return eps
        p, q = self.weights(target, alpha, sigma)
        return p * x + q * eps


class Edm(_Path):
    """z = x + sigma eps, with a network F behind Karras et al.'s preconditioning (2022, table 1).

    x = c_skip z + c_out F(c_in z, ln(sigma) / 4), so that F = (sigma x / d - d eps) / sqrt(sigma^2 + d^2), d being
    sigma_data. Predictions: ``edm`` is F, ``edm_v`` is -F, which diffusers' EDM schedulers call epsilon and
    v_prediction.

    Args:
        schedule: how sigma grows over the timesteps: evenly in its rho-th root, or in its logarithm (``exponential``).
    """

    kind: ClassVar[Literal["vp", "edm", "flow"]] = "edm"
    predictions: ClassVar[tuple[str, ...]] = ("edm", "edm_v")
    natural: ClassVar[str] = "edm"

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5, rho: float = 7.0,
        schedule: str = "karras", steps: int = STEPS,
    ) -> None:  # fmt: skip
        if not 0 < sigma_min < sigma_max < math.inf or not sigma_data > 0 or not rho > 0:
            raise UserError(
                f"EDM noise from {sigma_min} to {sigma_max} with sigma_data {sigma_data} and rho {rho}: "
                "0 < sigma_min < sigma_max, and the others above 0"
            )
        if schedule not in ("karras", "exponential"):
            raise UserError(f"sigma_schedule {schedule!r}{nearest(schedule, ('karras', 'exponential'))}")
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.rho, self.schedule = rho, schedule
        low, high = (self._ladder(torch.tensor(s, dtype=torch.float64)) for s in (sigma_min, sigma_max))
        self._low, self._rung = low, (high - low) / (steps - 1)
        sigma = self._off(self._low + self._rung * torch.arange(steps, dtype=torch.float64))
        self._set(torch.ones_like(sigma), sigma)

    def _ladder(self, sigma: Tensor) -> Tensor:
        return sigma.log() if self.schedule == "exponential" else sigma ** (1 / self.rho)

    def _off(self, rung: Tensor) -> Tensor:
        return rung.exp() if self.schedule == "exponential" else rung**self.rho

    def config(self) -> dict[str, Any]:
        names = ("sigma_min", "sigma_max", "sigma_data", "rho", "schedule")
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}, "steps": self.T}

    @property
    def start(self) -> float:
        """As diffusers starts: with the spread of the noisiest data of unit variance."""
        return float((self.sigma_max**2 + 1) ** 0.5)

    def network(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_in z and ln(sigma) / 4."""
        sigma = self.sigma(t)
        return expand((sigma.square() + self.sigma_data**2).rsqrt(), z) * z, sigma.log() / 4

    def weights(self, target: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if target not in self.predictions:
            return super().weights(target, alpha, sigma)
        sign, norm = 1 if target == "edm" else -1, (sigma.square() + self.sigma_data**2).sqrt()
        return sign * sigma / (self.sigma_data * norm), -sign * self.sigma_data / norm

    def _between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Up the ladder as the timesteps go; from the first down to the clean sample along a line."""
        t = t.double()
        sigma = torch.where(t >= 0, self._off(self._low + self._rung * t.clamp(min=0)), (t + 1) * self.sigma_min)
        return torch.ones_like(sigma), sigma

    def time_of(self, ratio: Tensor) -> Tensor:
        """As `Process.time_of`."""
        sigma = ratio.double()
        up = (self._ladder(sigma.clamp(self.sigma_min, self.sigma_max)) - self._low) / self._rung
        return torch.where(sigma >= self.sigma_min, up, sigma / self.sigma_min - 1)


class Flow(_Path):
    """z = (1 - s) x + s eps; the network sees s times `scale` and predicts dz/ds = eps - x (``flow_prediction``).

    Args:
        shift: of the timesteps: s = shift u / (1 + (shift - 1) u) of u = (t + 1) / T (Esser et al., 2024, eq. 23).
        scale: diffusers' num_train_timesteps.
    """

    kind: ClassVar[Literal["vp", "edm", "flow"]] = "flow"
    predictions: ClassVar[tuple[str, ...]] = ("flow_prediction",)
    natural: ClassVar[str] = "flow_prediction"

    def __init__(self, shift: float = 1.0, scale: float = 1000.0, steps: int = STEPS) -> None:
        if not 0 < shift < math.inf or not 1 <= scale <= MOST_TIMESTEPS:
            raise UserError(
                f"flow matching with shift {shift} on {scale} timesteps: above 0, and from 1 to {MOST_TIMESTEPS:,}"
            )
        self.shift, self.scale = shift, scale
        s = shifted(torch.arange(1, steps + 1, dtype=torch.float64) / steps, shift)
        self._set(1 - s, s)

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "shift": self.shift, "scale": self.scale, "steps": self.T}

    def network(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return z, self.sigma(t) * self.scale

    def _between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        s = shifted((t.double() + 1) / self.T, self.shift)
        return 1 - s, s

    def time_of(self, ratio: Tensor) -> Tensor:
        """As `Process.time_of`; an infinite ratio is the last timestep."""
        ratio = ratio.double()
        s = torch.where(ratio.isinf(), torch.ones_like(ratio), ratio / (1 + ratio))
        return shifted(s, 1 / self.shift) * self.T - 1


def shifted(u: Tensor, shift: float) -> Tensor:
    """shift u / (1 + (shift - 1) u); its inverse is that of 1 / shift."""
    return shift * u / (1 + (shift - 1) * u)


def process_of(config: Mapping[str, Any]) -> Process:
    """What `Process.config` said. Raises `UserError` for what it never says."""
    kinds: dict[str, type[Edm] | type[Flow]] = {"edm": Edm, "flow": Flow}
    values = dict(config)
    kind = values.pop("kind", None)
    if kind not in kinds:
        raise UserError(f"process: no kind {kind!r}{nearest(str(kind), tuple(kinds))}")
    steps = values.get("steps", STEPS)
    if not isinstance(steps, int) or not 2 <= steps <= MOST_TIMESTEPS:
        raise UserError(f"process: steps {steps!r}: a number from 2 to {MOST_TIMESTEPS:,} is expected")
    try:
        return kinds[kind](**values)
    except TypeError as error:
        raise UserError(f"process: {error}") from error


def path_of(scheduler: Mapping[str, Any], tokens: int | None = None) -> tuple[Process, str] | None:
    """The process and the prediction of a diffusers scheduler of EDM or flow matching; None for any other.

    Args:
        tokens: patches of an image, on which the shift of flow matching may hang; None: they are not known.

    Raises:
        UserError: flow matching whose shift hangs on a size that is not known, or whose time runs the other way.
    """
    name = str(scheduler.get("_class_name", ""))
    if name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        says = {"epsilon": "edm", "v_prediction": "edm_v"}
        prediction = scheduler.get("prediction_type", "epsilon")
        if prediction not in says:
            raise UserError(f"{name}: prediction_type {prediction!r} is not one of {', '.join(says)}")
        keys = ("sigma_min", "sigma_max", "sigma_data", "rho")
        given: dict[str, Any] = {key: float(scheduler[key]) for key in keys if key in scheduler}
        return Edm(**given, schedule=str(scheduler.get("sigma_schedule", "karras"))), says[prediction]
    if name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"):
        dynamic = bool(scheduler.get("use_dynamic_shifting"))
        refused = {"invert_sigmas": True, "use_dynamic_shifting": tokens is None}
        if on := next((key for key, stops in refused.items() if stops and scheduler.get(key)), None):
            raise UserError(f"{name}: {on} is on, which is not understood: save the scheduler with a fixed shift")
        scale = float(scheduler.get("num_train_timesteps", 1000))
        shift = dynamic_shift(scheduler, tokens) if dynamic and tokens else float(scheduler.get("shift", 1.0))
        return Flow(shift, scale), "flow_prediction"
    if scheduler.get("use_flow_sigmas") and scheduler.get("prediction_type") == "flow_prediction":  # solvers for betas
        if scheduler.get("use_dynamic_shifting"):
            raise UserError(f"{name}: use_dynamic_shifting is on: save the scheduler with a fixed flow_shift")
        scale = float(scheduler.get("num_train_timesteps", 1000))
        return Flow(float(scheduler.get("flow_shift", 1.0)), scale), "flow_prediction"
    return None


def dynamic_shift(scheduler: Mapping[str, Any], tokens: int) -> float:
    """The shift for an image of so many patches: mu is a line through two sizes, and the shift its exponential, or it.

    As the pipelines of Flux and Stable Diffusion 3 compute it, with diffusers' defaults.
    """
    low, high = (float(scheduler.get(f"{end}_image_seq_len", usual)) for end, usual in (("base", 256), ("max", 4096)))
    least, most = (float(scheduler.get(f"{end}_shift", usual)) for end, usual in (("base", 0.5), ("max", 1.15)))
    mu = least + (most - least) * (tokens - low) / (high - low)
    return mu if scheduler.get("time_shift_type") == "linear" else math.exp(mu)


__all__ = ["Edm", "Flow", "dynamic_shift", "path_of", "process_of", "shifted"]
