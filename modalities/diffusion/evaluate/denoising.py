"""Whether a teacher's folder tells the truth: its error in denoising real samples, as its files say and otherwise."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data.condition import Condition, rows
from ..models.denoiser import Denoiser
from ..models.process import Process

#: Samples and times that the error is taken over.
SAMPLES, TIMES = 32, 8
#: alpha between which a denoiser has something to do and epsilon still tells x.
ALPHAS = (0.2, 0.98)
#: Another reading of the same network must have at most this share of the error to be the better one.
BETTER = 0.8
#: The schedule of the folder.
OWN = "its own"
Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Reading:
    """What a network's output may mean.

    Attributes:
        schedule: its name in words; ``its own`` for that of the folder.
        error: squared error of x over that of the best guess from each value alone, which 1 or more does not beat.
    """

    prediction: str
    schedule: str
    error: float


def trust(teacher: Denoiser, batch: Mapping[str, Any]) -> Iterator[tuple[Status, str, str]]:
    """A finding for `check` about a teacher that was loaded."""
    found = readings(teacher, batch)
    if not found:
        return
    own = next(r for r in found if (r.prediction, r.schedule) == (teacher.prediction, OWN))
    best = min(found, key=lambda r: r.error)
    said = f"the teacher denoises samples with {own.error:.2f} of the error of the best guess from each value alone"
    if best.error < min(1.0, BETTER * own.error):
        other = [f"prediction_type {best.prediction}"] if best.prediction != own.prediction else []
        other += [f"the schedule {best.schedule}"] if best.schedule != own.schedule else []
        yield (
            "warn",
            f"{said}, and with {best.error:.2f} as {' on '.join(other)}: its scheduler file does not say what it was "
            f"trained with ({teacher.prediction})",
            f"set {' and '.join(other)} in its scheduler_config.json",
        )
    elif own.error >= 1:
        advice = "is it trained, and on such data, of the same range and classes? do not distil from it otherwise"
        yield "warn", f"{said}: no better than that guess, under any prediction type and schedule", advice
    else:
        yield "pass", f"{said}; no other prediction type or schedule fits better", ""


@torch.no_grad()
def readings(teacher: Denoiser, batch: Mapping[str, Any]) -> list[Reading]:
    """The error of the teacher's network under each prediction type and schedule of its T."""
    x, noise = batch["x"][:SAMPLES], batch["noise"][:SAMPLES]
    labels = rows(batch["labels"], slice(SAMPLES)) if "labels" in batch else None
    teacher = copy.copy(teacher)
    teacher.guidance = 1.0  # guided, it is no denoiser of the data
    return [
        Reading(prediction, name, error)
        for name, process in schedules(teacher.process).items()
        for prediction, error in _errors(teacher, process, x, noise, labels).items()
    ]


def schedules(own: Process) -> dict[str, Process]:
    """The usual ones on the timesteps of `own`, which stands first; those equal to it are left out."""
    steps, found = own.T, {OWN: own}
    if own.kind != "vp":
        return found
    named = {
        "squaredcos_cap_v2": Process.cosine(steps),
        "linear (beta 0.0001 to 0.02)": _of(np.linspace(1e-4, 0.02, steps)),
        "scaled_linear (beta 0.00085 to 0.012)": _of(np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2),
    }
    for name, process in named.items():
        if float((process.alphas_cumprod - own.alphas_cumprod).abs().max()) > 0.01:
            found[name] = process
    return found


def _of(betas: np.ndarray) -> Process:
    return Process.from_betas(betas)


def _errors(
    teacher: Denoiser, process: Process, x: Tensor, noise: Tensor, labels: Condition | None
) -> dict[str, float]:
    """Of each prediction type, over that of the linear guess from each value, its mean and its variance."""
    times = _times(process)
    mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
    errors, trivial = dict.fromkeys(process.predictions, 0.0), 0.0
    for t in times:
        alpha, sigma = process.pair(t, x)
        z = process.add_noise(x, noise, t)
        out = teacher(z, torch.full((len(x),), t, device=x.device), labels).to(x)
        guess = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (z - alpha * mean)
        trivial += float((guess - x).square().mean())
        for prediction in process.predictions:
            errors[prediction] += float((process.convert(out, z, t, prediction, "sample") - x).square().mean())
    return {prediction: error / max(trivial, 1e-12) for prediction, error in errors.items()}


def _times(process: Process) -> list[int]:
    """Evenly over those that `ALPHAS` leave."""
    times = torch.arange(process.T)
    alpha = (1 + (process.sigma(times) / process.alpha(times)).square()).rsqrt()  # what is left of x at unit variance
    inside = ((alpha >= ALPHAS[0]) & (alpha <= ALPHAS[1])).nonzero().flatten().tolist()
    chosen = inside or list(range(process.T))
    return [chosen[round(i)] for i in np.linspace(0, len(chosen) - 1, min(TIMES, len(chosen)))]


__all__ = ["Reading", "readings", "schedules", "trust"]
