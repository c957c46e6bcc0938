"""ONNX in float32 and int8 beside the torch model; int8 is the same on every CPU: exported weights cannot saturate sums
of 16 bits, and ONNX Runtime computes what whole numbers give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from oracles.int8_graph import exact, run, saturating, weights, worst

from xmodal_kd.adapter.adapter import Score
from xmodal_kd.modalities.speech.export import onnx as export
from xmodal_kd.modalities.speech.export.onnx import FP32, INT8, LARGEST, OnnxModel, against, export_onnx, quantise
from xmodal_kd.modalities.speech.models import MODELS
from xmodal_kd.models import onnx as ours
from xmodal_kd.runtime.errors import RunError, UserError

MELS, CLASSES = 40, 11


def features(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((length, MELS), dtype=np.float32) for length in rng.integers(80, 300, size=count)]


@pytest.fixture(scope="module")
def student() -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS["conv"](MODELS["conv"].Config(), mels=MELS, classes=CLASSES).eval()


@pytest.fixture(scope="module")
def folder(student: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    export_onnx(student, folder, MELS)
    return folder


@pytest.fixture(scope="module")
def cost(folder: Path) -> dict[str, float]:
    return quantise(folder, features(16))


@pytest.fixture(scope="module", params=["conv", pytest.param("conformer", marks=pytest.mark.full)])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student in float32 and int8; the conformer multiplies activations by activations too."""
    if request.param == "conv":
        request.getfixturevalue("cost")
        return request.getfixturevalue("folder")  # type: ignore[no-any-return]
    folder, kind = tmp_path_factory.mktemp("conformer"), MODELS["conformer"]
    torch.manual_seed(0)
    config = kind.Config(width=32, layers=2, feed_forward=64)
    export_onnx(kind(config, mels=MELS, classes=CLASSES).eval(), folder, MELS)
    quantise(folder, features(16))
    return folder


@pytest.mark.parametrize("name", ["conv", "conformer"])
def test_onnx_equals_torch_at_other_shapes_and_under_padding(name: str, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"conv": {}, "conformer": {"width": 16, "layers": 1, "feed_forward": 32}}[name]
    model = MODELS[name](MODELS[name].Config(**small), mels=MELS, classes=CLASSES).train()
    exported = OnnxModel(export_onnx(model, tmp_path, MELS))
    assert model.training
    model.eval()
    x, lengths = torch.randn(4, 203, MELS), torch.tensor([203, 100, 5, 1])
    for row, length in zip(x, lengths, strict=True):
        row[length:] = float("nan")
    logits, counts = exported(x, lengths)
    expected, expected_counts = model(x, lengths)
    assert torch.equal(counts, expected_counts)
    for a, b, n in zip(logits, expected, counts, strict=True):
        torch.testing.assert_close(a[:n], b[:n], atol=1e-4, rtol=0)


def test_the_file_keeps_no_trace_of_this_machine(folder: Path) -> None:
    assert str(Path(export.__file__).parent).encode() not in (folder / FP32).read_bytes()
    assert [o.name for o in onnx.load(folder / FP32).graph.output] == ["logits", "logit_lengths"]


