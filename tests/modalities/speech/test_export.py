"""ONNX in float32 and int8 beside the torch model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from xmodal_kd.modalities.speech.export import onnx as export
from xmodal_kd.modalities.speech.export.onnx import FP32, INT8, OnnxModel, export_onnx, quantise
from xmodal_kd.modalities.speech.models import MODELS
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
    assert (folder / INT8).stat().st_size == cost["bytes_int8"] < 0.5 * cost["bytes_fp32"]
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
