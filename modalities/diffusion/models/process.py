"""The diffusion process: z_t = alpha_t x + sigma_t eps, on a table of T timesteps. Others than this: `paths`.

A time t is diffusers' timestep: an integer or real number between -1 and T - 1. At t = -1 lies the clean sample
(alpha 1, sigma 0), which diffusers' tables leave out. Coefficients are float64 and cast to the sample's type last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.runtime.errors import UserError, nearest

#: What a network may say about z_t, in diffusers' words: eps, x, v = alpha eps - sigma x (Salimans and Ho, 2022), or
#: eps - x; in ours, an EDM network's own output, and the same with its sign changed.
Prediction = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "edm", "edm_v"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
#: No single beta may take more of the signal than this (diffusers' and Nichol and Dhariwal's cap).
MAX_BETA = 0.999
#: Timesteps of a process; diffusers' have 1,000.
MOST_TIMESTEPS = 1 << 20
#: Below this much signal at the last timestep, what an epsilon network says of x is its error, enlarged by 1 / alpha.
LITTLE_SIGNAL = 1e-3


class Process:
    """A variance-preserving process on T timesteps; `paths.Edm` and `paths.Flow` are of other kinds.

    Args:
        alphas_cumprod: ``(T,)`` alpha_t^2 of t = 0 .. T - 1, falling.
    """

    kind: ClassVar[Literal["vp", "edm", "flow"]] = "vp"
    #: What its networks may predict, and what they are best compared in: of about unit size at every time.
    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "v_prediction")
    natural: ClassVar[str] = "v_prediction"

    def __init__(self, alphas_cumprod: Tensor | np.ndarray | Sequence[float]) -> None:
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu()
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"alphas_cumprod {tuple(table.shape)} is not a table of at least two timesteps")
        if not bool(((table[:-1] > table[1:]) & (table[:-1] < 1) & (table[1:] >= 0)).all()):
            raise UserError("the noise schedule is not variance preserving: alphas_cumprod must fall between 1 and 0")
        self.alphas_cumprod = table
        self._set(table.sqrt(), (1 - table).sqrt())

    def _set(self, alpha: Tensor, sigma: Tensor) -> None:
        """The tables ``(T,)``, to which the clean sample is added."""
        clean = alpha.new_ones(1)
        self._alpha = torch.cat([clean, alpha])  # index t + 1, so that t = -1 is the clean sample
        self._sigma = torch.cat([clean - clean, sigma])
        self._ratio = self._sigma / self._alpha
        self._tables = {torch.device("cpu"): (self._alpha, self._sigma)}

    @property
    def T(self) -> int:
        return len(self._alpha) - 1

    @property
    def start(self) -> float:
        """What standard normal noise is multiplied with to be where sampling starts."""
        return 1.0

    def network(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What a network is given of z ``(b, ...)`` at times t ``(b,)``: its input, and its time ``(b,)``."""
        return z, t

    def config(self) -> dict[str, Any]:
        """JSON of which `paths.process_of` makes it again; empty where a scheduler with betas says it all."""
        return {}

    @classmethod
    def cosine(cls, steps: int) -> Process:
        """Nichol and Dhariwal (2021), eq. 17; diffusers' ``squaredcos_cap_v2``."""

        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), MAX_BETA) for i in range(steps)]
        return cls.from_betas(betas)

    @classmethod
    def linear(cls, steps: int, start: float = 1e-4, end: float = 0.02) -> Process:
        """Ho et al. (2020): betas from `start` to `end`, which are meant for 1,000 steps and scaled for others."""
        return cls.from_betas(np.minimum(np.linspace(start, end, steps) * 1000 / steps, MAX_BETA))

    @classmethod
    def from_betas(cls, betas: Sequence[float] | np.ndarray) -> Process:
        return cls(np.cumprod(1 - np.asarray(betas, dtype=np.float64)))

    @classmethod
    def from_scheduler(cls, config: Mapping[str, Any]) -> Process:
        """The process behind a diffusers scheduler's config. Raises `UserError` for one that is not of this kind."""
        name = str(config.get("_class_name", "scheduler"))
        foreign = next((word for word in ("Flow", "EDM", "Karras", "SCM", "VQ", "RePaint") if word in name), None)
        if foreign or "num_train_timesteps" not in config or ("beta_start" not in config and not _betas(config)):
            raise UserError(
                f"{name} has no variance-preserving schedule (betas): it cannot be distilled by these methods"
            )
        steps = int(config["num_train_timesteps"])
        given = _betas(config)
        if not 2 <= (steps if given is None else len(given)) <= MOST_TIMESTEPS:
            raise UserError(f"{name}: {steps:,} timesteps: from 2 to {MOST_TIMESTEPS:,} are expected")
        schedule = config.get("beta_schedule", "linear")
        start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        if given is not None:
            betas = np.asarray(given, dtype=np.float64)
        elif schedule == "linear":
            betas = np.linspace(start, end, steps)
        elif schedule == "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, steps) ** 2
        elif schedule == "squaredcos_cap_v2":
            table = cls.cosine(steps).alphas_cumprod.numpy()
            return cls(_zero_terminal_snr(table) if config.get("rescale_betas_zero_snr") else table)
        else:
            known = ("linear", "scaled_linear", "squaredcos_cap_v2")
            raise UserError(f"{name}: beta_schedule {schedule!r} is not one of {', '.join(known)}")
        if config.get("rescale_betas_zero_snr"):
            return cls(_zero_terminal_snr(np.cumprod(1 - betas)))
        return cls.from_betas(betas)

    # ---------------------------------------------------------------- coefficients

    def alpha(self, t: Tensor | int) -> Tensor:
        """alpha_t in float64, of t's shape."""
        return self._coefficients(t)[0]

    def sigma(self, t: Tensor | int) -> Tensor:
        """sigma_t in float64, of t's shape."""
        return self._coefficients(t)[1]

    def log_snr(self, t: Tensor | int) -> Tensor:
        """log(alpha_t^2 / sigma_t^2); infinite at t = -1."""
        alpha, sigma = self._coefficients(t)
        return 2 * (alpha.log() - sigma.log())

    def _coefficients(self, t: Tensor | int) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t)
        if not t.is_floating_point():
            alpha, sigma = self._on(t.device)
            return alpha[t + 1], sigma[t + 1]
        return self._between(t)

    def _between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at real times, float64."""
        ratio = self._interpolated(t)
        alpha = (1 + ratio.square()).rsqrt()
        return alpha, ratio * alpha

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            self._tables[device] = self._alpha.to(device), self._sigma.to(device)
        return self._tables[device]

    def _interpolated(self, t: Tensor) -> Tensor:
        """sigma/alpha between the timesteps: its logarithm is linear in t, and itself between -1 and 0.

        Differentiable in t.
        """
        ratio = self._ratio.to(t.device)
        t, logs = t.double(), ratio[1:].clamp(max=1e12).log()
        inside = t.clamp(0, self.T - 1)
        i = inside.floor().long().clamp(max=self.T - 2)
        between = torch.lerp(logs[i], logs[i + 1], inside - i).exp()
        return torch.where(t >= 0, between, (t + 1) * ratio[1])

    def time_of(self, ratio: Tensor) -> Tensor:
        """The real t at which sigma_t / alpha_t = `ratio`, clamped to what the table covers; float64, of its shape."""
        first, logs = float(self._ratio[1]), self._ratio[1:].clamp(max=1e12).log().numpy()
        given = ratio.detach().cpu().double().numpy()
        safe = np.maximum(given, first)
        t = np.where(given >= first, np.interp(np.log(safe), logs, np.arange(self.T)), given / first - 1)
        return torch.as_tensor(t, dtype=torch.float64, device=ratio.device)

    # ---------------------------------------------------------------- samples

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """z_t = alpha_t x + sigma_t noise for ``(b, ...)`` samples and t of shape ``(b,)`` or one for all."""
        alpha, sigma = self.pair(t, x)
        return alpha * x + sigma * noise

    def velocity(self, x: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """v = alpha_t noise - sigma_t x."""
        alpha, sigma = self.pair(t, x)
        return alpha * noise - sigma * x

    def truth(self, target: str, x: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """What a perfect network that predicts `target` would say of z_t, were x and noise all there is."""
        on_x, on_noise = self.weights(target, *self.pair(t, x))
        return on_x * x + on_noise * noise

    def weights(self, target: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """p and q of a prediction p x + q eps at alpha and sigma."""
        zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
        known = {"sample": (one, zero), "epsilon": (zero, one), "v_prediction": (-sigma, alpha),
                 "flow_prediction": (-one, one)}  # fmt: skip
        if target not in known:
            raise UserError(f"unknown prediction type {target!r}{nearest(target, tuple(known))}")
        return known[target]

    def pair(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, shaped and typed to multiply samples `like`."""
        alpha, sigma = self._coefficients(t if isinstance(t, int) else t.to(like.device))
        return expand(alpha, like), expand(sigma, like)

    def convert(self, value: Tensor, z: Tensor, t: Tensor | int, source: str, target: str) -> Tensor:
        """What a network says about z_t, in another of the `PREDICTIONS`.

        x from eps needs alpha > 0, eps from x needs sigma > 0: where the coefficient is 0 the result is not finite.
        """
        for name in (source, target):
            if name not in self.predictions:
                raise UserError(f"unknown prediction type {name!r}{nearest(name, self.predictions)}")
        if source == target:
            return value
        alpha, sigma = self.pair(t, value)
        if target == "v_prediction":
            return (value - sigma * z) / alpha if source == "epsilon" else (alpha * z - value) / sigma
        if source == "v_prediction":
            return alpha * z - sigma * value if target == "sample" else sigma * z + alpha * value
        return (z - sigma * value) / alpha if target == "sample" else (z - alpha * value) / sigma

    def grid(self, steps: int) -> tuple[int, ...]:
        """Times of a sampler with `steps` steps, falling from T - 1, with -1 at the end: diffusers' trailing spacing.

        Leading spacing, diffusers' default, starts below the noise that sampling starts from.
        """
        if not 1 <= steps <= self.T:
            raise UserError(f"{steps} steps on a process of {self.T} timesteps: choose 1 to {self.T}")
        times = np.round(np.arange(self.T, 0, -self.T / steps)).astype(int) - 1
        return (*(int(t) for t in times[:steps]), -1)


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """``()`` or ``(b,)`` to ``(b, 1, ...)`` in the type of `like`, on its device."""
    coefficient = coefficient.to(like.device, like.dtype)
    return coefficient.reshape(-1, *[1] * (like.ndim - 1)) if coefficient.ndim else coefficient


def _betas(config: Mapping[str, Any]) -> Any:
    return config.get("trained_betas")


def _zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Lin et al. (2023), algorithm 1: shift and scale the signal so that none is left at the last timestep."""
    root = np.sqrt(alphas_cumprod)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return np.asarray(root**2)
