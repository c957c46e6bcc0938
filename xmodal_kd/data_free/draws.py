"""What stands in the place of samples: random numbers, of which inputs are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapter.adapter import Batch
from ..runtime.random_streams import Streams

#: Batches that are called an epoch.
EPOCH = 100

#: Tensors by name, of one sample.
Draw = Callable[[torch.Generator], dict[str, Tensor]]


class Drawn(NamedTuple):
    id: int
    tensors: dict[str, Tensor]


class Draws:
    """A source that reads nothing: what a sample is made of is a function of (seed, epoch, index)."""

    def __init__(self, batch_size: int, streams: Streams, draw: Draw) -> None:
        self.batch_size, self.streams, self.draw = batch_size, streams, draw

    def __len__(self) -> int:
        return EPOCH * self.batch_size

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        size = self.batch_size
        return [range(at, at + size) for at in range(0, len(self), size)]

    def sample(self, index: int, epoch: int) -> Drawn:
        return Drawn(index, self.draw(self.streams.torch("made inputs", epoch, index)))

    def collate(self, samples: Sequence[Drawn]) -> Batch:
        """``ids``, ``keys`` and what was drawn, of all samples."""
        first = samples[0].tensors
        batch: dict[str, Any] = {name: torch.stack([one.tensors[name] for one in samples]) for name in first}
        ids = [one.id for one in samples]
        return {"ids": torch.tensor(ids), "keys": [f"made-{i}" for i in ids], **batch}


__all__ = ["Draw", "Drawn", "Draws"]
