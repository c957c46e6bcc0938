"""A network with all that sampling from it needs: the process, what it predicts, its shape, and how it is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from xmodal_kd.runtime.errors import UserError, nearest

from .process import Process, expand
from .solvers import SOLVERS, ddim_step, evaluations, solve

#: Multistep consistency sampling, as diffusers' LCMScheduler does it.
LCM = "lcm"
#: Trajectory consistency sampling (Zheng et al., 2024), as diffusers' TCDScheduler does it with its own eta.
TCD, ETA = "tcd", 0.3
#: Samplers of few-step models, whose times are chosen among those of the grid that they were trained on.
FEW_STEP = (LCM, TCD)
#: LCMScheduler's constants: the standard deviation of the data, and what a timestep is multiplied by.
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled.

    Attributes:
        solver: one of `SOLVERS`, or ``lcm`` or ``tcd`` for a consistency model.
        steps: of the solver.
        original: of the grid that a consistency model was trained on; its steps are chosen among these.
    """

    solver: str
    steps: int
    original: int = 0

    def __post_init__(self) -> None:
        if self.solver not in (*SOLVERS, *FEW_STEP):
            raise UserError(f"unknown solver {self.solver!r}{nearest(self.solver, (*SOLVERS, *FEW_STEP))}")
        if self.steps < 1:
            raise UserError(f"{self.steps} sampling steps: at least one is needed")

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample."""
        return evaluations(self.solver, self.steps)

    def times(self, process: Process) -> tuple[int, ...]:
        """Falling timesteps, -1 at the end. Raises `UserError` for more steps than there are."""
        if self.solver not in FEW_STEP:
            return process.grid(self.steps)
        return consistency_times(process, self.steps, self.original)


def consistency_grid(process: Process, steps: int) -> tuple[int, ...]:
    """The `steps` equidistant times from T - 1 on which a consistency model is trained, with -1 at the end.

    Raises `UserError` where `steps` does not divide T: LCMScheduler would then start below the last timestep.
    """
    if not 1 <= steps <= process.T or process.T % steps:
        raise UserError(f"a consistency grid of {steps} steps does not divide the process's {process.T} timesteps")
    return process.grid(steps)


def consistency_times(process: Process, steps: int, original: int) -> tuple[int, ...]:
    """Times of `steps` steps among the `original` ones, as LCMScheduler chooses them; -1 at the end."""
    grid = consistency_grid(process, original)
    if steps > original:
        raise UserError(f"{steps} steps of a consistency model trained on {original}: choose 1 to {original}")
    return (*(grid[i * original // steps] for i in range(steps)), -1)


class Denoiser(nn.Module):
    """A denoising network and its process.

    Args:
        net: called ``net(z, t, class_labels=...)``, t ``(b,)``; its output, or the output's ``sample``, has z's shape.
        prediction: what it predicts, one of the process's.
        shape: of one sample.
        classes: how many it is conditioned on; None for an unconditional one.
    """

    def __init__(
        self, net: nn.Module, process: Process, prediction: str, shape: Sequence[int], *, classes: int | None = None,
        class_names: Sequence[str] | None = None, sampling: Sampling | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if prediction not in process.predictions:
            raise UserError(f"unknown prediction type {prediction!r}{nearest(prediction, process.predictions)}")
        self.net, self.process, self.prediction = net, process, prediction
        self.shape, self.classes = tuple(shape), classes
        self.class_names = tuple(class_names) if class_names is not None else None
        self.sampling = sampling or Sampling("ddim", min(64, process.T))

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample."""
        return self.sampling.nfe

    def forward(self, z: Tensor, t: Tensor | int, labels: Tensor | None = None) -> Tensor:
        """What the network says about z ``(b, ...)`` at times t ``(b,)``; at t = -1 it is not asked."""
        self.check_labels(labels)
        times = torch.as_tensor(t, device=z.device).expand(len(z))
        given, times = self.process.network(z, times)
        if times.is_floating_point():  # in half precision neighbouring times would be one
            times = times.to(torch.float32 if z.dtype in HALF else z.dtype)
        out: Any = self.net(given, times, class_labels=labels)
        return cast(Tensor, out if isinstance(out, Tensor) else out.sample)

    def check_labels(self, labels: Tensor | None) -> None:
        """Raises `UserError` where labels are missing, or given to a model that knows none."""
        if (labels is None) != (self.classes is None):
            given, wanted = "no labels" if labels is None else "labels", "none" if self.classes is None else "labels"
            raise UserError(f"the model was given {given} and is made for {wanted}")

    def predict(self, target: str, z: Tensor, t: Tensor | int, labels: Tensor | None = None) -> Tensor:
        """The network's output as one of `PREDICTIONS`, in at least float32."""
        out = self(z, t, labels)
        wide = out.float() if out.dtype in HALF else out
        return self.process.convert(wide, z, t, self.prediction, target)

    def predict_x(self, z: Tensor, t: Tensor | int, labels: Tensor | None = None) -> Tensor:
        """The clean sample that the network sees in z."""
        return self.predict("sample", z, t, labels)

    def consistency(self, z: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The consistency function f(z, t) = c_skip z + c_out x(z, t), the identity at t = -1.

        Song et al. (2023), eq. 5, with Luo et al.'s coefficients (2023), which LCMScheduler applies. Of other processes
        it is x(z, t), whose last timestep is close enough to the clean sample. t is ``(b,)``.
        """
        f = self.predict_x(z, t.clamp(min=0), labels)
        if self.process.kind == "vp":
            skip, out = scalings(t)
            f = expand(out, z) * f + expand(skip, z) * z
        return torch.where(expand(t < 0, z).bool(), z, f)

    @torch.no_grad()
    def sample(
        self, noise: Tensor, labels: Tensor | None = None, sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Samples of noise's shape, unclipped.

        Args:
            noise: ``(b, ...)``, standard normal.
            generator: of the noise that multistep consistency sampling adds between its steps; others need none.
        """
        how = sampling or self.sampling
        times, noise = how.times(self.process), self.process.start * noise
        if how.solver == TCD:
            return self._trajectory(noise, labels, times, generator)
        if how.solver != LCM:
            return solve(lambda z, t: self.predict_x(z, t, labels), self.process, noise, times, how.solver)
        x = z = noise
        for t, after in pairwise(times):
            x = self.consistency(z, torch.full((len(z),), t, device=z.device), labels)
            if after >= 0:
                z = self.process.add_noise(x, fresh(z, generator), after)
        return x

    def _trajectory(
        self, z: Tensor, labels: Tensor | None, times: Sequence[int], generator: torch.Generator | None
    ) -> Tensor:
        """Each step goes along the ODE below the next time, to (1 - eta) of it, and noise leads up again.

        The last one ends at timestep 0, as diffusers' does, not at the clean sample.
        """
        for t, after in pairwise(times):
            low = int((1 - ETA) * max(after, 0))
            z = ddim_step(self.process, z, self.predict_x(z, t, labels), t, low)
            if after >= 0:
                kept = (self.process.alpha(after) / self.process.alpha(low)).to(z)
                z = kept * z + (1 - kept.square()).sqrt() * fresh(z, generator)
        return z


def fresh(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of `like`'s shape, drawn where the generator is."""
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def scalings(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out at times t."""
    scaled = TIMESTEP_SCALING * t.double().clamp(min=0)
    squares = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / squares, scaled / squares.sqrt()


__all__ = ["FEW_STEP", "LCM", "TCD", "Denoiser", "Sampling", "consistency_grid", "consistency_times", "scalings"]
