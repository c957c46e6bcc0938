"""A recogniser in an ONNX file as a teacher: of waves, of Kaldi's features, of this project's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor, nn

from xmodal_kd.cli.main import call
from xmodal_kd.draft import draft
from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.features import Features, Frontend
from xmodal_kd.modalities.speech.export.onnx import export_onnx
from xmodal_kd.modalities.speech.models import MODELS
from xmodal_kd.models.onnx import export
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

SYMBOLS = ["<unk>", "S", "E", "Y", "N", "O", "<blk>"]


class OfWaves(nn.Module):
    """A frame every 20 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, len(SYMBOLS), 400, stride=320)

    def forward(self, wave: Tensor) -> Tensor:
        return self.convolution(wave[:, None]).transpose(1, 2)


class OfFeatures(nn.Module):
    """A frame of every four, mels before time, and a length that is handed through."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(80, len(SYMBOLS), 4, stride=4)

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        return self.convolution(x).transpose(1, 2), x_lens // 4


def describe(folder: Path, about: dict[str, Any], symbols: list[str] = SYMBOLS) -> Path:
    (folder / "onnx.json").write_text(json.dumps(about))
    (folder / "tokens.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(symbols)))
    return folder


@pytest.fixture(scope="session")
def of_waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waves")
    torch.manual_seed(0)
    free = {"wave": {1: "samples"}}
    export(
        OfWaves(),
        folder / "model.onnx",
        {"wave": torch.zeros(1, 8000)},
        ["logits"],
        free,
        lambda _: None,
        extra="speech",
    )
    return describe(folder, {"normalise": True})


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for split, count in (("train", 4), ("dev", 2), ("test", 2)):
        lines = []
        for i in range(count):
            sf.write(folder / f"{split}{i}.wav", 0.1 * rng.standard_normal(12000 + 1600 * i), 16000)
            lines.append({"audio_filepath": f"{split}{i}.wav", "text": ["yes", "no"][i % 2], "speaker": f"s{i}"})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def sets(recordings: Path, folder: Path, *more: str) -> list[str]:
    return [
        f"data.path={recordings}", f"teacher={{path: {folder}}}", "student.params={width: 8, dilations: [1]}",
        "train.batch_size=2", "train.steps=2", "trackers=[]", *more,
    ]  # fmt: skip


def heard(recordings: Path, folder: Path) -> tuple[SpeechAdapter, Any, Any]:
    adapter: Any = make_adapter(load("speech/kathleen", sets(recordings, folder)), Streams(1), 2)
    adapter.build("student", "conv", {"width": 8, "dilations": [1]})
    model = adapter.load("teacher", folder)
    source = adapter.data("dev")
    return adapter, model, source.collate([source.sample(i, 0) for i in range(2)])


def columns(adapter: SpeechAdapter) -> list[int]:
    return [SYMBOLS.index({"<blank>": "<blk>"}.get(name, name.upper())) for name in adapter.tokens.symbols]


def test_waves_are_answered_one_by_one(recordings: Path, of_waves: Path) -> None:
    adapter, model, batch = heard(recordings, of_waves)
    logits, lengths = adapter.recognised("teacher", model, batch)
    torch.manual_seed(0)
    network = OfWaves()
    for i, key in enumerate(batch["keys"]):
        wave = torch.from_numpy(sf.read(recordings / key, dtype="float32")[0])
        with torch.no_grad():
            expected = network(((wave - wave.mean()) / wave.std(correction=0))[None])[0]
        assert int(lengths[i]) == len(expected)
        torch.testing.assert_close(logits[i, : len(expected)], expected[:, columns(adapter)], rtol=1e-3, atol=1e-4)
    assert float(adapter._front_end("teacher", model).frame) == 0.02
    said = adapter.signals("teacher", model, batch)
    student = adapter.signals("student", adapter.build("student", "conv", {"width": 8, "dilations": [1]}), batch)
    assert said.layout("logits").same_rows(student.layout("logits"))
    assert len(model.state_dict()["origin"])  # another file is another teacher to a cache
    assert list(adapter.lint(of_waves)) == []  # all that it writes is in the texts


def test_the_file_is_its_path_and_the_recipe_says_the_rest(recordings: Path, of_waves: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "tokens.txt"):
        (tmp_path / name).write_bytes((of_waves / name).read_bytes())
    file, told = tmp_path / "model.onnx", "teacher.params={normalise: true}"
    adapter: Any = make_adapter(load("speech/kathleen", sets(recordings, file, told)), Streams(1), 2)
    adapter.build("student", "conv", {"width": 8, "dilations": [1]})
    model = adapter.load("teacher", file)
    other, folder, batch = heard(recordings, of_waves)
    one, two = (a.recognised("teacher", m, batch)[0] for a, m in ((adapter, model), (other, folder)))
    assert torch.equal(one, two) and torch.equal(model.state_dict()["origin"], folder.state_dict()["origin"])
    swapped = [*reversed(SYMBOLS[:-1]), SYMBOLS[-1]]
    (tmp_path / "tokens.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(swapped)))
    again = adapter.load("teacher", file).state_dict()["origin"]
    assert not torch.equal(again, folder.state_dict()["origin"]), "columns of another meaning are another teacher"
    assert list(adapter.lint(file)) == []


def test_kaldis_features_go_in_with_mels_first(recordings: Path, tmp_path: Path) -> None:
    from torchaudio.compliance.kaldi import fbank

    torch.manual_seed(0)
    network, x = OfFeatures(), {"x": torch.zeros(1, 80, 64), "x_lens": torch.tensor([64])}
    free = {"x": {2: "frames"}, "x_lens": {}}
    export(network, tmp_path / "ctc.onnx", x, ["log_probs", "log_probs_len"], free, lambda _: None, extra="speech")
    describe(tmp_path, {"model": "ctc.onnx", "input": "kaldi", "mels_first": True, "scale": 32768})
    adapter, model, batch = heard(recordings, tmp_path)
    logits, _ = adapter.recognised("teacher", model, batch)
    wave = torch.from_numpy(sf.read(recordings / batch["keys"][0], dtype="float32")[0])
    rows = fbank(32768 * wave[None], num_mel_bins=80, sample_frequency=16000.0, dither=0.0, snip_edges=False)
    with torch.no_grad():
        expected = network(rows.T[None], torch.tensor([len(rows)]))[0][0]
    torch.testing.assert_close(logits[0, : len(expected)], expected[:, columns(adapter)], rtol=1e-3, atol=1e-3)
    assert float(adapter._front_end("teacher", model).frame) == 0.04


def test_what_this_project_exports_teaches(recordings: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MODELS["conv"](MODELS["conv"].Config(width=8, dilations=(1,)), mels=16, classes=len(SYMBOLS)).eval()
    export_onnx(network, tmp_path, 16)
    features = Features(mels=16)
    describe(tmp_path, {"input": "log_mel", "features": features.model_dump(exclude_defaults=True)})
    adapter, model, batch = heard(recordings, tmp_path)
    logits, _ = adapter.recognised("teacher", model, batch)
    rows = Frontend(features)(torch.from_numpy(sf.read(recordings / batch["keys"][0], dtype="float32")[0]))
    with torch.no_grad():
        expected = network(rows[None], torch.tensor([len(rows)]))[0][0]
    torch.testing.assert_close(logits[0, : len(expected)], expected[:, columns(adapter)], rtol=1e-3, atol=1e-3)


def test_new_writes_a_recipe_and_it_runs(
    recordings: Path, of_waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft("speech", tmp_path / "mine.yaml", of_waves, recordings, estimate=False)
    recipe = load(str(tmp_path / "mine.yaml")).recipe
    assert recipe.data["tokens"] == "characters" and recipe.teacher is not None and recipe.teacher.path == of_waves
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    words = [word for one in sets(recordings, of_waves) for word in ("--set", one)]
    out = tmp_path / "run"
    assert call(["run", "speech/kathleen", "--out", str(out), "--quiet", "--no-export", *words]) == 0
    assert read_json(out / "report.json")["roles"]["teacher"]["metrics"]["wer"] is not None


@pytest.mark.parametrize(
    "about, symbols, said",
    [
        ({"model": "no.onnx"}, SYMBOLS, "no.onnx: no such file: name it as model in onnx.json"),
        ({"inptu": "wave"}, SYMBOLS, "onnx.json: inptu"),
        ({"input": "kaldi"}, SYMBOLS, "its inputs are wave float .1, samples.: one of 3 axes .kaldi."),
        ({"input": "log_mel"}, SYMBOLS, "features are given where input is log_mel, and only there"),
        ({}, SYMBOLS[:-1], "which symbol is the blank"),
        ({}, [*SYMBOLS, "Z"], r"it answers \(1, 99, 7\): \(1, frames, 8\) is expected"),
        ({"blank": "<eps>"}, SYMBOLS, "which symbol is the blank"),
        ({"symbols": "none.txt"}, SYMBOLS, "none.txt"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    recordings: Path, of_waves: Path, tmp_path: Path, about: dict[str, Any], symbols: list[str], said: str
) -> None:
    (tmp_path / "model.onnx").write_bytes((of_waves / "model.onnx").read_bytes())
    describe(tmp_path, about, symbols)
    with pytest.raises(UserError, match=said) as found:
        heard(recordings, tmp_path)
    assert "\n" not in str(found.value)


def test_only_its_answers_teach(recordings: Path, of_waves: Path) -> None:
    adapter, model, batch = heard(recordings, of_waves)
    with pytest.raises(UserError, match="a teacher in an ONNX file has no module 'encoder': only its answers teach"):
        adapter.signals("teacher", model, batch, ["encoder"])
