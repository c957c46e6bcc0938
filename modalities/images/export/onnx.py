"""A saved network of images as ONNX, proven equal to torch and timed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xmodal_kd.models import onnx
from xmodal_kd.runtime.timing import latency

FP32, EXTRA = "model.onnx", "images"


def export_onnx(
    model: nn.Module, folder: Path, given: Mapping[str, tuple[int, ...]], gives: str, *, name: str = FP32
) -> dict[str, Any]:
    """Write an ONNX file beside the saved model in `folder`: what is `given`, by name and shape behind a batch of any
    size, to what it `gives`.

    Returns:
        Of the file its ``bytes``, the largest difference from torch (``max_error``), and the latency at batch 1:
        ``milliseconds`` (median), ``p95_ms``, ``runs``, ``threads``.

    Raises:
        RunError: the exported model differs from torch by more than 1e-4.
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    errors, threads, path = list[float](), torch.get_num_threads(), folder / name

    def waves(n: int) -> list[Tensor]:
        return [_wave((n, *shape)) for shape in given.values()]

    def check(path: Path) -> None:
        session = onnx.session(path, extra=EXTRA)
        errors.extend(onnx.prove(model, partial(onnx.run, session), *waves(n)) for n in (1, 3))

    device = next(model.parameters()).device
    example = {key: torch.zeros(2, *shape, device=device) for key, shape in given.items()}
    onnx.export(model, path, example, [gives], {key: {0: "batch"} for key in given}, check, extra=EXTRA)
    session = onnx.session(path, threads=threads, extra=EXTRA)
    found = latency(partial(onnx.run, session, *waves(1)))
    times = {"milliseconds": found["median_ms"], "p95_ms": found["p95_ms"], "runs": found["runs"]}
    facts = {"bytes": path.stat().st_size, "free": ["batch"], "max_error": max(errors)}
    return {name: {**facts, **times, "threads": threads}}


def _wave(shape: tuple[int, ...]) -> Tensor:
    """A fixed input rather than noise: exporting draws nothing from the global generator."""
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32)).reshape(shape)


__all__ = ["EXTRA", "FP32", "export_onnx"]
