"""Who teaches classes of utterances: what reads them, what hears them, what has other classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from intents_small import CLASSES, TEXTS, adapter_of, batch_of, record, sets, write_listener, write_reader
from seq2seq_small import listed

from xmodal_kd.cli.main import call
from xmodal_kd.draft import Unfit, draft
from xmodal_kd.modalities.speech.models.utterances import ByWaves, Reader, load_utterances
from xmodal_kd.recipe.recipe import load
from xmodal_kd.runtime.checkpoint import read_json, read_tensors
from xmodal_kd.runtime.errors import UserError

pytest.importorskip("transformers", exc_type=ImportError)
#: Kim et al. (2021) as a recipe.
TWO_STAGES = [
    "scheme={name: two_stage, params: {first: [utterance]}}",
    "objective=[{loss: textual_kd, name: utterance, on: utterance}, {loss: ce}, "
    "{loss: textual_kd, params: {summed: true}}]",
]


def test_a_text_encoder_says_the_first_tokens_state(tmp_path: Path) -> None:
    """As `transformers` alone computes it, of each text by itself; a layer's rows are that token's too."""
    import transformers

    folder = write_reader(tmp_path / "reader")
    adapter = adapter_of(record(tmp_path / "data", {2: {"text": None}}))
    teacher = adapter.load("teacher", folder)
    assert isinstance(teacher, Reader) and not any(p.requires_grad for p in teacher.parameters())
    batch = batch_of(adapter, items=range(6))
    said = adapter.signals("teacher", teacher, batch, ["utterance", "network.encoder.layer.0"])
    network = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert "logits" not in said and adapter.evaluate("teacher", teacher, "dev").metrics == {"accuracy": None}
    for i, text in enumerate(batch["texts"]):
        assert bool(said.layout("utterance").mask[i]) == bool(text)
        if text:
            with torch.no_grad():
                states = network(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
            torch.testing.assert_close(said.rows("utterance")[i], states[-1][0, 0])
            torch.testing.assert_close(said.rows("network.encoder.layer.0")[i], states[1][0, 0])
    assert batch["texts"].count("") == 1 and set(batch["texts"]) - {""} <= set(TEXTS.values())


def test_an_encoder_without_a_pooler_is_read_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As that of a model of masked words is saved; nobody asks for the pooler."""
    import transformers

    folder = write_reader(tmp_path / "reader")
    transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(folder)
    caplog.clear()
    load_utterances(folder)
    assert not caplog.records
    transformers.AutoModel.from_pretrained(folder)
    assert "pooler" in caplog.text  # which it says to others, still


def test_classes_are_found_by_their_names(tmp_path: Path) -> None:
    """In another order, with one more, and without one of ours."""
    data, order = record(tmp_path / "data"), ("up", "down", "on", "off")
    adapter = adapter_of(data)
    teacher: Any = adapter.load("teacher", write_reader(tmp_path / "all", order))
    batch = batch_of(adapter)
    own = teacher(batch["texts"])[:, [3, 2, 0]]
    assert teacher.headed and torch.equal(adapter.signals("teacher", teacher, batch).rows("logits"), own)
    right = {name: bool(teacher([text])[0, [3, 2, 0]].argmax() == i) for i, (name, text) in enumerate(TEXTS.items())}
    found = adapter.evaluate("teacher", teacher, "test").metrics
    assert found["accuracy_by_class"] == {name: float(one) for name, one in right.items()}
    wordless = adapter_of(_without_texts(record(tmp_path / "wordless"), "test"))
    wordless.load("teacher", tmp_path / "all")
    assert wordless.evaluate("teacher", teacher, "test").metrics == {"accuracy": None}
    assert wordless.evaluate("teacher", teacher, "dev").metrics["utterances"] == 3
    fewer = adapter_of(data)
    teacher = fewer.load("teacher", write_reader(tmp_path / "fewer", ("on", "off")))
    assert torch.isneginf(fewer.signals("teacher", teacher, batch).rows("logits")[:, 2]).all()
    with pytest.raises(UserError, match="of its 2 classes fewer than two are the student's"):
        adapter_of(data).load("teacher", write_reader(tmp_path / "none", ("LABEL_0", "LABEL_1")))


