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

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xmodal_kd.errors import RunError, UserError

FP32, INT8 = "model.onnx", "model.int8.onnx"
#: Batch and frames that the exported graph is checked at; it is traced at another shape.
CHECKED = ((1, 1), (1, 333), (3, 98))
TOLERANCE = 1e-4


class OnnxModel:
    """An exported model, called like the torch one.

    >>> OnnxModel("student/model.onnx")(features, lengths)  # doctest: +SKIP
    (logits (b, t', classes), lengths (b,))
    """

    def __init__(self, path: Path | str, *, threads: int = 1) -> None:
        ort = _onnxruntime()
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file: an exported model is expected")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors only
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise UserError(f"{path}: not a model that ONNX Runtime can read ({_first_line(error)})") from error

    def __call__(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        inputs = {"features": features.float().cpu().numpy(), "lengths": lengths.cpu().numpy()}
        logits, logit_lengths = self.session.run(None, inputs)
        return torch.from_numpy(logits), torch.from_numpy(logit_lengths)


def export_onnx(model: nn.Module, folder: Path, mels: int) -> Path:
    """Write ``model.onnx`` with free batch and time, and prove it equal to `model` at shapes it was not traced at.

    Inputs ``features (batch, time, mels)`` float32 and ``lengths (batch,)`` int64; outputs ``logits`` and
    ``logit_lengths``.

    Raises:
        RunError: ONNX Runtime differs from torch by more than 1e-4.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    training = model.training
    model.eval()
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / FP32
            with _quiet():
                _trace(model, mels).save(str(path))
            _strip(path)
            _check(model, OnnxModel(path), mels)
            return path.replace(folder / FP32)
    finally:
        model.train(training)


def _trace(model: nn.Module, mels: int) -> Any:
    device = next(model.parameters()).device
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 64, mels, device=device), torch.tensor([64, 50], device=device)),
        dynamo=True,
        verbose=False,
        input_names=["features", "lengths"],
        output_names=["logits", "logit_lengths"],
        dynamic_shapes={"features": {0: batch, 1: time}, "lengths": {0: batch}},
    )
    assert program is not None
    return program


def _strip(path: Path, *, names: bool = False) -> None:
    """Drop the exporter's notes: stack traces with this machine's paths, half of a small model's file.

    Args:
        names: shorten the names of inner values too, which are most of what int8 adds to the weights.
    """
    import onnx

    model = onnx.load(path)
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ClearField("metadata_props")
    graph.ClearField("value_info")  # shapes that the runtime infers again
    if names:
        _shorten(graph)
    path.write_bytes(model.SerializeToString())


def _shorten(graph: Any) -> None:
    """Number everything in a graph but its inputs and outputs."""
    short: dict[str, str] = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": ""}

    def rename(name: str) -> str:
        return short.setdefault(name, str(len(short)))

    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]


@torch.no_grad()
def _check(model: nn.Module, exported: OnnxModel, mels: int) -> None:
    device = next(model.parameters()).device
    for batch, time in CHECKED:
        # a fixed wave rather than noise: exporting draws nothing from the global generator
        features = torch.sin(torch.arange(batch * time * mels, dtype=torch.float32)).reshape(batch, time, mels)
        lengths = torch.tensor([max(1, time - 7 * i) for i in range(batch)])
        logits, found = model(features.to(device), lengths.to(device))
        got, got_lengths = exported(features, lengths)
        error = float((got - logits.cpu()).abs().max())
        if not error <= TOLERANCE or not torch.equal(got_lengths, found.cpu()):
            raise RunError(f"the exported model differs from the torch model by {error:.1e} at {batch} x {time} frames")


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
        with _quiet():
            _quantise_static(source, path, utterances)
        _strip(path, names=True)
        cost = _compare(OnnxModel(source), OnnxModel(path), utterances)
        path.replace(target)
    return {"bytes_fp32": source.stat().st_size, "bytes_int8": target.stat().st_size} | cost


def _quantise_static(source: Path, target: Path, utterances: list[Any]) -> None:
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporters' chatter off the terminal; their errors still come as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*axis name: .* will not be used", category=UserWarning)
            yield
    finally:
        logging.disable(disabled)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("an ONNX model needs onnxruntime: pip install 'xmodal-kd[speech]'") from error
    return onnxruntime


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
