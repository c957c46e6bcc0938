"""Samples by ONNX Runtime and numpy, as a card's program makes them, against torch's: how far apart, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.models import onnx
from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import RunError
from xmodal_kd.runtime.timing import latency

from ..data.condition import Condition, each, rows
from ..models.denoiser import Denoiser
from .onnx_table import Array, follow

FP32, DECODER, TABLE, PROMPTS, EXTRA = "model.onnx", "decoder.onnx", "onnx.json", "prompts.npz", "diffusion"
#: The largest difference of a pixel in [0, 1]: a quarter of what an 8-bit image shows.
TOLERANCE = 1e-3
SEED = 20
#: Seconds in which samples are timed.
PATIENCE = 10.0


class OnnxSampler:
    """The files of a folder.

    Args:
        null: what the network is told of nothing, a row for each input beside sample and timestep.
    """

    def __init__(self, folder: Path, null: Mapping[str, Array], *, threads: int = 1) -> None:
        self.about, self.null = read_object(folder / TABLE), null
        self.net = onnx.session(folder / FP32, threads=threads, extra=EXTRA)
        decoder = self.about["decoder"]
        self.decoder = onnx.session(folder / decoder, threads=threads, extra=EXTRA) if decoder else None

    def __call__(self, noise: Array, told: Mapping[str, Array], generator: Any) -> Array:
        """Images ``(b, c, h, w)``, or whatever the network makes, of noise.

        Args:
            told: what the network is told beside sample and timestep, ``(b, ...)`` by name.
            generator: gives fresh noise by ``standard_normal(shape)``.
        """
        count, scale = len(noise), self.about["guidance"]
        nothing = {name: np.repeat(row, count, axis=0) for name, row in self.null.items()}

        def said(z: Array, t: float, more: Mapping[str, Array]) -> Array:
            given = {"sample": z, "timestep": np.full(count, t, np.float32), **more}
            size = self.about["batch"] or count
            parts = [{name: value[i : i + size] for name, value in given.items()} for i in range(0, count, size)]
            return np.asarray(np.concatenate([self.net.run(None, part)[0] for part in parts]))

        def ask(z: Array, t: float) -> Array:
            own = said(z, t, told)
            if self.about["evaluations"] == 1:
                return own
            free = said(z, t, nothing)
            return np.asarray(free + scale * (own - free))

        x: Array = follow(self.about, noise, ask, lambda: np.asarray(generator.standard_normal(noise.shape)))
        x = x.astype(np.float32)
        return x if self.decoder is None else np.asarray(self.decoder.run(None, {"latents": x})[0])


class _Drawn:
    """A torch generator as numpy's, in the order in which the trainer's sampler draws."""

    def __init__(self, denoiser: Denoiser, generator: torch.Generator) -> None:
        self.denoiser, self.generator = denoiser, generator

    def standard_normal(self, shape: tuple[int, ...]) -> Array:
        return np.asarray(self.denoiser.fresh(torch.empty(shape), self.generator).numpy())


@torch.no_grad()
def measured(
    denoiser: Denoiser, folder: Path, said: Condition | None, told: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of ONNX Runtime: the largest difference of a pixel in [0, 1] from the trainer's sampler (``reload_difference``)
    and ``milliseconds`` of one sample alone (median, with ``p95_ms``, ``runs``, ``threads``); of torch its
    ``milliseconds``.

    Raises:
        RunError: the difference is above `TOLERANCE`.
    """
    threads, names = torch.get_num_threads(), list(told)
    null = {} if denoiser.cost == 1 or denoiser.null is None else dict(zip(names, each(denoiser.null), strict=True))
    sampler = OnnxSampler(folder, {name: part[:1].numpy() for name, part in null.items()}, threads=threads)
    count = len(next(iter(told.values()))) if told else 4

    def theirs(noise: Tensor, condition: Condition | None, generator: torch.Generator) -> Tensor:
        x = denoiser.sample(noise, condition, generator=generator)
        return x if denoiser.parts is None else denoiser.parts.decode(x)

    def ours(noise: Tensor, given: Mapping[str, Tensor], generator: torch.Generator) -> Array:
        known = {name: part.numpy() for name, part in given.items()}
        return sampler(noise.numpy(), known, _Drawn(denoiser, generator))

    noise = torch.randn(count, *denoiser.shape, generator=torch.Generator().manual_seed(SEED))
    found = ours(noise, told, torch.Generator().manual_seed(SEED))
    expected = theirs(noise, said, torch.Generator().manual_seed(SEED))
    apart = (torch.from_numpy(found) / 2 + 0.5).clamp(0, 1) - (expected / 2 + 0.5).clamp(0, 1)
    difference = float(apart.abs().max())
    if not difference <= TOLERANCE:  # NaN too
        raise RunError(
            f"{folder}: a sample by ONNX Runtime differs from torch's by {difference:.2g} of 1 (at most {TOLERANCE:g}) "
            "from the same noise: set data.onnx to false"
        )
    one, alone = {name: part[:1] for name, part in told.items()}, None if said is None else rows(said, slice(1))
    generator = torch.Generator().manual_seed(SEED)
    fast = latency(lambda: ours(noise[:1], one, generator), limit=PATIENCE)
    slow = latency(lambda: theirs(noise[:1], alone, generator), limit=PATIENCE)
    times = {"milliseconds": fast["median_ms"], "p95_ms": fast["p95_ms"], "runs": fast["runs"], "threads": threads}
    return {"reload_difference": difference, **times}, {"milliseconds": slow["median_ms"]}


__all__ = ["DECODER", "EXTRA", "FP32", "PROMPTS", "TABLE", "OnnxSampler", "measured"]
