"""A Whisper as a teacher of sequences: what it writes, what is believed of it, and a student of its texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from pretrained_small import write_whisper

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.data.audio import Wave
from xmodal_kd.modalities.speech.data.features import Features
from xmodal_kd.modalities.speech.export.saved_folder import save_model
from xmodal_kd.modalities.speech.models import MODELS
from xmodal_kd.modalities.speech.models import whisper as module
from xmodal_kd.modalities.speech.models.whisper import Hypothesis, Whisper
from xmodal_kd.modalities.speech.use.pseudolabel import Filter
from xmodal_kd.runtime.checkpoint import read_json

transformers = pytest.importorskip("transformers", exc_type=ImportError)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Four training recordings, of which two have their words."""
    rng, folder = np.random.default_rng(0), tmp_path / "recordings"
    folder.mkdir()
    for split, texts in (("train", ["one two", None, "two three", None]), ("dev", ["one"]), ("test", ["two"])):
        lines = []
        for i, text in enumerate(texts):
            sf.write(folder / f"{split}{i}.wav", 0.1 * rng.standard_normal(8000 + 800 * i), 16000)
            line = {"audio_filepath": f"{split}{i}.wav", "speaker": f"s{i}"}
            lines.append(json.dumps(line if text is None else {**line, "text": text}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def test_scores_are_mean_log_probabilities_of_its_own_tokens(folder: Path) -> None:
    """By the model's own answer to the whole sequence, token by token."""
    whisper = Whisper(folder)
    wave = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    found = whisper(wave, n=3, beam=4)
    assert len(found) == 3 and len({one.text for one in found}) == 3
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    heard = whisper.hears(wave, sampling_rate=16000, return_tensors="pt").input_features
    names, end = whisper.tokenizer.get_vocab(), whisper.model.generation_config.eos_token_id
    for one in found:
        own = [names[letter] for letter in one.text.replace(" ", "Ġ")]
        own += [end] if len(own) < 10 else []  # it was cut at the longest it may write
        with torch.no_grad():
            ids = torch.tensor([[*whisper.tokenizer.prefix_tokens, *own]])
            log_p = whisper.model(heard, decoder_input_ids=ids[:, :-1]).logits.log_softmax(dim=-1)[0]
        expected = np.mean([float(log_p[1 + i, token]) for i, token in enumerate(own)])
        assert one.score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "text, score, transcript, other, why",
    [
        ("one two", -0.1, None, None, None),
        ("", -0.1, None, None, "nothing was written"),
        ("route 7", -0.1, None, None, "it has digits"),
        ("one two", -2.0, None, None, "it is not sure enough"),
        ("one two", -0.1, "one two", "one two", None),
        ("one two", -0.1, None, "one too", "the two teachers differ"),
        ("one two", -0.1, "one", None, "it differs from the transcript"),
    ],
)
def test_what_is_believed(text: str, score: float, transcript: str | None, other: str | None, why: str | None) -> None:
    assert Filter(min_score=-1.0).against(text, score, transcript, other) == why


def saying(texts: Sequence[str], asked: list[int]) -> Any:
    """In place of the search, the texts in turn; `asked` counts how often it is."""

    def call(self: Whisper, wave: Wave, n: int = 1, beam: int = 1) -> list[Hypothesis]:
        asked.append(n)
        return [Hypothesis(texts[(len(asked) - 1) % len(texts)], -0.5)]

    return call


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_silent_recordings_get_its_texts_and_are_asked_once(
    folder: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module.Whisper, "__call__", saying(["Three, ONE.", "4 two"], asked))
    out = tmp_path / "out"
    assert call(["pseudolabel", str(folder), str(recordings), "--out", str(out)]) == 0
    assert "1 taken, 1 it has digits" in capsys.readouterr().out and len(asked) == 2
    assert [line["text"] for line in lines(out / "train.jsonl")] == ["one two", "three one", "two three"]
    assert [line["text"] for line in lines(out / "dev.jsonl")] == ["one"]
    with (out / "hypotheses.jsonl").open("a") as file:
        file.write('{"key": "cut')  # the machine went down here
    assert call(["pseudolabel", str(folder), str(recordings), "--out", str(out), "--keep-digits"]) == 0
    assert len(asked) == 2 and len(lines(out / "train.jsonl")) == 4
    assert call(["pseudolabel", str(folder), str(recordings), "--out", str(out), "--beam", "2"]) == 0
    assert len(asked) == 4  # another search says other things
    assert call(["pseudolabel", str(folder), str(recordings), "--out", str(out), "--beam", "2"]) == 0
    assert len(asked) == 4  # the line behind the one that was cut counts


def test_a_recording_that_cannot_be_read_stops_nobody(
    folder: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def heard(_: object, wave: object, *more: object) -> list[module.Hypothesis]:
        return [module.Hypothesis("three one", -0.5)]

    monkeypatch.setattr(module.Whisper, "__call__", heard)
    silent = next(line for line in lines(recordings / "train.jsonl") if "text" not in line)
    (recordings / silent["audio_filepath"]).write_bytes(b"no sound")
    sf.write(recordings / "long.wav", np.zeros(31 * 8000), 8000)
    with (recordings / "train.jsonl").open("a") as file:
        file.write('\n{"audio_filepath": "long.wav"}\n')
    assert call(["pseudolabel", str(folder), str(recordings), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert {*said.out.strip().partition("out: ")[2].split(", ")} == {
        "1 taken",
        "1 cannot be read",
        "1 longer than 30 s",
    }
    assert silent["audio_filepath"] in " ".join(said.err.split())
    assert len(lines(tmp_path / "out" / "train.jsonl")) == 3


def test_transcripts_say_whether_it_is_believed(
    folder: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Whisper, "__call__", saying(["one two", "nine", "two", "nine"], []))
    out = tmp_path / "out"
    assert call(["pseudolabel", str(folder), str(recordings), "--out", str(out), "--replace"]) == 0
    assert [line["text"] for line in lines(out / "train.jsonl")] == ["one two", "nine", "nine"]
    facts = read_json(out / "pseudolabels.json")
    assert facts["wer_on_transcripts"] == pytest.approx(1 / 4)  # "three" of "two three" is missing
    assert facts["written"] == {"taken": 3, "it differs from the transcript": 1}


def test_a_second_teacher_and_a_student_of_the_texts(
    folder: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recogniser saved here as the second one; then a run on what was written."""
    torch.manual_seed(0)
    tokens = {"kind": "characters", "symbols": ["<blank>", *sorted("enothrw"), "|"]}
    model = MODELS["conv"](MODELS["conv"].Config(width=8, dilations=(1,)), mels=16, classes=9).eval()
    features = Features(mels=16).model_dump()
    other = save_model(tmp_path / "other", "conv", {"width": 8, "dilations": [1]}, model, features, tokens)
    out = tmp_path / "out"
    given = ["pseudolabel", str(folder), str(recordings), "--out", str(out), "--agree", str(other)]
    assert call([*given, "--max-apart", "100"]) == 0
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    sets = (
        f"data.path={out}", "teacher=null", "control=false", "objective=[{loss: ctc}]", "train.steps=1",
        "train.batch_size=2", "student.params={width: 8, dilations: [1]}", "trackers=[]", "data.unknown=keep",
    )  # fmt: skip
    words = [word for one in sets for word in ("--set", one)]
    assert call(["run", "speech/kathleen", "--out", str(tmp_path / "run"), "--quiet", "--no-export", *words]) == 0


@pytest.mark.parametrize(
    "what, more, said",
    [
        ("whisper", ["--language", "de"], "--language de: .* knows one language: leave it out"),
        ("recordings", [], "neither a Whisper as transformers saves it nor a recogniser that was saved here"),
        (
            "whisper",
            ["--min-score", "0"],
            "none of its 2 texts is believed .2 it is not sure enough.: loosen what filters",
        ),
        ("all", [], "every training recording has its text: say --replace"),
        ("same", [], "it is the folder of the recordings: name another"),
    ],
)
def test_what_does_not_fit_is_one_line(
    folder: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, more: list[str],
    said: str,
) -> None:  # fmt: skip
    if what == "all":
        held = [{**line, "text": "one"} for line in lines(recordings / "train.jsonl")]
        (recordings / "train.jsonl").write_text("\n".join(map(json.dumps, held)))
    teacher = recordings if what == "recordings" else folder
    out = recordings if what == "same" else tmp_path / "out"
    assert call(["pseudolabel", str(teacher), str(recordings), "--out", str(out), *more]) == 2
    import re

    assert re.search(said, " ".join(capsys.readouterr().err.split()))


def test_a_folder_without_recordings_is_named_as_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command has no option of that name."""
    assert call(["pseudolabel", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}") and "no recordings and no manifest" in said and "--data" not in said
