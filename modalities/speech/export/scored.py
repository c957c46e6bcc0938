"""A recogniser's ``model.onnx`` in int8 beside it, with its state where it hears chunks, and how well each writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from xmodal_kd.adapter.adapter import Batch, Evaluation
from xmodal_kd.runtime.errors import UserError

from ..data.corpora import SpeechData
from ..data.source import SpeechSource
from ..models.frames import AcousticModel
from .onnx import FP32, INT8, OnnxModel, against, quantise
from .onnx_steps import STREAM_FP32, STREAM_INT8, Chunked, export_steps, quantise_steps
from .saved_folder import write_program

#: Utterances whose features set the ranges of int8 activations.
CALIBRATION = 64
#: A batch to what a model says of its clean features, and how many frames of each utterance it is.
Hear = Callable[[Batch], tuple[Tensor, Tensor]]


def check_streams(model: AcousticModel, data: SpeechData) -> None:
    """Raises `UserError` where ``data.streaming`` asks for a state that a student does not have."""
    if data.streaming and model.steps() is None:
        fit = "conv" if data.task == "ctc" else "conv_transducer"
        raise UserError(
            f"data.streaming: {model.card['model']!r} cannot hear chunks: set student.model to {fit}, or leave it out"
        )


def export_scored(
    model: AcousticModel, folder: Path, data: SpeechData, train: SpeechSource, evaluate: Callable[[Hear], Evaluation]
) -> dict[str, Any]:
    """Write what `folder` lacks beside ``model.onnx``, and score each file on the test split in ONNX Runtime.

    Args:
        train: of whose first utterances the ranges of int8 are.
        evaluate: the scores on test of what hears so.

    Returns:
        For each file its ``bytes`` and ``metrics``; int8 has a ``note`` where it is worse by more than the noise of the
        utterances, and ``int8_against_fp32`` says by how much.
    """
    write_program(folder)
    calibration: Sequence[NDArray[Any]] = [
        train.sample(i, 0).clean.numpy() for i in range(min(CALIBRATION, len(train)))
    ]
    cost = quantise(folder, calibration)
    hears: dict[str, Any] = {name: OnnxModel(folder / name, threads=torch.get_num_threads()) for name in (FP32, INT8)}
    steps: Any = model.steps() if data.streaming else None
    if steps is not None:
        export_steps(model, steps, folder, data.features.mels)
        quantise_steps(folder, calibration)
        hears |= {name: Chunked(folder / name, data.features) for name in (STREAM_FP32, STREAM_INT8)}
    scores = {
        name: evaluate(lambda batch, hear=hear: hear(batch["clean"], batch["lengths"]))  # type: ignore[misc]
        for name, hear in hears.items()
    }
    found: dict[str, Any] = {
        name: {"bytes": (folder / name).stat().st_size, "metrics": one.metrics} for name, one in scores.items()
    }
    interval, worse = against(scores[INT8].scores, scores[FP32].scores)
    found[INT8] |= {} if worse is None else {"note": worse}
    return found | {"int8_against_fp32": cost | {"wer_interval": list(interval)}}


__all__ = ["Hear", "check_streams", "export_scored"]
