"""Exits of a speech student: exported models that transcribe, and answer as the torch model does there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.export.onnx import OnnxModel
from xmodal_kd.modalities.speech.export.saved_folder import load_model
from xmodal_kd.modalities.speech.use.transcribe import Recogniser
from xmodal_kd.models.early_exit import load_early
from xmodal_kd.runtime.checkpoint import read_json

STEPS = ["train.steps=2", "scheme.params.exits=[blocks.1]", "data.compose.utterances={train: 32, dev: 4, test: 4}"]


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exits") / "run"
    sets = [word for change in [*STEPS, f"data.path={digits}"] for word in ("--set", change)]
    assert call(["run", "smoke/schemes/byot", "--out", str(out), "--quiet", "--device", "cpu", *sets]) == 0
    return out


@pytest.mark.full
def test_the_curve_has_every_exit(run: Path) -> None:
    report = read_json(run / "report.json")
    curve = report["curve"]
    assert [point["exit"] for point in curve] == [1, 2]
    flops = [point["flops"] for point in curve]
    assert flops == sorted(flops) and all(point["metrics"]["wer"] >= 0 and point["median_ms"] > 0 for point in curve)
    assert report["roles"]["student"]["parameters"] == report["roles"]["control"]["parameters"]
    sizes = [report["export"][name]["bytes"] for name in ("exit-1/model.onnx", "model.onnx")]
    assert sizes == sorted(sizes)


@pytest.mark.full
def test_report_and_card_say_what_int8_costs(run: Path) -> None:
    found = read_json(run / "report.json")["export"]
    low, high = found["int8_against_fp32"]["wer_interval"]
    cost = found["model.int8.onnx"]["metrics"]["wer"] - found["model.onnx"]["metrics"]["wer"]
    assert low <= cost <= high and ("note" in found["model.int8.onnx"]) == (low > 0)
    card, report = (run / "student" / "README.md").read_text(), (run / "report.md").read_text()
    rows = [line for line in report.splitlines() if line.startswith("| model.int8.onnx |")]
    assert len(rows) == 1 and rows[0] in card and "## Its files" in card


@pytest.mark.full
def test_an_exported_exit_answers_as_the_torch_model(run: Path, digits: Path) -> None:
    student, _ = load_model(run / "student")
    small = load_early(student, run / "student", 1).eval()
    x, lengths = torch.randn(2, 120, 40), torch.tensor([120, 75])
    with torch.no_grad():
        expected, counts = small(x, lengths)
    logits, exported_counts = OnnxModel(run / "student" / "exit-1" / "model.onnx")(x, lengths)
    assert torch.equal(counts, exported_counts)
    for a, b, n in zip(logits, expected, counts.tolist(), strict=True):
        torch.testing.assert_close(a[:n], b[:n], atol=1e-4, rtol=0)
    found = Recogniser(run / "student" / "exit-1").transcribe(next(digits.rglob("*.wav")))
    assert found["duration"] > 0 and isinstance(found["text"], str)
