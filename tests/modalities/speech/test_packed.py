"""Compressed recognisers: shipped as a card and a packed file, they transcribe as the student that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xmodal_kd.cli.main import call
from xmodal_kd.compress.base import record
from xmodal_kd.compress.packed import PACKED
from xmodal_kd.modalities.speech.export.onnx import OnnxModel
from xmodal_kd.modalities.speech.export.saved_folder import load_model
from xmodal_kd.modalities.speech.use.transcribe import Recogniser
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import build, compressions, make_adapter, models_of, role_plans
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.random_streams import Streams

SHORT = ["train.steps=3", "teacher.train.steps=3", "data.compose.utterances={train: 32, dev: 4, test: 4}"]


def trained(name: str, digits: Path, out: Path, *more: str) -> Path:
    sets = [word for change in [*SHORT, f"data.path={digits}", *more] for word in ("--set", change)]
    assert call(["run", f"smoke/compress/{name}", "--out", str(out), "--quiet", "--device", "cpu", *sets]) == 0
    return out


@pytest.fixture(scope="module")
def quantised(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("quantise", digits, tmp_path_factory.mktemp("quantise") / "run")


@pytest.fixture(scope="module")
def aware(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("qat", digits, tmp_path_factory.mktemp("qat") / "run")


@pytest.mark.full
def test_a_packed_student_alone_transcribes(quantised: Path, digits: Path) -> None:
    folder, clip = quantised / "student", digits / "recordings" / "3_edith_0.wav"
    features = torch.randn(2, 60, 40)
    whole, _ = load_model(folder)
    expected = whole(features, torch.tensor([60, 41]))[0]
    text = Recogniser(folder, backend="torch").transcribe(clip)["text"]
    weights = folder / "model.safetensors"
    hidden = weights.rename(folder / "hidden")
    try:
        packed, _ = load_model(folder)
        assert torch.equal(packed(features, torch.tensor([60, 41]))[0], expected)
        assert Recogniser(folder, backend="torch").transcribe(clip)["text"] == text
    finally:
        hidden.rename(weights)
    assert (folder / PACKED).stat().st_size < weights.stat().st_size / 3


@pytest.mark.full
def test_the_report_has_the_files_and_what_they_answer(quantised: Path) -> None:
    report = read_json(quantised / "report.json")
    entry, student = report["export"][PACKED], report["roles"]["student"]["metrics"]
    assert entry["bytes"] == (quantised / "student" / PACKED).stat().st_size
    assert entry["metrics"]["wer"] == student["wer"] == report["export"]["model.onnx"]["metrics"]["wer"]
    assert entry["quantised"] > 0.9 * entry["parameters"]


@pytest.mark.full
def test_8_bit_activations_are_read_back(aware: Path) -> None:
    """The ONNX file has the weights alone: its activations are what it is given."""
    folder = aware / "student"
    features, lengths = torch.randn(2, 60, 40), torch.tensor([60, 41])
    plain, _ = load_model(folder)
    hidden = (folder / "model.safetensors").rename(folder / "hidden")
    try:
        small, _ = load_model(folder)
    finally:
        hidden.rename(folder / "model.safetensors")
    torch.testing.assert_close(OnnxModel(folder / "model.onnx")(features, lengths)[0], plain(features, lengths)[0])
    difference = (small(features, lengths)[0] - plain(features, lengths)[0]).abs().max()
    assert 0 < difference < 1
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), plain.parameters(), strict=True))


def test_half_a_conformer_is_repaired_and_rounded_to_points(digits: Path) -> None:
    """By the adapter of the smoke recipe, without its training: an untrained teacher has channels too."""
    sets = [f"data.path={digits}", "data.compose.utterances={train: 32, dev: 4, test: 4}"]
    loaded = load("smoke/compress/learned_points", sets)
    streams = Streams(1)
    adapter = make_adapter(loaded, streams)
    [teacher, control, student] = role_plans(loaded, adapter)
    stand = {"teacher": build(adapter, loaded, teacher, streams)}
    models = [models_of(adapter, loaded, role_plan, streams, stand) for role_plan in (control, student)]
    one, other = models[0]["control"], models[1]["student"]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))  # the same start
    told = record(other).facts["fskd"]["layers"]
    assert sum(layer["after"] for layer in told) < sum(layer["before"] for layer in told)
    compressions(loaded).finish(other)
    assert len(other.state_dict()["blocks.0.ffn1.sequential.1.weight"].flatten()[:256].unique()) <= 16  # a bucket's
