"""Where the time of a step goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch


class Clock:
    """Seconds by part, measured on the steps that are asked for: on a GPU each measurement waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.steps = 0
        self.running = False

    @contextmanager
    def step(self, measured: bool) -> Iterator[None]:
        self.running = measured
        try:
            with self.time("step"):
                yield
            self.steps += measured
        finally:
            self.running = False

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        if not self.running:
            yield
            return
        start = self._now()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    def split(self) -> dict[str, float]:
        """Milliseconds a step by part; ``other`` is what no part claimed: data, logging, the loop itself."""
        if not self.steps:
            return {}
        milliseconds = {part: 1000 * seconds / self.steps for part, seconds in self.seconds.items()}
        whole = milliseconds.pop("step", 0.0)
        return {**milliseconds, "other": max(0.0, whole - sum(milliseconds.values())), "step": whole}
