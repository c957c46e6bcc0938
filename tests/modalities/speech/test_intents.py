"""Classes of utterances: where they come from, what classifies them, what is exported of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import packed_files
import pytest
import torch
from intents_small import CLASSES, adapter_of, batch_of, record, sets
from refusals import Capture, fails
from seq2seq_small import listed
from torch import Tensor

from xmodal_kd.adapter import panels
from xmodal_kd.cli.main import call
from xmodal_kd.draft import Unfit, draft
from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.corpora import SpeechData, utterances
from xmodal_kd.modalities.speech.data.layouts import read_fluent_speech_commands
from xmodal_kd.modalities.speech.models import MODELS
from xmodal_kd.modalities.speech.use.classify import LONGEST, UtteranceClassifier
from xmodal_kd.recipe.recipe import load
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

HEADER = ",path,speakerId,transcription,action,object,location"

# ---------------------------------------------------------------- data


def fluent(folder: Path) -> Path:
    """Fluent Speech Commands in small: as many files as lines, of which none is a recording."""
    (folder / "data").mkdir(parents=True)
    for name, speakers in (("train", "ab"), ("valid", "c"), ("test", "d")):
        lines = [
            f'{i},wavs/speakers/{who}/{i}.wav,{who},"Turn on, now",activate,{what},none'
            for i, (who, what) in enumerate((who, what) for who in speakers for what in ("lights", "music"))
        ]
        (folder / f"data/{name}_data.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return folder


def test_fluent_speech_commands_are_read(tmp_path: Path) -> None:
    data = SpeechData(task="intents", sources="fluent_speech_commands", path=fluent(tmp_path))
    found = utterances(data, "train")
    assert [one.key for one in found] == [f"wavs/speakers/{who}.wav" for who in ("a/0", "a/1", "b/2", "b/3")]
    assert found[1].intent == "activate/music/none" and found[1].text == "Turn on, now" and found[1].speaker == "a"
    assert found[1].path == tmp_path / "wavs/speakers/a/1.wav"
    by_speaker = data.model_copy(update={"train_speakers": ("c",), "dev_speakers": ("a",), "test_speakers": ("d",)})
    assert {one.speaker for one in utterances(by_speaker, "train")} == {"c"}


@pytest.mark.parametrize(
    "content, why",
    [
        (HEADER.replace("action", "verb"), "no column 'action'"),
        (f"{HEADER}\n0,a.wav,s,yes,activate,,none", "line 2: a path and the three parts of an intent"),
    ],
)
def test_tables_that_are_not_fluent_speech_commands(tmp_path: Path, content: str, why: str) -> None:
    file = fluent(tmp_path) / "data/valid_data.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=why):
        read_fluent_speech_commands(file)
    file.unlink()
    with pytest.raises(UserError, match=r"valid_data\.csv is missing"):
        read_fluent_speech_commands(file)


def test_intents_of_shards_and_tables(tmp_path: Path) -> None:
    """In the JSON of a sample, and by the names of a table's classes."""
    said = [json.dumps({"text": "x", "intent": name}).encode() for name in CLASSES]
    samples = [(f"k{i}", {".wav": packed_files.wav(0.3), ".json": one}) for i, one in enumerate(said)]
    packed_files.tar(tmp_path / "train-0.tar", samples)
    found = utterances(SpeechData(task="intents", sources="webdataset", path=tmp_path), "train")
    assert [one.intent for one in found] == list(CLASSES)
    pytest.importorskip("pyarrow")
    features = {"audio": {"_type": "Audio"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}
    rows = [{"audio": packed_files.wav(0.3), "label": i} for i in (2, 0, -1)]  # where it is -1 nobody said it
    packed_files.tables(tmp_path / "saved", {"train": rows}, features)
    found = utterances(SpeechData(task="intents", sources="datasets", path=tmp_path / "saved"), "train")
    assert [one.intent for one in found] == ["up", "off", None]


def test_classes_are_those_of_training(tmp_path: Path) -> None:
    adapter = adapter_of(record(tmp_path, {0: {"intent": None}, 1: {"intent": None, "label": "on"}, 2: {"text": None}}))
    train = adapter.data("train")
    assert adapter.class_names("student") == CLASSES and SpeechAdapter.metric_of({"task": "intents"})[0] == "accuracy"
    assert list(train.labelled) == [i for i in range(12) if train.items[i].key != "train0.wav"]
    assert train.describe()["without_intent"] == 1 and "untranscribed" not in train.describe()
    order = sorted(range(12), key=lambda i: int(train.items[i].key[5:-4]))
    batch = batch_of(adapter, items=order[:4])
    assert batch["labels"].tolist() == [-1, 1, 2, 0] and batch["texts"] == ["lights off", "lights on", "", "lights off"]


@pytest.mark.parametrize(
    "split, line, why",
    [
        ("dev", {"intent": None}, "dev utterance 'dev0.wav' lacks 'intent'"),
        ("test", {"intent": "onn"}, "test utterance 'test0.wav': intent 'onn' is of no training utterance"),
    ],
)
def test_what_cannot_be_measured_is_named(tmp_path: Path, split: str, line: dict[str, Any], why: str) -> None:
    file = record(tmp_path) / f"{split}.jsonl"
    first, *rest = file.read_text().splitlines()
    changed = {key: value for key, value in (json.loads(first) | line).items() if value is not None}
    file.write_text("\n".join([json.dumps(changed), *rest]))
    with pytest.raises(UserError, match=why):
        adapter_of(tmp_path).data(split)


def test_a_list_of_labels_is_no_class(tmp_path: Path) -> None:
    """Others call other things so: a recogniser's manifest may have it."""
    folder = record(tmp_path, {0: {"intent": None, "label": [1, 2]}, 1: {"intent": None, "label": 7}})
    found = {one.key: one.intent for one in utterances(SpeechData(sources="manifest", path=folder), "train")}
    assert found["train0.wav"] is None and found["train1.wav"] == "7"


def test_training_names_two_classes_at_least(tmp_path: Path) -> None:
    recordings = record(tmp_path, {i: {"intent": "on"} for i in range(12)})
    with pytest.raises(UserError, match="one intent only, 'on'"):
        adapter_of(recordings).data("train")


@pytest.mark.parametrize("more", ["data.tokens=characters", "data.metric=cer", "data.streaming=true"])
def test_keys_of_other_tasks_are_refused(tmp_path: Path, more: str) -> None:
    with pytest.raises(UserError, match="it says nothing to task intents"):
        adapter_of(record(tmp_path), more)


# ---------------------------------------------------------------- models


def model_of(name: str) -> Any:
    torch.manual_seed(2)
    own = {"width": 8, "dilations": (1, 2)} if name.startswith("conv") else {"width": 8, "layers": 1, "heads": 2}
    kind = MODELS[name]
    model = kind(kind.Config(**own, embedding=5), mels=6, classes=4)
    torch.nn.init.normal_(model.utterance.score.weight)
    return model.eval()


def sounds(*lengths: int) -> tuple[Tensor, Tensor]:
    """Features with NaN behind each one's end."""
    features = torch.randn(len(lengths), max(lengths), 6, generator=torch.Generator().manual_seed(1))
    for row, length in zip(features, lengths, strict=True):
        row[length:] = torch.nan
    return features, torch.tensor(lengths)


@pytest.mark.parametrize("name", ["conv_classifier", "conformer_classifier"])
def test_padding_is_not_heard(name: str) -> None:
    model, (features, lengths) = model_of(name), sounds(20, 9, 1)
    with torch.no_grad():
        together = model(features, lengths)
        for i, length in enumerate(lengths.tolist()):
            alone = model(features[i : i + 1, :length], lengths[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone)
        assert torch.isfinite(model(torch.zeros(2, 4, 6), torch.tensor([0, 4]))).all()


def test_an_utterance_is_a_weighted_mean_that_begins_as_the_mean() -> None:
    model, (features, lengths) = model_of("conv_classifier"), sounds(20, 9)
    frames, counts = model.encoder(features, lengths)
    mask = (torch.arange(frames.shape[1]) < counts[:, None])[..., None]
    scores = torch.where(mask, model.utterance.score(frames), -torch.inf)
    expected = torch.stack([
        (scores[i, :n].softmax(dim=0) * frames[i, :n]).sum(dim=0) for i, n in enumerate(counts.tolist())
    ])  # fmt: skip
    torch.testing.assert_close(model.utterance(frames, mask), expected)
    torch.nn.init.zeros_(model.utterance.score.weight)
    means = torch.stack([frames[i, :n].mean(dim=0) for i, n in enumerate(counts.tolist())])
    torch.testing.assert_close(model.utterance(frames, mask), means)


def test_rows_are_utterances_and_frames(tmp_path: Path) -> None:
    adapter = adapter_of(record(tmp_path))
    batch, student = batch_of(adapter), adapter.build("student", "conv_classifier", {"width": 8, "dilations": [1, 2]})
    said = adapter.signals("student", student, batch, ["utterance", "encoder.blocks.1", "encoder"])
    assert said.rows("logits").shape == (4, 3) and said.layout("logits") is said.layout("labels")
    assert said.rows("utterance").shape == (4, 64) and said.layout("utterance") is said.layout("logits")
    frames = int(((batch["lengths"] + 3) // 4).sum())
    for name in ("encoder.blocks.1", "encoder"):
        assert said.layout(name).kind == "frame" and int(said.layout(name).mask.sum()) == frames
    for name, why in (("utterance.score", "capture utterance"), ("encoder.subsample.convolutions.0", "before time")):
        with pytest.raises(UserError, match=why):
            adapter.signals("student", student, batch, [name])
    with pytest.raises(UserError, match="model 'conv' names no classes"):
        adapter.build("student", "conv", {})
    with pytest.raises(UserError, match=r"names classes: set data\.task to intents"):
        SpeechAdapter(SpeechData(sources="fsdd", path=tmp_path, train_speakers=("a",), symbols=_symbols(tmp_path)),
                      adapter.streams, 4).build("student", "conv_classifier", {})  # fmt: skip


def _symbols(folder: Path) -> Path:
    (folder / "tokens.txt").write_text("<blank>\na\n")
    return folder / "tokens.txt"


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of training without an intent."""
    return record(tmp_path_factory.mktemp("recordings"), {0: {"intent": None}, 7: {"intent": None}})


@pytest.fixture(scope="module")
def finished(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    given = listed(sets(recordings, "data.augment={speed: [0.9, 1.1], time_masks: 1}"))
    assert call(["run", "smoke/intents", "--out", str(out), "--device", "cpu", "--quiet", *given]) == 0
    return out


def test_a_run_measures_and_exports(finished: Path) -> None:
    report = read_json(finished / "report.json")
    for role in ("teacher", "control", "student", "self_training"):
        metrics = report["roles"][role]["metrics"]
        assert metrics["utterances"] == 6 and set(metrics["accuracy_by_class"]) == set(CLASSES)
        low, high = metrics["accuracy_interval"]
        assert 0 <= low <= metrics["accuracy"] <= high <= 1 and set(metrics["accuracy_by_speaker"]) == {"s0", "s1"}
    student, exported = report["roles"]["student"]["metrics"], report["export"]
    assert exported["model.onnx"]["metrics"]["accuracy"] == student["accuracy"]
    assert {"logit_error", "agreement", "error_interval"} <= set(exported["int8_against_fp32"])
    card = (finished / "student/README.md").read_text()
    assert "one of 3 (off, on, up)" in card and "classify-audio" in card and "audio-classification" in card
    [panel] = panels.read(finished)
    assert {one["reference"] for one in panel.content["items"]} == set(CLASSES)


def test_files_are_classified_and_the_bad_ones_named(finished: Path, recordings: Path, capsys: Capture) -> None:
    (bad := finished / "bad.wav").write_text("no sound")
    student, wave = str(finished / "student"), str(recordings / "test0.wav")
    assert call(["classify-audio", student, wave, str(bad), str(recordings / "test1.wav"), "--top", "2"]) == 2
    out, err = capsys.readouterr()
    first, second = (line.split("\t") for line in out.splitlines())
    assert first[0] == wave and {first[1], first[3]} <= set(CLASSES) and float(first[2]) >= float(first[4])
    assert second[0].endswith("test1.wav") and "bad.wav: not an audio file" in err.replace("\n", "")
    assert call(["classify-audio", student, wave, "--json", "--precision", "int8"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["class"] == next(iter(said["probabilities"])) and sum(said["probabilities"].values()) == pytest.approx(
        1
    )


def test_onnx_says_what_torch_says(finished: Path, recordings: Path, tmp_path: Path) -> None:
    for name in ("card.json", "model.safetensors"):
        (tmp_path / name).write_bytes((finished / "student" / name).read_bytes())
    with_onnx, by_torch = UtteranceClassifier(finished / "student"), UtteranceClassifier.from_pretrained(tmp_path)
    for file in sorted(recordings.glob("test*.wav")):
        one, other = with_onnx.classify(file), by_torch.classify(file)
        assert [one[name] for name in CLASSES] == pytest.approx([other[name] for name in CLASSES], abs=1e-5)
    with pytest.raises(UserError, match=r"model\.int8\.onnx is missing"):
        UtteranceClassifier(tmp_path, "int8")
    long = tmp_path / "long.wav"
    packed = packed_files.wav(LONGEST + 1, rate=1000)
    long.write_bytes(packed)
    with pytest.raises(UserError, match="an utterance lasts 60 s at most"):
        by_torch.classify(long)


def test_a_saved_student_may_be_trained_on_and_must_be_of_these_classes(
    finished: Path, recordings: Path, tmp_path: Path
) -> None:
    adapter = adapter_of(recordings)
    assert adapter.load("student", finished / "student").card["model"] == "conv_classifier"
    with pytest.raises(UserError, match=r"hears features\.mels = 12, the recipe says 10"):
        adapter_of(recordings, "data.features.mels=10").load("student", finished / "student")
    others = record(tmp_path / "others", {2: {"intent": "down"}, 5: {"intent": "down"}})
    with pytest.raises(UserError, match="names other intents than the data: they differ in 'down'"):
        adapter_of(others).load("student", finished / "student")
    with pytest.raises(UserError, match="a recogniser of task intents, transducer is asked for"):
        from xmodal_kd.modalities.speech.export.saved_folder import load_model

        load_model(finished / "student", "transducer")


def test_transcribe_names_the_command(finished: Path, recordings: Path, capfd: Capture) -> None:
    given = ("transcribe", str(finished / "student"), str(recordings / "test0.wav"))
    assert "it names classes: xmodal-kd classify-audio" in fails(capfd, 2, *given)


# ---------------------------------------------------------------- recipes for what somebody brings


def made(path: Path, data: Path, teacher: Path | None = None, **more: Any) -> Any:
    draft("speech", path / "mine.yaml", teacher, data, estimate=False, **more)
    return load(str(path / "mine.yaml")).recipe


def test_new_names_classes_where_all_utterances_have_one(finished: Path, recordings: Path, tmp_path: Path) -> None:
    whole = record(tmp_path / "whole")
    recipe = made(tmp_path, whole, size="small")
    assert recipe.data["task"] == "intents" and recipe.teacher.model == "conformer_classifier"
    assert recipe.student.model == "conv_classifier" and [term.loss for term in recipe.objective] == ["ce", "kd"]
    (tmp_path / "mine.yaml").unlink()
    recipe = made(tmp_path, whole, finished / "teacher")
    assert recipe.teacher.path == finished / "teacher"
    with pytest.raises(Unfit, match=r"'train0\.wav' has no intent"):
        made(tmp_path / "other", recordings, finished / "teacher")
    with pytest.raises(Unfit, match="'conv' names no classes"):
        made(tmp_path / "other", whole, finished / "teacher", like="conv")
    (tmp_path / "mine.yaml").unlink()
    assert "task" not in made(tmp_path, whole, like="conv").data  # who wants words says so


def test_new_of_single_words_writes_them_unless_a_classifier_is_asked_for(digits: Path, tmp_path: Path) -> None:
    assert "task" not in made(tmp_path, digits, size="small").data
    (tmp_path / "mine.yaml").unlink()
    recipe = made(tmp_path, digits, like="conv_classifier")
    assert recipe.data["task"] == "intents" and recipe.student.model == "conv_classifier"
