"""The student as ONNX, in float32 and int8, and ONNX Runtime behind the interface of the torch model.

int8 is static: weights by channel, activations by ranges measured on real features. Measured on a conv student of 25
thousand parameters trained on spoken digits (942 words of a held-out speaker, one thread), where differences of 2 and
4 words are noise:

=================================== ======= ====== ==========
                                    bytes   WER    time
=================================== ======= ====== ==========
float32                             110 kB  31.2 % 1
static, all layers                   42 kB  31.6 % 1
dynamic, linear layers only          59 kB  31.4 % 0.95
dynamic, all layers, by tensor       36 kB  31.4 % 1.2
=================================== ======= ====== ==========

Dynamic ranges are those of whatever is in the batch, so padding and chunking would change what an utterance says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xmodal_kd import onnx
from xmodal_kd.binary import loading
from xmodal_kd.errors import UserError

FP32, INT8 = "model.onnx", "model.int8.onnx"
#: Batch and frames that the exported graph is checked at; it is traced at another shape.
CHECKED = ((1, 1), (1, 333), (3, 98))
EXTRA = "speech"


class OnnxModel:
    """An exported model, called like the torch one.

    >>> OnnxModel("student/model.onnx")(features, lengths)  # doctest: +SKIP
    (logits (b, t', classes), lengths (b,))
    """

    def __init__(self, path: Path | str, *, threads: int = 1) -> None:
        self.session = onnx.session(path, threads=threads, extra=EXTRA)

    def __call__(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        logits, logit_lengths = onnx.run(self.session, features.float(), lengths)
        return logits, logit_lengths


def export_onnx(model: nn.Module, folder: Path, mels: int) -> Path:
    """Write ``model.onnx`` with free batch and time, and prove it equal to `model` at shapes it was not traced at.

    Inputs ``features (batch, time, mels)`` float32 and ``lengths (batch,)`` int64; outputs ``logits`` and
    ``logit_lengths``.

    Raises:
        RunError: ONNX Runtime differs from torch by more than 1e-4.
    """
    device = next(model.parameters()).device
    inputs = {
        "features": torch.zeros(2, 64, mels, device=device),
        "lengths": torch.tensor([64, 50], device=device),
    }
    free = {"features": {0: "batch", 1: "time"}, "lengths": {0: "batch"}}

    def check(path: Path) -> None:
        _check(model, OnnxModel(path), mels)

    return onnx.export(model, Path(folder) / FP32, inputs, ["logits", "logit_lengths"], free, check, extra=EXTRA)


def _check(model: nn.Module, exported: OnnxModel, mels: int) -> None:
    for batch, time in CHECKED:
        # a fixed wave rather than noise: exporting draws nothing from the global generator
        features = torch.sin(torch.arange(batch * time * mels, dtype=torch.float32)).reshape(batch, time, mels)
        lengths = torch.tensor([max(1, time - 7 * i) for i in range(batch)])
        onnx.prove(model, exported, features, lengths)


def quantise(folder: Path, calibration: Iterable[NDArray[np.float32]]) -> dict[str, Any]:
    """Write ``model.int8.onnx`` beside ``model.onnx`` and say what that cost.

    Args:
        calibration: ``(t, mels)`` features of some training utterances; a few dozen cover the ranges.

    Returns:
        ``bytes_fp32``, ``bytes_int8``, ``logit_error`` (root mean square difference over the root mean square of the
        logits) and ``agreement`` (share of frames with the same best token), both on the calibration data.
    """
    source, target = Path(folder) / FP32, Path(folder) / INT8
    utterances = list(calibration)
    if not source.is_file():
        raise UserError(f"{folder}: {FP32} is missing: int8 is made from it")
    if not utterances:
        raise UserError("int8 needs calibration data: features of at least one utterance")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / INT8
        with onnx.quiet():
            _quantise_static(source, path, utterances)
        onnx.strip(path, names=True)
        cost = _compare(OnnxModel(source), OnnxModel(path), utterances)
        path.replace(target)
    return {"bytes_fp32": source.stat().st_size, "bytes_int8": target.stat().st_size} | cost


def _quantise_static(source: Path, target: Path, utterances: list[Any]) -> None:
    with loading("onnxruntime"):
        from onnxruntime import quantization as q
        from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name("prepared.onnx")
    # folds constants and infers shapes; the symbolic inference stumbles over arithmetic on a free time axis
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    q.quantize_static(
        str(prepared), str(target), _Reader(utterances), quant_format=q.QuantFormat.QDQ, per_channel=True,
        activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
    )  # fmt: skip


class _Reader:
    """Calibration utterances one by one, as onnxruntime's ``CalibrationDataReader`` wants them."""

    def __init__(self, utterances: list[Any]) -> None:
        self.rows: Iterator[Mapping[str, Any]] = iter([_inputs(u) for u in utterances])

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self.rows, None)


def _inputs(features: Any) -> dict[str, Any]:
    features = np.asarray(features, dtype=np.float32)
    return {"features": features[None], "lengths": np.array([len(features)], dtype=np.int64)}


def _compare(whole: OnnxModel, small: OnnxModel, utterances: list[Any]) -> dict[str, float]:
    pairs = [[m.session.run(None, _inputs(u))[0][0] for m in (whole, small)] for u in utterances]
    a, b = (np.concatenate(logits) for logits in zip(*pairs, strict=True))
    error = np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2))
    return {"logit_error": float(error), "agreement": float(np.mean(a.argmax(-1) == b.argmax(-1)))}
