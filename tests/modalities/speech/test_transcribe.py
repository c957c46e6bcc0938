"""Saved folders, and the recogniser and command that work from one alone."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from xmodal_kd.modalities.speech.data.audio import read, resample
from xmodal_kd.modalities.speech.data.corpora import SpeechData
from xmodal_kd.modalities.speech.data.features import Features, Frontend
from xmodal_kd.modalities.speech.data.tokens import Tokens
from xmodal_kd.modalities.speech.evaluate.decode import greedy
from xmodal_kd.modalities.speech.export.card import about
from xmodal_kd.modalities.speech.export.onnx import INT8, export_onnx, quantise
from xmodal_kd.modalities.speech.export.saved_folder import (
    CARD,
    PROGRAM,
    WEIGHTS,
    load_card,
    load_model,
    save_model,
    write_program,
)
from xmodal_kd.modalities.speech.models import MODELS
from xmodal_kd.modalities.speech.use import transcribe as module
from xmodal_kd.modalities.speech.use.commands import COMMANDS
from xmodal_kd.modalities.speech.use.transcribe import Recogniser
from xmodal_kd.runtime.errors import UserError

WORDS = {"kind": "words", "symbols": ["<blank>", "one", "three", "two"]}
RATE = 8000


def save(folder: Path, *, name: str = "conv", normalise: str = "running", **params: object) -> Path:
    torch.manual_seed(0)
    model = MODELS[name](MODELS[name].Config(**params), mels=16, classes=4).eval()
    with torch.no_grad():  # an untrained model that says something: its head is sharp
        model.head.weight.mul_(20)
    features = Features(sample_rate=RATE, mels=16, normalise=normalise).model_dump()
    return save_model(folder, name, params, model, features, WORDS, {"note": "for tests"})


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(tmp_path_factory.mktemp("student"))
    export_onnx(load_model(folder)[0], folder, 16)
    wave = noise(3.0)
    quantise(folder, [Frontend(Features(sample_rate=RATE, mels=16))(torch.from_numpy(wave)).numpy()])
    return folder


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    """Bursts of coloured noise, so that features change."""
    rng, n = np.random.default_rng(0), round(seconds * rate)
    envelope = np.repeat(rng.uniform(0.001, 0.3, size=n // (rate // 10) + 1), rate // 10)[:n]
    return (np.cumsum(rng.standard_normal(n)) % 1.0 * envelope).astype(np.float32)


@pytest.fixture
def wav(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "a.wav", seconds: float = 2.0, rate: int = RATE, channels: int = 1) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, np.stack([noise(seconds, rate)] * channels, axis=1), rate)
        return path

    return write


def test_a_saved_folder_comes_back(student: Path) -> None:
    model, card = load_model(student)
    assert not model.training and card.model == "conv" and card.model_extra == {"note": "for tests"}
    assert card.receptive_field == model.receptive_field and card.sample_rate == RATE
    for name, tensor in load_file(student / WEIGHTS).items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_extra_may_not_contradict_the_card(tmp_path: Path, student: Path) -> None:
    model, card = load_model(student)
    with pytest.raises(ValueError, match="sample_rate"):
        save_model(tmp_path, "conv", {}, model, card.features, card.tokens, {"sample_rate": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "cnov"}, "nearest: conv"),
        ({"modality": "points"}, "a model of 'points'"),
        ({"params": {"widht": 3}}, "params.widht"),
        ({"params": {"width": 8}}, "(8|32)"),
        ({"features": {}}, "mels"),
        ({"format": 2}, "format"),
    ],
)
def test_a_card_that_does_not_fit(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = save(tmp_path / "s")
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | change))
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_card(tmp_path / "missing")
    with pytest.raises(UserError, match=r"has no card\.json"):
        load_card(tmp_path)
    (tmp_path / CARD).write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_card(tmp_path)
    (tmp_path / CARD).write_text("{}")
    with pytest.raises(UserError, match="a model of None"):
        load_card(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    folder = save(tmp_path / "s")
    (folder / WEIGHTS).write_bytes(b"\x80\x04nothing")
    with pytest.raises(UserError, match="safetensors"):
        load_model(folder)
    save_file({"x": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"holds|lacks"):
        load_model(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_model(folder)


def test_transcript_with_word_times(student: Path, wav: Callable[..., Path]) -> None:
    path = wav()
    found = Recogniser(student).transcribe(path)
    model, _ = load_model(student)
    x = Frontend(Features(sample_rate=RATE, mels=16))(torch.from_numpy(read(path)[0]))[None]
    ids = greedy(*model(x, torch.tensor([x.shape[1]])))[0]
    assert found["text"] == " ".join(WORDS["symbols"][k] for k in ids) and len(ids) > 3
    assert [w["word"] for w in found["words"]] == found["text"].split()
    times = [t for w in found["words"] for t in (w["start"], w["end"])]
    assert times == sorted(times) and times[-1] <= 2.04 and found["duration"] == 2.0 and found["rtf"] > 0


def test_backends_agree(student: Path, wav: Callable[..., Path]) -> None:
    path = wav()
    onnx, torch_, int8 = (
        torch.cat(list(recogniser.logits(path)))
        for recogniser in (Recogniser(student), Recogniser(student, backend="torch"), Recogniser(student, "int8"))
    )
    torch.testing.assert_close(onnx, torch_, atol=1e-3, rtol=0)
    assert (int8.argmax(-1) == onnx.argmax(-1)).float().mean() > 0.9


@pytest.mark.parametrize("normalise", ["running", "none", "utterance"])
@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_long_audio_in_chunks_says_what_the_whole_says(
    student: Path,
    tmp_path: Path,
    wav: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    normalise: str,
    backend: str,
) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for file in student.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    card = json.loads((folder / CARD).read_text())
    card["features"]["normalise"] = normalise
    (folder / CARD).write_text(json.dumps(card))
    path, recogniser = wav(seconds=21.3), Recogniser(folder, backend=backend)
    whole = torch.cat(list(recogniser.logits(path)))
    monkeypatch.setattr(module, "CHUNK", 2.7)
    parts = list(recogniser.logits(path))
    assert len(parts) > 7
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-3, rtol=0)
    wave = torch.from_numpy(read(path)[0])
    x = Frontend(recogniser.features)(wave)[None]
    torch.testing.assert_close(whole, recogniser.model(x, torch.tensor([x.shape[1]]))[0][0].detach(), atol=1e-3, rtol=0)


def test_long_audio_is_never_whole_in_memory(
    student: Path, wav: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 2.0)
    recogniser, longest = Recogniser(student), 0
    inner = recogniser.model

    def spy(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal longest
        longest = max(longest, x.shape[1])
        return inner(x, lengths)

    recogniser.model = spy
    recogniser.transcribe(wav(seconds=40))
    assert longest <= 200 + sum(recogniser.card.receptive_field) + 8


def test_a_model_without_a_receptive_field_overlaps_its_windows(
    tmp_path: Path, wav: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "teacher", name="conformer", width=16, layers=1, feed_forward=32)
    recogniser, path = Recogniser(folder), wav(seconds=14)
    whole = torch.cat(list(recogniser.logits(path)))
    monkeypatch.setattr(module, "CHUNK", 6.0)
    parts = torch.cat(list(recogniser.logits(path)))
    assert parts.shape == whole.shape
    assert (parts.argmax(-1) == whole.argmax(-1)).float().mean() > 0.7


@pytest.mark.parametrize(("rate", "channels", "name"), [(16000, 1, "a.wav"), (44100, 2, "a.flac"), (8000, 2, "a.ogg")])
def test_any_rate_and_channels(student: Path, wav: Callable[..., Path], rate: int, channels: int, name: str) -> None:
    path, recogniser = wav(name, rate=rate, channels=channels), Recogniser(student)
    wave = torch.from_numpy(resample(read(path)[0], rate, RATE))
    x = Frontend(recogniser.features)(wave)[None]
    logits = torch.cat(list(recogniser.logits(path)))
    torch.testing.assert_close(logits, recogniser.model(x, torch.tensor([x.shape[1]]))[0][0], atol=1e-3, rtol=0)


def test_audio_shorter_than_a_window(student: Path, wav: Callable[..., Path]) -> None:
    assert Recogniser(student).transcribe(wav(seconds=0.01))["duration"] == 0.01


def test_beam_search_prefers_the_most_probable_text(student: Path, wav: Callable[..., Path]) -> None:
    found = Recogniser(student).transcribe(wav(seconds=1.0), beam_size=8)
    assert found["words"] == [] or [w["word"] for w in found["words"]] == found["text"].split()


def test_words_of_characters(student: Path) -> None:
    recogniser = Recogniser(student)
    recogniser.tokens = type(recogniser.tokens)("characters", ("<blank>", "|", "a", "b"))
    found = recogniser._words([(1, 0, 1), (2, 1, 2), (3, 3, 5), (1, 6, 7), (1, 8, 9), (2, 10, 11), (1, 12, 13)])
    assert found == [{"word": "ab", "start": 0.04, "end": 0.2}, {"word": "a", "start": 0.4, "end": 0.44}]


@pytest.mark.parametrize(
    ("precision", "backend", "message"),
    [("int8", "auto", INT8), ("fp32", "onnx", "model.onnx"), ("int8", "torch", "ONNX"), ("fp64", "auto", "fp64")],
)
def test_what_a_folder_cannot_do(tmp_path: Path, precision: str, backend: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recogniser(save(tmp_path), precision, backend)


def test_features_that_do_not_fit(tmp_path: Path) -> None:
    folder = save(tmp_path)
    card = json.loads((folder / CARD).read_text())
    card["features"]["hop"] = 3
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"features\.hop"):
        Recogniser(folder)


# --- the command

app = typer.Typer()
app.command()(COMMANDS["transcribe"])


def run(*args: object) -> tuple[int, list[str], str]:
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout.splitlines(), result.stderr


def test_command_prints_path_and_text(student: Path, wav: Callable[..., Path]) -> None:
    a, b = wav("x/a.wav"), wav("x/deep/b.FLAC", seconds=1)
    text = Recogniser(student).transcribe(a)["text"]
    status, lines, _ = run(student, a.parent)
    assert status == 0 and [line.split("\t")[0] for line in lines] == [str(a), str(b)]
    assert lines[0] == f"{a}\t{text}"


def test_command_prints_json(student: Path, wav: Callable[..., Path]) -> None:
    status, lines, _ = run(student, wav(), "--json", "--precision", "int8", "--beam", 4)
    assert status == 0
    assert set(json.loads(lines[0])) == {"path", "text", "words", "duration", "rtf"}


def test_a_broken_file_is_named_and_the_rest_go_on(student: Path, wav: Callable[..., Path], tmp_path: Path) -> None:
    broken, good = tmp_path / "broken [x].wav", wav()
    broken.write_bytes(b"RIFF nothing")
    status, lines, errors = run(student, broken, tmp_path / "missing.wav", good)
    assert status == 2 and len(lines) == 1 and lines[0].startswith(f"{good}\t")
    told = errors.splitlines()
    assert len(told) == 2 and str(broken) in told[0] and "missing.wav" in told[1]


def test_a_folder_without_audio(student: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no audio"):
        run(student, tmp_path / "empty")


@pytest.mark.parametrize("normalise", ["running", "utterance", "none"])
@pytest.mark.parametrize("kind", ["words", "characters"])
def test_the_card_says_how_the_graph_is_used_without_this_project(
    student: Path, wav: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], normalise: str, kind: str,
) -> None:  # fmt: skip
    folder, path = tmp_path / "student", wav("recording.wav")
    shutil.copytree(student, folder)
    card = json.loads((folder / CARD).read_text())
    card["tokens"] = {"kind": kind, "symbols": ["<blank>", "a", "b", "|"] if kind == "characters" else WORDS["symbols"]}
    card["features"]["normalise"] = normalise
    (folder / CARD).write_text(json.dumps(card))
    data = SpeechData(sources="manifest", path=tmp_path, features=card["features"], tokens=kind)
    use = about(load_model(folder)[0], data, Tokens.from_json(json.dumps(card["tokens"]))).use
    write_program(folder)
    command = use.rpartition("```sh\n")[2].partition("\n```")[0].split()
    assert command[0] == "python" and command[1] == f"path/to/this/folder/{PROGRAM}"
    monkeypatch.setattr("sys.argv", [PROGRAM, str(path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(folder / PROGRAM), run_name="__main__")
    said = capsys.readouterr().out.strip()
    assert ended.value.code == 0 and said and said == Recogniser(folder).transcribe(path)["text"]
