"""A transducer as three ONNX graphs: the encoder, in float32 and int8, and what goes along with the text.

========================= ========================================== =============================================
file                      takes                                      gives
========================= ========================================== =============================================
model.onnx (.int8.onnx)   ``features`` (batch, time, mels), lengths  ``logits``: states (batch, t, c), their lengths
predictor.onnx            ``symbols`` (batch,), ``state``            ``known`` (batch, c), ``next_state``
joint.onnx                ``sound`` (batch, c), ``text`` (batch, c)  ``logits`` (batch, classes)
========================= ========================================== =============================================

The state begins as zeros, and the predictor is first given the blank, symbol 0. The two small graphs stay in float32:
they are a tenth of the bytes, and the predictor's table is looked up, not multiplied.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xmodal_kd.models import onnx

from ..models.transducer import Transducer
from .onnx import EXTRA, export_onnx

PREDICTOR, JOINT = "predictor.onnx", "joint.onnx"
#: Batches that the small graphs are checked at.
CHECKED = (1, 3)


class OnnxParts:
    """The predictor and the joint of a folder, see `evaluate.transducer.Parts`."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        self.predictor = onnx.session(folder / PREDICTOR, threads=threads, extra=EXTRA)
        self.joint = onnx.session(folder / JOINT, threads=threads, extra=EXTRA)

    def start(self, batch: int) -> Tensor:
        state = self.predictor.get_inputs()[1]
        whole = state.type == "tensor(int64)"
        return torch.zeros(batch, *state.shape[1:], dtype=torch.int64 if whole else torch.float32)

    def predict(self, symbols: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        known, after = onnx.run(self.predictor, symbols, state)
        return known, after

    def join(self, sound: Tensor, text: Tensor) -> Tensor:
        return onnx.run(self.joint, sound, text)[0]


class _Step(nn.Module):
    """A predictor, one symbol further."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, symbols: Tensor, state: Tensor) -> Any:
        return self.predictor.step(symbols, state)  # type: ignore[operator]


def export_transducer(model: Transducer, folder: Path, mels: int) -> list[Path]:
    """Write the three graphs in float32, each proven equal to the torch model at shapes it was not traced at.

    Raises:
        RunError: ONNX Runtime differs from torch by more than 1e-4.
    """
    return [export_onnx(model.encoder, folder, mels), *export_text(model, folder)]


def export_text(model: Transducer, folder: Path) -> list[Path]:
    """The predictor and the joint alone."""
    width, step = model.joint.out.in_features, _Step(model.predictor)
    state = model.predictor.start(2)
    given = {"symbols": torch.zeros(2, dtype=torch.int64), "state": state}
    free = {name: {0: "batch"} for name in given}
    check = partial(_check, step, given)
    predictor = onnx.export(step, folder / PREDICTOR, given, ["known", "next_state"], free, check, extra=EXTRA)
    both = {"sound": torch.zeros(2, width), "text": torch.zeros(2, width)}
    check = partial(_check, model.joint, both)
    free = {name: {0: "batch"} for name in both}
    joint = onnx.export(model.joint, folder / JOINT, both, ["logits"], free, check, extra=EXTRA)
    return [predictor, joint]


def _check(model: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    session = onnx.session(path, extra=EXTRA)
    for batch in CHECKED:
        given = []
        for example in inputs.values():  # fixed waves and numbers: exporting draws nothing from the global generator
            size = (batch, *example.shape[1:])
            count = torch.arange(torch.Size(size).numel()).reshape(size)
            given.append(torch.sin(count.float()) if example.is_floating_point() else count % 2)
        onnx.prove(model, partial(onnx.run, session), *given)


__all__ = ["JOINT", "PREDICTOR", "OnnxParts", "export_text", "export_transducer"]