@pytest.mark.full
def test_exporting_draws_nothing_and_says_nothing(
    student: torch.nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    export_onnx(student, tmp_path, MELS)
    assert torch.equal(state, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")


def test_an_export_that_differs_is_refused(
    student: torch.nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        other = MODELS["conv"](MODELS["conv"].Config(), mels=MELS, classes=CLASSES).eval()
    with pytest.raises(RunError, match="differs from the torch model"):
        export._check(other, OnnxModel(folder / FP32), MELS)


def test_int8_is_smaller_and_close(folder: Path, cost: dict[str, float]) -> None:
    assert (folder / INT8).stat().st_size < 0.5 * (folder / FP32).stat().st_size
    assert cost["logit_error"] < 0.05 and cost["agreement"] > 0.95


def test_a_front_end_over_mels_is_quantised_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MODELS["conv"].Config(planes=8, dilations=(1,))
    export_onnx(MODELS["conv"](config, mels=MELS, classes=CLASSES).eval(), tmp_path, MELS)
    cost = quantise(tmp_path, features(8))
    kernels = [w for w in onnx.load(tmp_path / INT8).graph.initializer if len(w.dims) == 4]
    assert [w.data_type for w in kernels] == [TensorProto.INT8] * 2
    assert cost["logit_error"] < 0.05 and cost["agreement"] > 0.95


def test_int8_does_not_see_padding(folder: Path, cost: dict[str, float]) -> None:
    model, (x, *_) = OnnxModel(folder / INT8), features(1)
    alone, (n,) = model(torch.from_numpy(x)[None], torch.tensor([len(x)]))
    padded = torch.full((2, len(x) + 50, MELS), 1e3)
    padded[0, : len(x)] = torch.from_numpy(x)
    together, _ = model(padded, torch.tensor([len(x), len(x) + 50]))
    torch.testing.assert_close(together[0, :n], alone[0], atol=1e-5, rtol=0)


def test_calibration_needs_data(folder: Path) -> None:
    with pytest.raises(UserError, match="calibration"):
        quantise(folder, [])


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        OnnxModel(tmp_path / FP32)
    (tmp_path / FP32).write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a model"):
        OnnxModel(tmp_path / FP32)


def of_eight_bits(either: Path, patch: pytest.MonkeyPatch) -> Path:
    """What ONNX Runtime makes of the student where it is not told otherwise."""
    whole = quantization.quantize_static
    patch.setattr(quantization, "quantize_static", lambda *args, **kw: whole(*args, **kw | {"reduce_range": False}))
    with ours.quiet():
        export._quantise_static(either / FP32, either / "eight.onnx", [export._inputs(x) for x in features(16)])
    return either / "eight.onnx"


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))


def test_two_products_of_the_largest_weights_fit_16_bits() -> None:
    assert 2 * 255 * LARGEST <= 2**15 - 1 < 2 * 255 * (LARGEST + 1)


def test_no_activations_saturate_an_exported_weight(either: Path) -> None:
    rng, found = np.random.default_rng(0), weights(either / INT8)
    assert len(found) >= 11 and {w.dtype.type for w in found} == {np.int8}
    for w in (w.astype(np.int64) for w in found):
        assert np.abs(w).max() <= LARGEST
        for a in (worst(w), rng.integers(0, 256, size=(64, len(w))), np.full((1, len(w)), 255)):
            assert np.array_equal(saturating(a, w), exact(a, w))


def test_whole_graph_is_the_same_on_both_kinds_of_cpu_and_in_onnx_runtime(either: Path) -> None:
    model, errors = OnnxModel(either / INT8), []
    for x in features(3):
        logits = run(either / INT8, exact, x)
        assert np.array_equal(run(either / INT8, saturating, x), logits)
        runtime, _ = model(torch.from_numpy(x)[None], torch.tensor([len(x)]))
        errors.append(relative(runtime[0].numpy(), logits))
    assert max(errors) < 0.01, errors  # half a step of rounding here and there


def test_eight_bits_would_saturate(either: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference sees the fault: what it was before is wrong on a CPU without VNNI, and is not exported."""
    path = of_eight_bits(either, monkeypatch)
    (x,) = features(1)
    logits = run(path, exact, x)
    assert relative(run(path, saturating, x), logits) > 0.05
    before = (either / INT8).read_bytes()
    with pytest.raises(RunError, match=f"a weight to 127: more than {LARGEST} is wrong"):
        quantise(either, features(2))
    assert (either / INT8).read_bytes() == before


def test_onnx_runtimes_own_products_are_whole(either: Path) -> None:
    """Bit for bit, at every number of rows: kernels take several at once, and another way for one."""
    rng = np.random.default_rng(1)
    for w in weights(either / INT8):
        session = product(w)
        for rows in (1, 2, 3, 4, 6, 13):
            a = rng.integers(0, 256, size=(rows, len(w)), dtype=np.uint8)
            a[0] = 255
            (found,) = session.run(None, {"a": a})
            assert np.array_equal(found, (a.astype(np.int64) - 117) @ w.astype(np.int64))


def product(w: np.ndarray) -> Any:
    """A session that multiplies unsigned bytes of zero point 117 by `w`."""
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "w", "zero"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["rows", len(w)])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", w.shape[1]])],
        [
            numpy_helper.from_array(np.ascontiguousarray(w), "w"),
            numpy_helper.from_array(np.array(117, np.uint8), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_an_int8_that_costs_more_than_noise_is_said_to() -> None:
    whole = [Score(str(i), "anna", errors=i % 3 == 0, units=4) for i in range(60)]
    worse = [Score(s.item, s.group, errors=s.errors + (i % 2), units=4) for i, s in enumerate(whole)]
    (low, high), said = against(worse, whole)
    assert 0 < low < 0.125 < high and said is not None and f"{low:+.4f} to {high:+.4f}" in said and FP32 in said
    assert against(whole, whole) == ((0.0, 0.0), None)
    (low, high), said = against([*worse[:2], *whole[2:]], whole)
    assert low <= 0 < high and said is None