def _without_texts(folder: Path, split: str) -> Path:
    lines = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
    (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(one | {"text": None}) for one in lines))
    return folder


def test_a_classifier_of_transformers_hears_each_utterance_alone(tmp_path: Path) -> None:
    import transformers

    folder = write_listener(tmp_path / "listener", ("up", "on", "off"))
    adapter = adapter_of(record(tmp_path / "data"))
    teacher = adapter.load("teacher", folder)
    assert isinstance(adapter._says["teacher"], ByWaves) and adapter.input() is None
    batch = batch_of(adapter)
    assert int(batch["wave_rate"]) == 16000
    said = adapter.signals("teacher", teacher, batch, ["classifier:input"])
    model = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    for i in range(4):
        wave = batch["waves"][i, : batch["samples"][i]].numpy()
        with torch.no_grad():
            logits = model(**extractor(wave, sampling_rate=16000, return_tensors="pt")).logits[0]
        torch.testing.assert_close(said.rows("logits")[i], logits[[2, 1, 0]])
    assert said.rows("classifier:input").shape == (4, 6)
    with pytest.raises(UserError, match="a feature is one vector an utterance: capture classifier:input"):
        adapter.signals("teacher", teacher, batch, ["projector"])


def test_a_classifier_saved_here_hears_its_own_features(tmp_path: Path) -> None:
    data = record(tmp_path / "data")
    own = adapter_of(data, "data.features={sample_rate: 8000, mels: 20}")
    made = own.build("teacher", "conv_classifier", {"width": 8, "dilations": [1, 2]}).eval()
    own.save("teacher", made, tmp_path / "saved")
    adapter = adapter_of(data)
    teacher = adapter.load("teacher", tmp_path / "saved").eval()
    mine = adapter.signals("teacher", teacher, batch_of(adapter), ["utterance"])
    theirs = own.signals("teacher", made, batch_of(own), ["utterance"])
    for name in ("logits", "utterance"):
        torch.testing.assert_close(mine.rows(name), theirs.rows(name))


# ---------------------------------------------------------------- two stages


@pytest.mark.parametrize("tuned", [True, False])
def test_a_run_in_two_stages(tmp_path: Path, tuned: bool) -> None:
    """First a plain encoder's vectors, behind a map to its width, then labels, and scores of one that was tuned."""
    data = record(tmp_path / "data", {1: {"text": None}, 4: {"intent": None}})
    teachers = [f"teacher={{path: {write_reader(tmp_path / 'plain')}}}"]
    scheme, objective = TWO_STAGES
    if tuned:
        teachers.append(f"teachers={{intents: {{path: {write_reader(tmp_path / 'tuned', ('up', 'on', 'off'))}}}}}")
    else:
        objective = objective.partition(", {loss: textual_kd, params")[0] + "]"
    given = listed(sets(data, *teachers, "self_training=false", scheme, objective))
    out = tmp_path / "run"
    assert call(["run", "smoke/intents", "--out", str(out), "--no-export", "--quiet", *given]) == 0
    logged = [json.loads(line) for line in (out / "checkpoints/student/log.jsonl").read_text().splitlines()]
    parts = [{name for name in one if name in ("utterance", "ce", "textual_kd")} for one in logged]
    second = {"ce", "textual_kd"} if tuned else {"ce"}
    assert parts == [{"utterance"}, {"utterance"}, second, second] and [one["step"] for one in logged] == [1, 2, 3, 4]
    roles = read_json(out / "report.json")["roles"]
    assert set(roles) == {"teacher", "control", "student"} | ({"teacher-intents"} if tuned else set())
    assert roles["teacher"]["metrics"]["accuracy"] is None and roles["control"]["metrics"]["utterances"] == 6


