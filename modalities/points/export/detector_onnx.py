"""A detector as ONNX: from the points of one scan in their pillars, or one frame's photographs, to what cells say."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xmodal_kd.models import onnx
from xmodal_kd.runtime.timing import latency

from ..data.simulator.camera import CameraSpec
from ..models import CenterPointCamera
from ..views.frustum import lift_of
from ..views.ground import Ground
from .onnx import EXTRA, FP32, wave
from .saved_folder import Card, load_card

#: Numbers of points that an export is made and tried with.
POINTS = (4000, 3000, 7001)
#: Of cameras, degrees.
ANGLES = (81.0, 60.0)


class OneScan(nn.Module):
    """A detector of one scan, or of the photographs of one frame, on its own ground."""

    def __init__(self, model: nn.Module, ground: Ground) -> None:
        super().__init__()
        self.model, self.shape = model, (1, *ground.shape)

    def forward(self, points: Float[Tensor, "n c"], cell: Int64[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        heat, boxes = self.model(points, cell, self.shape)
        return heat, boxes


class OneFrame(OneScan):
    """Of photographs; a network's inputs are called as what is given."""

    def forward(self, pictures: Float[Tensor, "1 n c h w"], cell: Int64[Tensor, " all"]) -> tuple[Tensor, Tensor]:
        return super().forward(pictures, cell)


def export(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` beside the saved detector in `folder`.

    Inputs ``points`` (n, 8 or 9) float32 and ``cell`` (n,) int64, as `views.ground.pillars` makes them of a scan; or
    ``pictures`` (1, n, 3, height, width) float32, colours from 0 to 1, and ``cell``, where all that they may show
    stands, which hangs on the calibration of the cameras alone (`CenterPointCamera.cells`). Outputs ``heat`` (1,
    classes, h, w) logits and ``boxes`` (1, 8, h, w), which `models.decoding` reads.

    Returns:
        Its ``bytes``, ``free`` axes, largest difference from torch (``max_error``) and latency: ``milliseconds``
        (median) of 4,000 points or of a frame, ``p95_ms``, ``runs``, ``threads``.

    Raises:
        RunError: the exported model differs from torch by more than 1e-4.
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    card = load_card(Path(folder), detects=True)
    assert card.detection is not None
    ground = Ground.of(card.detection, card.view.cell)
    camera = isinstance(model, CenterPointCamera)
    whole, errors = (OneFrame if camera else OneScan)(model, ground), list[float]()
    device = next(model.parameters()).device
    tried = _photographs(model, card, ground) if isinstance(model, CenterPointCamera) else _scans(card, ground)

    def check(path: Path) -> None:
        session = onnx.session(path, extra=EXTRA)
        errors.extend(onnx.prove(whole, partial(onnx.run, session), *given) for given in tried)

    path, names = Path(folder) / FP32, ("pictures" if camera else "points", "cell")
    example = dict(zip(names, (x.to(device) for x in tried[0]), strict=True))
    free: dict[str, dict[int, Any]] = {} if camera else {name: {0: "points"} for name in names}
    onnx.export(whole, path, example, ["heat", "boxes"], free, check, extra=EXTRA)
    session = onnx.session(path, threads=torch.get_num_threads(), extra=EXTRA)
    time = latency(partial(onnx.run, session, *tried[0]))
    return {
        FP32: {
            "bytes": path.stat().st_size, "free": list(free)[:1], "max_error": max(errors),
            "milliseconds": time["median_ms"], "p95_ms": time["p95_ms"], "runs": time["runs"],
            "threads": torch.get_num_threads(),
        }
    }  # fmt: skip


def _scans(card: Card, ground: Ground) -> list[tuple[Tensor, Tensor]]:
    """Scans of several sizes, with their pillars."""
    return [(wave((n, card.channels)), (torch.arange(n) * 7919) % ground.cells) for n in POINTS]


def _photographs(model: CenterPointCamera, card: Card, ground: Ground) -> list[tuple[Tensor, Tensor]]:
    """Frames of cameras that look ahead, of two angles of view."""
    number, (height, width) = max(1, len(card.view.cameras)), card.image
    found = []
    for degrees in ANGLES:
        lift = torch.from_numpy(lift_of(CameraSpec(height, width, degrees).camera())).expand(1, number, 3, 4)
        pictures = 0.5 + 0.5 * wave((1, number, card.channels, height, width))
        found.append((pictures, model.cells(lift, (height, width), ground)))
    return found


__all__ = ["export"]
