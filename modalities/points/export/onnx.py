"""The student as ONNX: proven equal to the torch model at sizes it was not traced at, and timed in ONNX Runtime."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xmodal_kd.adapter.saved_model import WEIGHTS
from xmodal_kd.models import onnx
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.timing import latency

from ..models import MODELS
from .saved_folder import Card, load_card

FP32 = "model.onnx"
EXTRA = "points"
#: Sizes of a point set that an export is tried with.
POINTS = (256, 300)
NAMES = ("batch", "channels", "height", "width")


def export(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` beside the saved model in `folder`, for the size of view that its card names.

    Input ``view`` (batch, channels, height, width), output ``logits`` (batch, classes, height, width), float32. The
    batch is free, and so are the size of pictures and the width of range images, the latter in steps of what the
    network halves. The rows of range images are the sensor's: how often they are halved hangs on their number. Sets of
    points are tried, and where they cannot be expressed there is no ONNX file.

    Returns:
        By file its ``bytes``, and of ONNX ``free`` axes, the largest difference from torch (``max_error``), and the
        latency at batch 1: ``milliseconds`` (median), ``p95_ms``, ``runs``, ``threads``; without ONNX a ``note``.

    Raises:
        RunError: the exported model differs from torch by more than 1e-4.
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    folder = Path(folder)
    card = load_card(folder)
    if card.view.sees == "points":
        return _points(model, folder, card)
    height, width = size(card)
    example = torch.zeros(2, card.channels, height, width, device=next(model.parameters()).device)
    free, errors = _free(card), list[float]()
    check = partial(_check, model, card, errors)
    onnx.export(model, folder / FP32, {"view": example}, ["logits"], {"view": free}, check, extra=EXTRA)
    session = onnx.session(folder / FP32, threads=torch.get_num_threads(), extra=EXTRA)
    found = latency(partial(onnx.run, session, wave((1, card.channels, height, width))))
    return {
        FP32: {
            "bytes": (folder / FP32).stat().st_size, "free": [NAMES[axis] for axis in free], "max_error": max(errors),
            "milliseconds": found["median_ms"], "p95_ms": found["p95_ms"], "runs": found["runs"],
            "threads": torch.get_num_threads(),
        }
    }  # fmt: skip


def size(card: Card) -> tuple[int, int]:
    """Rows and columns of what a saved model of range images or pictures sees."""
    if card.view.sees == "image":
        return card.image
    return card.view.beams or card.lidar.beams, card.view.columns


def wave(shape: tuple[int, ...]) -> Tensor:
    """A fixed input rather than noise: exporting draws nothing from the global generator."""
    return torch.sin(torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float32)).reshape(shape)


def _step(card: Card) -> int:
    """What the columns of a range image must divide by: the network halves them once a level."""
    return int(2 ** (int(card.params.get("levels", 1)) - 1))


def _free(card: Card) -> dict[int, Any]:
    """The axes of any size."""
    if card.view.sees == "image":
        return {0: "batch"} | ({2: "height", 3: "width"} if MODELS[card.model].free_size else {})
    step = _step(card)
    return {0: "batch", 3: step * torch.export.Dim("part") if step > 1 else "width"}


def _check(model: nn.Module, card: Card, errors: list[float], path: Path) -> None:
    """Compare at the card's size alone, and in a batch with every free side larger."""
    session, (height, width) = onnx.session(path, extra=EXTRA), size(card)
    down, right = (5, 3) if card.view.sees == "image" else (0, 3 * _step(card))
    if not MODELS[card.model].free_size:
        down = right = 0
    for shape in ((1, card.channels, height, width), (3, card.channels, height + down, width + right)):
        errors.append(onnx.prove(model, partial(onnx.run, session), wave(shape)))


def _points(model: nn.Module, folder: Path, card: Card) -> dict[str, Any]:
    """Sets of points: an ONNX file of one set of any size if the exporter can make one, else why not."""
    few, many = POINTS
    device = next(model.parameters()).device
    inputs = {"points": _cloud(few, card).to(device), "lengths": torch.tensor([few], device=device)}

    def check(path: Path) -> None:
        session = onnx.session(path, extra=EXTRA)
        for n in (few, many):
            onnx.prove(model, partial(onnx.run, session), _cloud(n, card), torch.tensor([n]))

    try:
        onnx.export(model, folder / FP32, inputs, ["logits"], {"points": {0: "points"}}, check, extra=EXTRA)
    except UserError:
        raise
    except Exception as error:  # the exporter's own are many
        note = f"no ONNX: neighbourhoods hang on the points, which the exporter does not follow ({_reason(error)})"
        return {WEIGHTS: {"bytes": (folder / WEIGHTS).stat().st_size, "note": note}}
    return {FP32: {"bytes": (folder / FP32).stat().st_size, "free": ["points"]}}


def _reason(error: Exception) -> str:
    """The exporter's own reason in one line; its messages begin with advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def _cloud(n: int, card: Card) -> Tensor:
    return 10 * wave((n, card.channels))


__all__: list[str] = ["FP32", "export", "size"]
