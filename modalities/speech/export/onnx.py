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

Weights keep to 7 of the 8 bits (`LARGEST`), so that every CPU computes the same. x86 without VNNI multiplies unsigned
activations and signed weights in pairs, and a pair's sum saturates at 16 bits; with all 8 bits the three recognisers of
the quickstart lose twice as much there (root mean square error of the logits on their features, in percent; AVX2 is
ONNX Runtime 1.32 under qemu's Haswell):

============== ===================== =====================
weights        VNNI                  AVX2
============== ===================== =====================
signed, 8 bits 1.65 / 1.42 / 1.19    2.92 / 3.32 / 2.79
signed, 7 bits 1.76 / 1.51 / 1.23    1.76 / 1.51 / 1.23
unsigned       1.62 / 1.34 / 1.19    1.62 / 1.34 / 1.19
============== ===================== =====================

Unsigned weights are as exact in ONNX Runtime, whose kernels for them widen to 16 bits first; that the numbers of the
file cannot saturate holds in any runtime. Where int8 costs more word errors on test than noise, report and card say so.
The table of sizes above was made with 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Score
from xmodal_kd.models import onnx
from xmodal_kd.report.statistics import paired_interval
from xmodal_kd.runtime.binary_packages import loading
from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.leftovers import scratch

FP32, INT8 = "model.onnx", "model.int8.onnx"
#: Largest size of an int8 weight: with activations up to 255 a sum of two products is at most 32,640, and 16 bits hold
#: 32,767.
LARGEST = 64
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


def export_onnx(
    model: nn.Module, folder: Path, mels: int, outputs: Sequence[str] = ("logits", "logit_lengths")
) -> Path:  # fmt: skip
    """Write ``model.onnx`` with free batch and time, and prove it equal to `model` at shapes it was not traced at.

    Inputs ``features (batch, time, mels)`` float32 and ``lengths (batch,)`` int64.

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
        _check(model, partial(onnx.run, onnx.session(path, extra=EXTRA)), mels)

    return onnx.export(model, Path(folder) / FP32, inputs, outputs, free, check, extra=EXTRA)


def _check(model: nn.Module, exported: Callable[..., Any], mels: int) -> None:
    for batch, time in CHECKED:
        # a fixed wave rather than noise: exporting draws nothing from the global generator
        features = torch.sin(torch.arange(batch * time * mels, dtype=torch.float32)).reshape(batch, time, mels)
        lengths = torch.tensor([max(1, time - 7 * i) for i in range(batch)])
        onnx.prove(model, exported, features, lengths)


def quantise(folder: Path, calibration: Iterable[NDArray[np.float32]]) -> dict[str, float]:
    """Write ``model.int8.onnx`` beside ``model.onnx`` and say what that cost.

    Args:
        calibration: ``(t, mels)`` features of some training utterances; a few dozen cover the ranges.

    Returns:
        ``logit_error`` (root mean square difference over the root mean square of the
        logits) and ``agreement`` (share of frames, or utterances, of the same best class), on the calibration data.

    Raises:
        RunError: a weight is larger than `LARGEST`.
    """
    source, target = Path(folder) / FP32, Path(folder) / INT8
    given = [_inputs(utterance) for utterance in calibration]
    quantise_file(source, target, given)
    return _compare(OnnxModel(source), OnnxModel(target), given)


def quantise_file(source: Path, target: Path, given: Sequence[Mapping[str, Any]]) -> None:
    """Write an exported model in int8.

    Args:
        given: inputs by name whose activations set the ranges.

    Raises:
        UserError: `source` is missing, or nothing is given.
        RunError: a weight is larger than `LARGEST`.
    """
    if not source.is_file():
        raise UserError(f"{source.parent}: {source.name} is missing: int8 is made from it")
    if not given:
        raise UserError("int8 needs calibration data: features of at least one utterance")
    with scratch(target) as folder:
        path = folder / target.name
        with onnx.quiet():
            _quantise_static(source, path, given)
        _check_range(path)
        onnx.strip(path, names=True)
        path.replace(target)


def _quantise_static(source: Path, target: Path, given: Sequence[Mapping[str, Any]]) -> None:
    with loading("onnxruntime"):
        from onnxruntime import quantization as q
        from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name("prepared.onnx")
    # folds constants and infers shapes; the symbolic inference stumbles over arithmetic on a free time axis
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    q.quantize_static(
        str(prepared), str(target), _Reader(given), quant_format=q.QuantFormat.QDQ, per_channel=True,
        activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8, reduce_range=True,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
    )  # fmt: skip


def _check_range(path: Path) -> None:
    """Raises `RunError` where signed weights could saturate on a CPU that adds two products in 16 bits."""
    with loading("onnx"):
        import onnx as format_
        from onnx import numpy_helper

    signed = [
        numpy_helper.to_array(tensor).astype(np.int64)
        for tensor in format_.load(path).graph.initializer
        if tensor.data_type == format_.TensorProto.INT8
    ]
    largest = max((int(np.abs(weights).max(initial=0)) for weights in signed), default=0)
    if largest > LARGEST:
        raise RunError(
            f"{INT8}: ONNX Runtime quantised a weight to {largest}: more than {LARGEST} is wrong on x86 without VNNI"
        )


def against(small: Sequence[Score], whole: Sequence[Score]) -> tuple[tuple[float, float], str | None]:
    """The 95 % interval of what int8 costs in word errors, and where it is more than noise a sentence that says so."""
    low, high = paired_interval(small, whole)
    if low <= 0:
        return (low, high), None
    return (low, high), (
        f"more errors than {FP32}, by more than the noise of the utterances (95 % interval of the difference "
        f"{low:+.4f} to {high:+.4f}): take {FP32} where they matter"
    )


class _Reader:
    """Calibration utterances one by one, as onnxruntime's ``CalibrationDataReader`` wants them."""

    def __init__(self, given: Sequence[Mapping[str, Any]]) -> None:
        self.rows: Iterator[Mapping[str, Any]] = iter(given)

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self.rows, None)


def _inputs(features: Any) -> dict[str, Any]:
    features = np.asarray(features, dtype=np.float32)
    return {"features": features[None], "lengths": np.array([len(features)], dtype=np.int64)}


def _compare(whole: OnnxModel, small: OnnxModel, given: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    pairs = [[np.atleast_2d(m.session.run(None, dict(one))[0][0]) for m in (whole, small)] for one in given]
    a, b = (np.concatenate(logits) for logits in zip(*pairs, strict=True))
    error = np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2))
    return {"logit_error": float(error), "agreement": float(np.mean(a.argmax(-1) == b.argmax(-1)))}
