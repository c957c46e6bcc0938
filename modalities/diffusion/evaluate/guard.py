"""Collapse and drift: what a student makes of a fixed batch of noise, beside what its teacher makes of the same."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from xmodal_kd.runtime.progress import console

from ..models.denoiser import Denoiser
from .metrics import neighbour_radii

#: Samples of the batch, and how many it takes to be alarmed: a rehearsal draws fewer.
COUNT, FEWEST = 128, 32
#: Of the teacher's diversity, and of its standard deviation: what is less diverse, or has moved farther, is told.
LEAST_DIVERSITY, MOST_DRIFT = 0.5, 0.5


class Sampler(Protocol):
    """What draws samples of a denoiser: the adapter."""

    def sample(self, model: Denoiser, draw: int = 0, count: int | None = None) -> Tensor: ...


def guarded(sampler: Sampler, teacher: Denoiser, student: Denoiser) -> dict[str, float]:
    """`compared` of both on the first noise, and a warning on the console where it is alarming."""
    theirs, made = (sampler.sample(model, 0, COUNT) for model in (teacher, student))
    found = compared(made, theirs.to(made.device))
    for line in alarms(found) if len(made) >= FEWEST else ():
        console.print(f"warning  {line}", markup=False, highlight=False, soft_wrap=True)
    return found


def compared(made: Tensor, theirs: Tensor) -> dict[str, float]:
    """Of samples ``(n, ...)`` from the same noise, n at least 2.

    ``diversity`` is how far a sample is from its nearest other, a mean, over the same of the teacher's; a student that
    makes a few samples again and again is near 0, and so is one that makes their mean. ``drift`` is the root mean
    square by which the mean sample has moved, over the standard deviation of the teacher's values.
    """
    x, y = (samples.detach().flatten(1).double() for samples in (made, theirs))
    apart = [float(neighbour_radii(rows, 1).mean()) for rows in (x, y)]
    moved, spread = (x.mean(0) - y.mean(0)).square().mean().sqrt(), y.std()
    return {"diversity": apart[0] / max(apart[1], 1e-12), "drift": float(moved / spread.clamp(min=1e-12))}


def alarms(found: dict[str, float]) -> list[str]:
    """A line for each of both that is beyond its bound."""
    lines = []
    if found["diversity"] < LEAST_DIVERSITY:
        lines.append(
            f"the student's samples are {found['diversity']:.2f} as far apart as its teacher's from the same noise: "
            "they collapse, or are not learnt yet (lower train.optimizer.lr, or train longer)"
        )
    if found["drift"] > MOST_DRIFT:
        lines.append(
            f"the student's mean sample is {found['drift']:.2f} standard deviations from its teacher's: it drifts "
            "(lower train.optimizer.lr)"
        )
    return lines


__all__ = ["COUNT", "alarms", "compared", "guarded"]
