"""What a run stands on: threads, device, precision, processes."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from .errors import UserError, nearest

DEVICES = ("auto", "cpu", "cuda", "mps")
#: Packages whose version belongs to a result.
RECORDED = (
    "xmodal-kd", "torch", "torchaudio", "accelerate", "numpy", "onnxruntime", "jiwer", "soundfile", "diffusers",
    "safetensors", "scikit-learn", "pillow",
)  # fmt: skip


def make_accelerator(
    device: str, precision: str, *, trackers: tuple[str, ...] = (), logs: Path | None = None
) -> Accelerator:
    """Accelerate's device, precision, processes and trackers, for `device` of auto, cpu, cuda, mps.

    Accelerate keeps one state a process and refuses a second precision; ours is made anew for each training.
    """
    if device not in DEVICES:
        raise UserError(f"--device {device!r}: choose one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch finds no Apple GPU here; use --device cpu")
    on_cpu = device == "cpu" or (
        device == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available()
    )
    if precision == "fp16" and on_cpu:
        raise UserError("train.precision: fp16 needs a GPU; a CPU computes in bf16 or fp32")
    launched = PartialState._shared_state.get("_cpu") == on_cpu
    AcceleratorState._reset_state(reset_partial_state=not launched and not torch.distributed.is_initialized())
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(trackers) or None,
        project_dir=str(logs) if logs is not None else None,
    )
    if str(accelerator.distributed_type).endswith(("FSDP", "DEEPSPEED", "MEGATRON_LM")):
        raise UserError(
            f"{accelerator.distributed_type} is not launched by Accelerate here: launch plain processes and "
            "say train.sharding: fsdp"
        )
    return accelerator


def check_trackers(trackers: Sequence[str]) -> None:
    """Raises `UserError` for a tracker that Accelerate does not know, or would leave out without a word."""
    known = [str(kind.value) for kind in LoggerType]
    for name in trackers:
        if name not in known:
            raise UserError(f"trackers: unknown tracker {name!r}{nearest(name, known)}")
        if name != "all" and name not in map(str, get_available_trackers()):
            raise UserError(f"trackers: the package of {name!r} is not installed")


def versions() -> dict[str, str]:
    """Of Python and of the installed packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in RECORDED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(accelerator: Accelerator) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else platform.machine()
    return {
        "device": str(accelerator.device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
    }


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where the run was on one, else of this process so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def physical_memory() -> int | None:
    """Bytes of this machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
