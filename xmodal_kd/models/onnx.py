"""Models as ONNX: traced quietly, stripped of what says where they were made, and proven equal to the torch model.

onnx, onnxscript and onnxruntime are imported when they are used; a missing one is a `UserError` with the extra of
the modality that asks.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from inspect import Parameter, signature
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.binary_packages import load
from ..runtime.errors import RunError, UserError
from ..runtime.leftovers import scratch

TOLERANCE = 1e-4
#: Bytes of weights in an ONNX file itself: it can hold 2 GiB in all, more lies in a file beside it.
MOST = 1800 << 20


def export(
    model: nn.Module,
    path: Path,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    free: Mapping[str, Mapping[int, Any]],
    check: Callable[[Path], None],
    *,
    extra: str,
) -> Path:
    """Write `model` in eval mode as an ONNX file, which appears at `path` only if `check` lets it pass; weights of more
    than `MOST` lie in a file beside it (`weights_of`).

    Args:
        inputs: example of each input by name, in the order of the model's arguments and named as they are. Its device
            is the model's. A free axis should not have size 1 here.
        outputs: names of the results, in order.
        free: by input the axes of any size, each with its name; axes of the same name are equal. An axis that must
            divide by 4 is ``4 * torch.export.Dim("name")``.
        check: raises what is wrong with the file; see `prove`.
        extra: of the package, which installs what is missing.

    Raises:
        UserError: onnx or onnxscript is missing.
    """
    for needed in ("onnx", "onnxscript"):
        load(needed, extra)
    path.parent.mkdir(parents=True, exist_ok=True)
    training = model.training
    model.eval()
    try:
        with scratch(path) as folder:
            made = folder / path.name
            with quiet():
                _trace(model, inputs, outputs, free).save(str(made), external_data=_large(model))
            strip(made)
            check(made)
            if (apart := weights_of(made)).is_file():
                apart.replace(weights_of(path))
            return made.replace(path)
    finally:
        model.train(training)


def weights_of(path: Path) -> Path:
    """The file of the weights of an ONNX file, where they are too many for one; it must lie beside it."""
    return path.with_name(f"{path.name}.data")


def _large(model: nn.Module) -> bool:
    return sum(value.nbytes for value in (*model.parameters(), *model.buffers())) > MOST


def _trace(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    free: Mapping[str, Mapping[int, Any]],
) -> Any:
    names = {name for axes in free.values() for name in axes.values() if isinstance(name, str)}
    sizes = {name: torch.export.Dim(name) for name in sorted(names)}
    shapes = tuple({i: sizes.get(axis, axis) for i, axis in free.get(name, {}).items()} for name in inputs)
    kinds = [parameter.kind for parameter in signature(model.forward).parameters.values()]
    program = torch.onnx.export(
        model,
        tuple(inputs.values()),
        dynamo=True,
        verbose=False,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=(shapes,) if Parameter.VAR_POSITIONAL in kinds else shapes,
    )
    assert program is not None
    return program


def session(path: Path | str, *, threads: int = 1, extra: str) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU. Raises `UserError` for a file that is missing or no model."""
    ort = load("onnxruntime", extra)
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file: an exported model is expected")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a model that ONNX Runtime can read ({first})") from error


def run(session: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Results of an exported model for inputs in its own order, on the CPU."""
    names = [value.name for value in session.get_inputs()]
    given = {name: value.cpu().numpy() for name, value in zip(names, inputs, strict=True)}
    return tuple(torch.from_numpy(result) for result in session.run(None, given))


@torch.no_grad()
def prove(model: nn.Module, exported: Callable[..., Any], *inputs: Tensor, tolerance: float = TOLERANCE) -> float:
    """The largest difference between a torch model and `exported` on CPU inputs.

    Args:
        exported: gives the results for the same inputs: ``partial(run, session)``.
        tolerance: of real results; whole numbers must be equal.

    Raises:
        RunError: it is above `tolerance`, or results differ in shape.
    """
    device = next(model.parameters()).device
    expected, got = model(*(value.to(device) for value in inputs)), exported(*inputs)
    error = 0.0
    for a, b in zip(_results(expected), _results(got), strict=True):
        error = max(error, _difference(a.cpu(), b.cpu(), tolerance))
    if error > tolerance:
        shapes = ", ".join(" x ".join(map(str, value.shape)) for value in inputs)
        raise RunError(f"the exported model differs from the torch model by {error:.1e} on inputs of {shapes}")
    return error


def _results(given: Any) -> tuple[Tensor, ...]:
    return (given,) if isinstance(given, Tensor) else tuple(given)


def _difference(a: Tensor, b: Tensor, tolerance: float) -> float:
    """Largest absolute difference; infinite where it is no number, shapes differ, or whole numbers differ."""
    if a.shape != b.shape or (not a.is_floating_point() and not torch.equal(a, b)):
        return float("inf")
    error = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    return error if error <= tolerance or error > 0 else float("inf")  # NaN is neither


def strip(path: Path, *, names: bool = False) -> None:
    """Drop the exporter's notes: stack traces with this machine's paths, half of a small model's file.

    Args:
        names: shorten the names of inner values too, which are most of what int8 adds to the weights.
    """
    onnx = load("onnx")
    model = onnx.load(path, load_external_data=False)
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


@contextmanager
def quiet() -> Iterator[None]:
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
