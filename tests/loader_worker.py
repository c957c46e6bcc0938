"""A process whose loader has workers, for tests of what becomes of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from time import sleep
from typing import Any

import torch

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.training.loader import steps


class Makers:
    """A sample is the process that made it."""

    def __len__(self) -> int:
        return 2

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        return [[0], [1]]

    def sample(self, index: int, epoch: int) -> int:
        return os.getpid()

    def collate(self, samples: Sequence[Any]) -> Batch:
        return {"ids": torch.tensor(samples)}


def makers(out: Any) -> None:
    """Send the workers of a loader, and wait."""
    stream = steps(Makers(), workers=2)
    out.send({next(stream)[0]["ids"].item() for _ in range(2)})
    sleep(60)
