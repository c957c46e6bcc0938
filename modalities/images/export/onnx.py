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
#: Heights and widths at which a model of any size is compared, beside that of its card.
SIZES = ((5, 9), (24, 17))


def export_onnx(
    model: nn.Module, folder: Path, given: Mapping[str, tuple[int, ...]], gives: str, *, name: str = FP32,
    any_size: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write an ONNX file beside the saved model in `folder`: what is `given`, by name and shape behind a batch of any
    size, to what it `gives`.

    Args:
        any_size: the model takes images of any height and width, and so does the file.

    Returns:
        Of the file its ``bytes``, the largest difference from torch (``max_error``), and the latency at batch 1:
        ``milliseconds`` (median), ``p95_ms``, ``runs``, ``threads``.

    Raises:
        RunError: the exported model differs from torch by more than 1e-4.
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    errors, threads, path = list[float](), torch.get_num_threads(), folder / name
    free = {0: "batch"} | ({2: "height", 3: "width"} if any_size else {})

    def waves(n: int, size: tuple[int, ...] | None = None) -> list[Tensor]:
        return [_wave((n, *(shape if size is None else (shape[0], *size)))) for shape in given.values()]

    def check(path: Path) -> None:
        run = partial(onnx.run, onnx.session(path, extra=EXTRA))
        for size in (None, *(SIZES if any_size else ())):
            errors.extend(onnx.prove(model, run, *waves(n, size)) for n in (1, 3))

    device = next(model.parameters()).device
    example = {key: torch.zeros(2, *shape, device=device) for key, shape in given.items()}
    onnx.export(model, path, example, [gives], dict.fromkeys(given, free), check, extra=EXTRA)
    session = onnx.session(path, threads=threads, extra=EXTRA)
    found = latency(partial(onnx.run, session, *waves(1)))
    times = {"milliseconds": found["median_ms"], "p95_ms": found["p95_ms"], "runs": found["runs"]}
    facts = {"bytes": path.stat().st_size, "free": [*free.values()], "max_error": max(errors)}
    return {name: {**facts, **times, "threads": threads}}


def _wave(shape: tuple[int, ...]) -> Tensor:
    """A fixed input rather than noise: exporting draws nothing from the global generator."""
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32)).reshape(shape)


__all__ = ["EXTRA", "FP32", "export_onnx"]
