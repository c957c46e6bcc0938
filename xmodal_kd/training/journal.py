"""What a training writes for whoever looks on: the log of its steps, and where it is now."""

from __future__ import annotations

import importlib.util
import platform
import warnings
from collections.abc import Mapping, Sequence
from time import monotonic, time
from typing import Any

import torch

from ..runtime import run_status
from ..runtime.device import peak_memory, physical_memory
from ..runtime.run_log import RunLog
from ..runtime.saved_steps import Progressed
from .method import Stage

#: Seconds between two words on where a training is.
BETWEEN = 2.0


class Journal:
    """``log.jsonl`` and ``progress.json`` of a training, which nothing is computed from.

    Args:
        log: beside which ``progress.json`` is written.
        metric: the name under which evaluations hold their value.
    """

    def __init__(self, log: RunLog, stages: Sequence[Stage], device: torch.device, metric: str, at: Progressed) -> None:
        self.log, self.stages, self.device, self.metric = log, stages, device, metric
        self.start, self.began = at.total, monotonic()
        self._told = -BETWEEN
        self.log.rewind(at.total)
        self.told(at, now=True)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """An entry of the log."""
        self.log.append(step, values)

    def told(self, at: Progressed, *, now: bool = False) -> None:
        """Say where the training is, unless that was said a moment ago; `now`: whenever that was."""
        since = monotonic() - self.began
        if now or since - self._told >= BETWEEN:
            self._told = since
            done = at.total - self.start
            run_status.write(self.log.path.with_name(run_status.PROGRESS), {
                "step": at.total, "steps": sum(stage.steps for stage in self.stages), "stage": at.stage,
                "stages": len(self.stages), "seconds": at.seconds, "step_seconds": since / done if done else None,
                "best_at": at.best_at, "dev": [
                    {"step": one["step"], "value": one[self.metric]} for one in at.evaluations if self.metric in one
                ], "machine": machine(self.device), "written": time(),
            })  # fmt: skip


def machine(device: torch.device) -> dict[str, Any]:
    """Of a `run_status.Machine`: the device and its memory; a GPU's utilisation where the driver's package is there."""
    peak = peak_memory(device)
    if device.type != "cuda":
        return {"device": device.type, "name": platform.machine(), "peak": peak, "capacity": physical_memory()}
    return {
        "device": device.type, "name": torch.cuda.get_device_name(device), "peak": peak,
        "memory": torch.cuda.memory_allocated(device), "capacity": torch.cuda.mem_get_info(device)[1],
        "utilisation": _utilisation(device),
    }  # fmt: skip


def _utilisation(device: torch.device) -> float | None:
    if importlib.util.find_spec("pynvml") is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.cuda.utilization(device) / 100
    except Exception:  # a driver that does not tell
        return None


__all__ = ["Journal", "machine"]
