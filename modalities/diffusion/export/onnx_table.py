"""A sampler as a table of numbers, so that a network is sampled without torch: every step sees a weighted sum of the
noise and of what the network has said before.

All samplers here are linear in these, whatever their solver, so the table is not derived but recorded: the sampler runs
once on unit vectors, in float64, and what it asks the network is the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.denoiser import Denoiser, Sampling
from ..models.process import Process

Array = np.ndarray[Any, Any]


class _Unit:
    """Unit vectors ``(1, width)``, one after the other."""

    def __init__(self, width: int) -> None:
        self.width, self.taken = width, 0

    def __call__(self) -> Tensor:
        made = torch.zeros(1, self.width, dtype=torch.float64)
        made[0, self.taken] = 1
        self.taken += 1
        return made


class _Asked(nn.Module):
    """In the place of a network: answers unit vectors, and keeps what it was asked."""

    def __init__(self, unit: _Unit) -> None:
        super().__init__()
        self.unit, self.steps = unit, list[dict[str, Any]]()

    def forward(self, z: Tensor, t: Tensor, **_: Any) -> Tensor:
        self.steps.append({"timestep": float(t[0]), "sample": z[0, : self.unit.taken].tolist(), "noise": False})
        return self.unit()


class _Recorded(Denoiser):
    """A denoiser whose fresh noise is a unit vector, too."""

    def fresh(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        assert isinstance(self.net, _Asked)
        self.net.steps[-1]["noise"] = True
        return self.net.unit()


def table(process: Process, prediction: str, sampling: Sampling) -> dict[str, Any]:
    """The terms of a sample, in the order in which they come to be: noise, what the network says at each step, and
    behind that fresh noise where the sampler adds some.

    Returns:
        ``steps``: of each the network's ``timestep``, the weights of the terms so far of which the ``sample`` that it
        is given is the sum, and whether fresh ``noise`` comes behind its answer; ``result``: the weights of all terms.
    """
    unit = _Unit(1 + 2 * sampling.nfe)
    net = _Asked(unit)
    made = _Recorded(net, process, prediction, (unit.width,), sampling=sampling).sample(unit())
    return {"steps": net.steps, "result": made[0, : unit.taken].tolist()}


def follow(
    found: dict[str, Any], noise: Array, ask: Callable[[Array, float], Array], fresh: Callable[[], Array]
) -> Array:  # fmt: skip
    """A sample by a `table`, in numpy alone, as a card's program does it.

    Args:
        noise: ``(b, ...)``, standard normal.
        ask: what the network says of ``(b, ...)`` in float32 at a timestep.
        fresh: further noise of this shape.
    """
    terms = [noise]
    for step in found["steps"]:
        z = sum(weight * term for weight, term in zip(step["sample"], terms, strict=True))
        terms.append(ask(np.asarray(z, dtype=np.float32), step["timestep"]))
        if step["noise"]:
            terms.append(fresh())
    return np.asarray(sum(weight * term for weight, term in zip(found["result"], terms, strict=True)))


__all__ = ["follow", "table"]