def test_the_release_of_the_second_stage(tmp_path: Path) -> None:
    """CE + (1/B) sum |z_a - z_t|, by the release's own lines, run beside the oracle that came with it: its first value
    and gradient."""
    from xmodal_kd.objective.objective import Objective
    from xmodal_kd.recipe.recipe import Term
    from xmodal_kd.signals.signals import Layout, Signals

    draw = np.random.RandomState(0)
    audio, text = (torch.tensor(draw.randn(4, 6)) for _ in range(2))
    labels, rows = torch.tensor(draw.randint(0, 6, 4)), Layout.samples(4)
    audio.requires_grad_()
    objective = Objective([Term(loss="ce"), Term(loss="textual_kd", params={"summed": True})])
    student = Signals().add("logits", audio, rows).add("labels", labels, rows)
    value = objective(student, Signals().add("logits", text, rows)).value()
    value.backward()
    assert value.item() == pytest.approx(10.302722318613487, abs=1e-6) and audio.grad is not None
    expected = [-0.19439690918745897, 0.26421565258528223, 0.2753536937125137, 0.3395753027557576, 0.06166672202098339]
    assert audio.grad[0, :5].tolist() == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------- refusals and recipes


def test_folders_that_cannot_teach(tmp_path: Path) -> None:
    data = record(tmp_path / "data")
    silent = record(tmp_path / "silent", {i: {"text": None} for i in range(12)})
    reader = write_reader(tmp_path / "reader")
    with pytest.raises(UserError, match="reads what is said, and no training utterance has a text"):
        adapter_of(silent).load("teacher", reader)
    adapter = adapter_of(data)
    for name, why in (
        ("tokenizer.json", "neither a tokenizer nor preprocessor_config.json"),
        ("model.safetensors", r"no model\.safetensors"),
        ("config.json", "neither a classifier that was saved here"),
    ):
        (reader / name).unlink()
        with pytest.raises(UserError, match=why):
            adapter.load("teacher", reader)
    headless = write_listener(tmp_path / "listener", CLASSES)
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"architectures": ["Wav2Vec2Model"]}))
    with pytest.raises(UserError, match="Wav2Vec2Model hears and has no classes"):
        adapter.load("teacher", headless)
    (headless / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.py"}}))
    with pytest.raises(UserError, match="asks for code of its own"):
        adapter.load("teacher", headless)


def test_new_of_a_text_encoder_is_in_two_stages(tmp_path: Path) -> None:
    data = record(tmp_path / "data", {1: {"text": None}})

    def made(teacher: Path) -> Any:
        (tmp_path / "mine.yaml").unlink(missing_ok=True)
        notes = draft("speech", tmp_path / "mine.yaml", teacher, data, estimate=False)
        return load(str(tmp_path / "mine.yaml")).recipe, " ".join(notes)

    recipe, notes = made(write_reader(tmp_path / "tuned", ("on", "off", "other")))
    assert recipe.data["task"] == "intents" and recipe.scheme.name == "two_stage"
    assert [term.loss for term in recipe.objective] == ["textual_kd", "ce", "textual_kd"]
    assert "the teacher does not know 'up'" in notes and "1 training utterances have no text" in notes
    recipe, _ = made(write_reader(tmp_path / "plain"))
    assert [term.loss for term in recipe.objective] == ["textual_kd", "ce"]
    recipe, _ = made(write_listener(tmp_path / "listener", CLASSES))
    assert recipe.scheme is None and [term.loss for term in recipe.objective] == ["ce", "kd"]
    with pytest.raises(Unfit, match="a folder of utterances of a class each"):
        draft("speech", tmp_path / "x.yaml", tmp_path / "tuned", None, estimate=False)


def test_a_cached_teacher_teaches_the_same(tmp_path: Path) -> None:
    """What was read is found again by the text, and of what has none there is no row."""
    data = record(tmp_path / "data", {1: {"text": None}})
    teacher = f"teacher={{path: {write_reader(tmp_path / 'tuned', CLASSES)}}}"
    more = ["objective=[{loss: ce}, {loss: textual_kd}, {loss: textual_kd, name: vector, on: utterance}]"]
    found = []
    for name, cache in (("live", []), ("cached", ["cache={}"])):
        given = listed(sets(data, teacher, "control=false", *more, *cache))
        out = tmp_path / name
        assert call(["run", "smoke/intents", "--out", str(out), "--no-export", "--quiet", *given]) == 0
        found.append(read_tensors(out / "student/model.safetensors"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=2e-3)
