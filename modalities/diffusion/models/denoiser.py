"""A network with all that sampling from it needs: the process, what it predicts, its shape, and how it is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from xmodal_kd.runtime.errors import UserError, nearest

from ..data.condition import Condition, joined, moved, repeated
from .asked import ask, is_told, packed, unpacked
from .lora import LOW
from .parts import Parts
from .process import Process, expand
from .solvers import SOLVERS, Predict, ddim_step, evaluations, solve

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
            Others are asked as `asked.ask` has it.
        prediction: what it predicts, one of the process's.
        shape: of one sample.
        classes: how many it is conditioned on; None for one that knows none.
        null: the condition of one sample that says nothing, which guidance leads away from; None: there is none.
        guidance: scale s of classifier-free guidance (Ho and Salimans, 2022): it says u + s (c - u) of what it says
            under `null` and under its condition. 1 is the condition alone. A network that is told the scale
            (`is_told`) is told this one.
        parts: of its pipeline beside it: the autoencoder of its latents, the encoders of its prompts.
    """

    def __init__(
        self, net: nn.Module, process: Process, prediction: str, shape: Sequence[int], *, classes: int | None = None,
        class_names: Sequence[str] | None = None, sampling: Sampling | None = None, null: Condition | None = None,
        guidance: float = 1.0, parts: Parts | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if prediction not in process.predictions:
            raise UserError(f"unknown prediction type {prediction!r}{nearest(prediction, process.predictions)}")
        self.net, self.process, self.prediction = net, process, prediction
        self.shape, self.classes = tuple(shape), classes
        self.class_names = tuple(class_names) if class_names is not None else None
        self.sampling = sampling or Sampling("ddim", min(64, process.T))
        self.guidance, self.parts, self._null = guidance, parts, null

    @property
    def null(self) -> Condition | None:
        """The condition of one sample that says nothing: the empty prompt where it is prompted."""
        return self.parts.nothing if self._null is None and self.parts is not None and self.parts.text else self._null

    @null.setter
    def null(self, value: Condition | None) -> None:
        self._null = value

    @property
    def null_class(self) -> Tensor | None:
        """The number ``(1,)`` of no class; None where its condition is no class."""
        return self._null if isinstance(self._null, Tensor) else None

    @property
    def guidable(self) -> bool:
        """Whether it takes a scale of guidance."""
        return self.prompted or self._null is not None or is_told(self.net)

    @property
    def prompted(self) -> bool:
        """Whether its condition is a text."""
        return self.parts is not None and self.parts.text

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample; under guidance each of them is two."""
        return self.sampling.nfe * self.cost

    @property
    def cost(self) -> int:
        """Network evaluations of one step."""
        return 2 if self.guidance != 1 and not is_told(self.net) else 1

    @property
    def price(self) -> int:
        """Parameters times evaluations of one sample: what smaller networks and fewer steps both save."""
        return self.nfe * self.saved_parameters

    @property
    def saved_parameters(self) -> int:
        """As many as its pipeline will have: without adapters, which are merged then."""
        return sum(value.numel() for name, value in self.net.named_parameters() if LOW not in name)

    def forward(
        self, z: Tensor, t: Tensor | int, labels: Condition | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """What the network says about z ``(b, ...)`` at times t ``(b,)``; at t = -1 it is not asked.

        Args:
            labels: what it is told, of b samples: classes, or prompts.
            guidance: a scale ``(b,)`` for each sample, in place of its own.
        """
        self.check_labels(labels)
        times = torch.as_tensor(t, device=z.device).expand(len(z))
        given, times = self.process.network(z, times)
        if times.is_floating_point():  # in half precision neighbouring times would be one
            times = times.to(torch.float32 if z.dtype in HALF else z.dtype)
        scale: float | Tensor = self.guidance if guidance is None else guidance
        alone = not isinstance(scale, Tensor) and scale == 1
        if labels is None or alone or is_told(self.net):
            return ask(self.net, given, times, labels, scale)
        null = self.null
        if null is None:
            raise UserError("guidance of a model that knows no null condition: there is nothing to guide by")
        nothing = repeated(moved(null, z.device), len(z))
        both = ask(self.net, torch.cat([given, given]), torch.cat([times, times]), joined(nothing, labels))
        free, own = both.chunk(2)
        return free + expand(torch.as_tensor(scale), own) * (own - free)

    def check_labels(self, labels: Condition | None) -> None:
        """Raises `UserError` where labels are missing, or given to a model that knows none."""
        if self.prompted:
            if labels is None or isinstance(labels, Tensor):
                raise UserError("the model is prompted by text and was given none (data.captions)")
        elif (labels is None) != (self.classes is None):
            given, wanted = "no labels" if labels is None else "labels", "none" if self.classes is None else "labels"
            raise UserError(f"the model was given {given} and is made for {wanted}")

    def predict(
        self, target: str, z: Tensor, t: Tensor | int, labels: Condition | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """The network's output as one of `PREDICTIONS`, in at least float32."""
        out = self(z, t, labels) if guidance is None else self(z, t, labels, guidance)
        wide = out.float() if out.dtype in HALF else out
        return self.process.convert(wide, z, t, self.prediction, target)

    def predict_x(
        self, z: Tensor, t: Tensor | int, labels: Condition | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """The clean sample that the network sees in z."""
        return self.predict("sample", z, t, labels, guidance)

    def consistency(
        self, z: Tensor, t: Tensor, labels: Condition | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """The consistency function f(z, t) = c_skip z + c_out x(z, t), the identity at t = -1.

        Song et al. (2023), eq. 5, with Luo et al.'s coefficients (2023), which LCMScheduler applies. Of other processes
        it is x(z, t), whose last timestep is close enough to the clean sample. t is ``(b,)``.
        """
        f = self.predict_x(z, t.clamp(min=0), labels, guidance)
        if self.process.kind == "vp":
            skip, out = scalings(t)
            f = expand(out, z) * f + expand(skip, z) * z
        return torch.where(expand(t < 0, z).bool(), z, f)

    @torch.no_grad()
    def sample(
        self, noise: Tensor, labels: Condition | None = None, sampling: Sampling | None = None,
        generator: torch.Generator | None = None, predict: Predict | None = None,
    ) -> Tensor:  # fmt: skip
        """Samples of noise's shape, unclipped, as its network makes them: latents where `parts` has an autoencoder.

        Args:
            noise: ``(b, ...)``, standard normal.
            generator: of the noise that multistep consistency sampling adds between its steps; others need none.
            predict: what a deterministic solver asks in the place of `predict_x`, whose answers it must give.
        """
        how = sampling or self.sampling
        times, noise = how.times(self.process), self.process.start * noise
        if how.solver == TCD:
            return self._trajectory(noise, labels, times, generator)
        if how.solver != LCM:
            asked = predict or (lambda z, t: self.predict_x(z, t, labels))
            return solve(asked, self.process, noise, times, how.solver)
        x = z = noise
        for t, after in pairwise(times):
            x = self.consistency(z, torch.full((len(z),), t, device=z.device), labels)
            if after >= 0:
                z = self.process.add_noise(x, self.fresh(z, generator), after)
        return x

    def _trajectory(
        self, z: Tensor, labels: Condition | None, times: Sequence[int], generator: torch.Generator | None
    ) -> Tensor:
        """Each step goes along the ODE below the next time, to (1 - eta) of it, and noise leads up again.

        The last one ends at timestep 0, as diffusers' does, not at the clean sample.
        """
        for t, after in pairwise(times):
            low = int((1 - ETA) * max(after, 0))
            z = ddim_step(self.process, z, self.predict_x(z, t, labels), t, low)
            if after >= 0:
                kept = (self.process.alpha(after) / self.process.alpha(low)).to(z)
                z = kept * z + (1 - kept.square()).sqrt() * self.fresh(z, generator)
        return z

    def fresh(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Standard normal noise in the order in which its pipeline draws it: of a packed network's, token by token."""
        if self.parts is None or not self.parts.family.packed:
            return fresh(like, generator)
        return unpacked(fresh(packed(like), generator), like)


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
