"""A detector as ONNX: from the points of one scan in their pillars to what every cell says."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xmodal_kd.models import onnx
from xmodal_kd.runtime.timing import latency

from ..views.ground import Ground
from .onnx import EXTRA, FP32, wave
from .saved_folder import load_card

#: Numbers of points that an export is made and tried with.
POINTS = (4000, 3000, 7001)


class OneScan(nn.Module):
    """A detector of one scan on its own ground."""

    def __init__(self, model: nn.Module, ground: Ground) -> None:
        super().__init__()
        self.model, self.shape = model, (1, *ground.shape)

    def forward(self, points: Float[Tensor, "n c"], cell: Int64[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        heat, boxes = self.model(points, cell, self.shape)
        return heat, boxes


def export(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` beside the saved detector in `folder`.

    Inputs ``points`` (n, 8 or 9) float32 and ``cell`` (n,) int64, as `views.ground.pillars` makes them of a scan;
    outputs ``heat`` (1, classes, h, w) logits and ``boxes`` (1, 8, h, w), which `models.decoding` reads.

    Returns:
        Its ``bytes``, ``free`` axes, largest difference from torch (``max_error``) and latency: ``milliseconds``
        (median) of 4,000 points, ``p95_ms``, ``runs``, ``threads``.

    Raises:
        RunError: the exported model differs from torch by more than 1e-4.
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    card = load_card(Path(folder), detects=True)
    assert card.detection is not None
    ground = Ground.of(card.detection, card.view.cell)
    whole, errors = OneScan(model, ground), list[float]()
    device = next(model.parameters()).device

    def given(n: int) -> tuple[Tensor, Tensor]:
        return wave((n, card.channels)), (torch.arange(n) * 7919) % ground.cells

    def check(path: Path) -> None:
        session = onnx.session(path, extra=EXTRA)
        errors.extend(onnx.prove(whole, partial(onnx.run, session), *given(n)) for n in POINTS)

    path = Path(folder) / FP32
    example = dict(zip(("points", "cell"), (x.to(device) for x in given(POINTS[0])), strict=True))
    free = {"points": {0: "points"}, "cell": {0: "points"}}
    onnx.export(whole, path, example, ["heat", "boxes"], free, check, extra=EXTRA)
    session = onnx.session(path, threads=torch.get_num_threads(), extra=EXTRA)
    time = latency(partial(onnx.run, session, *given(POINTS[0])))
    return {
        FP32: {
            "bytes": path.stat().st_size, "free": ["points"], "max_error": max(errors),
            "milliseconds": time["median_ms"], "p95_ms": time["p95_ms"], "runs": time["runs"],
            "threads": torch.get_num_threads(),
        }
    }  # fmt: skip


__all__ = ["export"]
