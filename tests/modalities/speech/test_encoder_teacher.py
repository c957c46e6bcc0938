"""Encoders without a head as transformers saves them: their layers teach, on the student's frames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from pretrained_small import write, write_encoder

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

transformers = pytest.importorskip("transformers", exc_type=ImportError)

KINDS = {
    "HubertModel": {},
    "WavLMModel": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "Wav2Vec2ForPreTraining": {},
}
LAYERS = ["encoder.layers.0", "encoder.layers.2"]
TERMS = "[{loss: ctc}, {loss: distilhubert, on: {student: blocks.0, teacher: [encoder.layers.0, encoder.layers.2]}}]"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_encoder(tmp_path_factory.mktemp(kind), kind, **more) for kind, more in KINDS.items()}


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of several lengths that is said to be words."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for split, count in (("train", 4), ("dev", 2), ("test", 2)):
        lines = []
        for i in range(count):
            name, seconds = f"{split}{i}.wav", 0.7 + 0.13 * i
            sf.write(folder / name, 0.1 * rng.standard_normal(int(16000 * seconds)), 16000)
            lines.append(json.dumps({"audio_filepath": name, "text": ["yes", "no"][i % 2], "speaker": f"s{i}"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def sets(recordings: Path, folder: Path, *more: str) -> list[str]:
    return [
        f"data.path={recordings}", "data.tokens=words", f"teacher={{path: {folder}}}", f"objective={TERMS}",
        "student.params={width: 8, dilations: [1]}", "train.batch_size=2", "train.steps=2", "trackers=[]", *more,
    ]  # fmt: skip


def adapter_of(recordings: Path, folder: Path, *more: str) -> SpeechAdapter:
    made: Any = make_adapter(load("speech/kathleen", sets(recordings, folder, *more)), Streams(1), 2)
    made.build("student", "conv", {"width": 8, "dilations": [1]})
    return made  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")  # WavLM with an attention mask
@pytest.mark.parametrize("kind", KINDS)
def test_its_layers_are_those_of_each_utterance_alone_on_the_students_frames(
    recordings: Path, folders: dict[str, Path], kind: str
) -> None:
    """20 ms frames meet 40 ms by their mean: of what transformers' own extractor and model say of one recording."""
    adapter = adapter_of(recordings, folders[kind])
    model: Any = adapter.load("teacher", folders[kind])
    source = adapter.data("dev")
    batch = source.collate([source.sample(i, 0) for i in range(2)])
    said = adapter.signals("teacher", model, batch, LAYERS)
    student = adapter.signals("student", adapter.build("student", "conv", {"width": 8, "dilations": [1]}), batch)
    assert "logits" not in said and said.layout(LAYERS[0]).same_rows(student.layout("logits"))
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folders[kind])
    for i, key in enumerate(batch["keys"]):
        wave, _ = sf.read(recordings / key, dtype="float32")
        with torch.no_grad():
            states = model(**extractor(wave, sampling_rate=16000, return_tensors="pt"), output_hidden_states=True)
        for name, at in zip(LAYERS, (1, 3), strict=True):
            rows, layout = said[name]
            found = rows[layout.mask & (layout.item == i)]
            hidden = states.hidden_states[at][0]
            if kind == "WavLMModel" and at == 3:  # the last state is the norm's behind the last layer
                continue
            for j in range(len(hidden) // 2):
                torch.testing.assert_close(found[j], hidden[2 * j : 2 * j + 2].mean(dim=0), rtol=1e-4, atol=1e-5)


def test_it_is_not_measured_and_shows_no_answer(recordings: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = adapter_of(recordings, folders["HubertModel"])
    model = adapter.load("teacher", folders["HubertModel"])
    found = adapter.evaluate("teacher", model, "dev")
    assert found.metrics == {"wer": None} and not found.scores
    assert list(adapter.lint(folders["HubertModel"])) == []


def test_a_published_model_lacks_what_masks_its_input(recordings: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write(tmp_path, "group")
    held = load_file(folder / "model.safetensors")
    kept = {name: one for name, one in held.items() if not name.endswith("masked_spec_embed")}
    assert len(kept) == len(held) - 1
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    adapter_of(recordings, folder, "data.tokens=characters", "data.vocabulary=by_name").load("teacher", folder)


def test_a_run_and_what_check_says(
    recordings: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    given = [word for one in sets(recordings, folders["HubertModel"]) for word in ("--set", one)]
    out = tmp_path / "run"
    assert call(["run", "speech/kathleen", "--out", str(out), "--quiet", "--no-export", *given]) == 0
    report = read_json(out / "report.json")
    assert report["roles"]["teacher"]["metrics"] == {"wer": None} and report["gap_closed"] is None
    assert report["gain"] is not None
    assert "| teacher |" in (out / "report.md").read_text() and (out / "report.html").is_file()
    assert call(["report", str(out)]) == 0
    capsys.readouterr()
    assert call(["check", "speech/kathleen", "--device", "cpu", *given]) == 0
    assert "encoder.layers.2" in capsys.readouterr().out


def test_a_term_on_its_logits_is_one_line(
    recordings: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*sets(recordings, folders["HubertModel"]), "objective=[{loss: ctc}, {loss: kd}]"]
    words = [word for one in given for word in ("--set", one)]
    assert call(["run", "speech/kathleen", "--out", str(tmp_path / "run"), "--quiet", "--device", "cpu", *words]) == 2
    said = capsys.readouterr().err
    assert "term 'kd' compares with the teacher's logits, and this teacher gives none, only its layers" in said


def test_what_is_no_encoder_is_refused(recordings: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["HubertModel"], tmp_path / "teacher"))
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"], "model_type": "bert"}))
    with pytest.raises(UserError, match=r"BertModel is neither a CTC model .* nor an encoder of waves"):
        adapter_of(recordings, folder).load("teacher", folder)
