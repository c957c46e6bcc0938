"""Where the time of a step goes, and how long one answer takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Any

import numpy as np
import torch

CPU = torch.device("cpu")
_NOTHING = nullcontext()


class StepTimer:
    """Seconds by part, measured on the steps that are asked for: on a GPU each measurement waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.steps = 0
        self.running = False

    def step(self, measured: bool) -> AbstractContextManager[None]:
        """Around a step, of which the parts are measured or not."""
        return self._measured() if measured else _NOTHING

    @contextmanager
    def _measured(self) -> Iterator[None]:
        self.running = True
        try:
            with self.time("step"):
                yield
            self.steps += 1
        finally:
            self.running = False

    def time(self, part: str) -> AbstractContextManager[None]:
        """Adds the seconds of a block to `part`, on the steps that are measured."""
        return self._timed(part) if self.running else _NOTHING

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = _now(self.device)
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + _now(self.device) - start

    def split(self) -> dict[str, float]:
        """Milliseconds a step by part; ``other`` is what no part claimed: data, logging, the loop itself."""
        if not self.steps:
            return {}
        milliseconds = {part: 1000 * seconds / self.steps for part, seconds in self.seconds.items()}
        whole = milliseconds.pop("step", 0.0)
        return {**milliseconds, "other": max(0.0, whole - sum(milliseconds.values())), "step": whole}


def latency(
    run: Callable[[], Any], *, device: torch.device = CPU, runs: int = 50, warm: int = 5, limit: float = float("inf")
) -> dict[str, float]:
    """``median_ms`` and ``p95_ms`` of a call, and how many ``runs`` that is, after `warm` calls that do not count.

    Args:
        device: is waited for.
        limit: seconds after which no more calls are made; there are at least two, and the first never counts.
    """
    seconds: list[float] = []
    began = _now(device)
    while len(seconds) < warm + runs and (len(seconds) < 2 or _now(device) - began < limit):
        started = _now(device)
        run()
        seconds.append(_now(device) - started)
    counted = seconds[warm:] or seconds[1:]
    median, p95 = 1e3 * np.quantile(counted, [0.5, 0.95])
    return {"median_ms": float(median), "p95_ms": float(p95), "runs": len(counted)}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
