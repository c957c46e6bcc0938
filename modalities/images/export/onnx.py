"""A saved network of images as ONNX, proven equal to torch and timed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xmodal_kd.models import onnx
from xmodal_kd.runtime.timing import latency

FP32, EXTRA = "model.onnx", "images"


#: Heights and widths at which a model of any size is compared, beside that of its card.
SIZES = ((5, 9), (24, 17))


def export_onnx(
    model: nn.Module, folder: Path, shape: tuple[int, int, int], gives: str, *, any_size: bool = False
) -> dict[str, Any]:
    """Write ``model.onnx`` beside the saved model in `folder`: ``x`` (batch, c, h, w) to what it `gives`, by name.

    Args:
        any_size: the model takes images of any height and width, and so does the file.

    Returns:
        Of the file its ``bytes``, the largest difference from torch (``max_error``), and the latency at batch 1:
        ``milliseconds`` (median), ``p95_ms``, ``runs``, ``threads``.

    Raises:
        RunError: the exported model differs from torch by more than 1e-4.
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    errors, threads = list[float](), torch.get_num_threads()
    free = {0: "batch"} | ({2: "height", 3: "width"} if any_size else {})
    shapes = [shape, *((shape[0], *size) for size in (SIZES if any_size else ()))]

    def check(path: Path) -> None:
        session = onnx.session(path, extra=EXTRA)
        for each in shapes:
            errors.extend(onnx.prove(model, partial(onnx.run, session), _wave((n, *each))) for n in (1, 3))

    example = torch.zeros(2, *shape, device=next(model.parameters()).device)
    onnx.export(model, folder / FP32, {"x": example}, [gives], {"x": free}, check, extra=EXTRA)
    session = onnx.session(folder / FP32, threads=threads, extra=EXTRA)
    found = latency(partial(onnx.run, session, _wave((1, *shape))))
    size = (folder / FP32).stat().st_size
    times = {"milliseconds": found["median_ms"], "p95_ms": found["p95_ms"], "runs": found["runs"]}
    return {FP32: {"bytes": size, "free": [*free.values()], "max_error": max(errors), **times, "threads": threads}}


def _wave(shape: tuple[int, ...]) -> Tensor:
    """A fixed input rather than noise: exporting draws nothing from the global generator."""
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32)).reshape(shape)


__all__ = ["EXTRA", "FP32", "export_onnx"]
