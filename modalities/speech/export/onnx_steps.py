"""The streaming student as ONNX with its state, in float32 and int8: every frame is computed once, on any machine.

``features`` (batch, time, mels), ``length`` (batch,) and the state in; ``logits`` (batch, time / 4, classes),
``frames`` (batch, time / 4) and the next state out, named ``next_`` and as the input that it becomes. What the client
does:

1. The state begins as zeros, and the features with three frames of zeros before them.
2. Each chunk is a multiple of four frames. While nobody knows where the utterance ends, ``length`` is a large number.
3. ``frames`` says of which output frame each row of logits is; those below 0 are thrown away.
4. At the end ``length`` is the number of frames of features, and zeros are given until the last of ``ceil(length / 4)``
   frames has come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xmodal_kd.models import onnx
from xmodal_kd.runtime.errors import RunError

from ..data.features import Features
from ..models.frames import STRIDE
from ..models.streaming import CHUNK, StepModel, Steps
from .onnx import EXTRA, quantise_file

STREAM_FP32, STREAM_INT8 = "model.stream.onnx", "model.stream.int8.onnx"
#: Frames of features in which the exported graph is given an utterance when it is checked, and of what length.
CHECKED = ((7, 40), (1000, 333), (1, 5))


class OnnxSteps:
    """An exported model with a state, called like the torch one; see `models.streaming.Steps`."""

    stride = STRIDE

    def __init__(self, path: Path | str, *, threads: int = 1) -> None:
        self.session = onnx.session(path, threads=threads, extra=EXTRA)

    def start(self, batch: int = 1) -> tuple[Tensor, ...]:
        """The state before an utterance: zeros of the shapes that the file says."""
        kinds = {"tensor(int64)": torch.int64, "tensor(float)": torch.float32}
        return tuple(
            torch.zeros(batch, *value.shape[1:], dtype=kinds[value.type]) for value in self.session.get_inputs()[2:]
        )

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        return onnx.run(self.session, *given)


def export_steps(model: nn.Module, steps: StepModel, folder: Path, mels: int) -> Path:
    """Write ``model.stream.onnx``, and prove that it says of an utterance in chunks what `model` says of the whole.

    Args:
        steps: `model` with a state, as its ``steps()`` gives it.

    Raises:
        RunError: ONNX Runtime differs from torch by more than 1e-4.
    """
    assert isinstance(steps, nn.Module)
    state = steps.start(2)
    length = torch.full((2,), 64, device=state[0].device)
    inputs = {"features": torch.zeros(2, 32, mels, device=length.device), "length": length}
    names = ["position", *(f"state_{number}" for number in range(len(state) - 1))]
    inputs |= dict(zip(names, state, strict=True))
    outputs = ["logits", "frames", *(f"next_{name}" for name in names)]
    free: dict[str, dict[int, Any]] = {name: {0: "batch"} for name in inputs}
    free["features"] = {0: "batch", 1: STRIDE * torch.export.Dim("frames")}

    def check(path: Path) -> None:
        _check(model, OnnxSteps(path), mels)

    return onnx.export(steps, Path(folder) / STREAM_FP32, inputs, outputs, free, check, extra=EXTRA)


@torch.no_grad()
def _check(model: nn.Module, exported: OnnxSteps, mels: int) -> None:
    device = next(model.parameters()).device
    for size, time in CHECKED:
        features = torch.sin(torch.arange(time * mels, dtype=torch.float32)).reshape(time, mels)
        whole = model(features[None].to(device), torch.tensor([time], device=device))[0][0].cpu()
        parts = torch.cat(list(in_chunks(exported, features, size)))
        error = float((whole - parts).abs().max()) if whole.shape == parts.shape else float("inf")
        if not error <= onnx.TOLERANCE:
            raise RunError(f"{STREAM_FP32}: in chunks of {size} it differs from the torch model by {error:.1e}")


def in_chunks(model: StepModel, features: Tensor, size: int) -> Iterable[Tensor]:
    """The logits of an utterance ``(t, mels)`` that comes in chunks of `size` frames."""
    stream = Steps(model)
    for chunk in features.split(size):
        yield stream.push(chunk)
    yield stream.finish()


class Chunked:
    """An exported model with a state, called with whole utterances as `OnnxModel` is, which it hears in chunks."""

    def __init__(self, path: Path | str, features: Features) -> None:
        self.steps = OnnxSteps(path, threads=torch.get_num_threads())
        self.size = max(1, round(CHUNK * features.sample_rate / features.hop))

    def __call__(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(b, t, mels)`` and ``(b,)`` to ``(b, t', classes)`` logits and ``(b,)``."""
        said = [
            torch.cat(list(in_chunks(self.steps, row[:length].cpu(), self.size)))
            for row, length in zip(features, lengths.tolist(), strict=True)
        ]
        return pad_sequence(said, batch_first=True), torch.tensor([len(logits) for logits in said])


def quantise_steps(folder: Path, calibration: Sequence[NDArray[np.float32]]) -> Path:
    """Write ``model.stream.int8.onnx`` beside ``model.stream.onnx``, by ranges of whole utterances ``(t, mels)``."""
    source, target = Path(folder) / STREAM_FP32, Path(folder) / STREAM_INT8
    exported = OnnxSteps(source)
    names = [value.name for value in exported.session.get_inputs()]
    given = [dict(zip(names, _whole(exported, features), strict=True)) for features in calibration]
    quantise_file(source, target, given)
    return target


def _whole(exported: OnnxSteps, features: NDArray[np.float32]) -> list[NDArray[Any]]:
    """The inputs that give an utterance at once, as far as it says anything without what follows."""
    padded = np.pad(features, ((STRIDE - 1, -(len(features) + STRIDE - 1) % STRIDE), (0, 0)))
    return [padded[None], np.array([len(features)], np.int64), *(one.numpy() for one in exported.start())]
