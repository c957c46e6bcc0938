"""A recogniser that hears a pipe says what it says of the file."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from xmodal_kd.modalities.speech.data import audio
from xmodal_kd.modalities.speech.data.features import Features
from xmodal_kd.modalities.speech.export.saved_folder import save_model
from xmodal_kd.modalities.speech.models import MODELS
from xmodal_kd.modalities.speech.use.commands import COMMANDS
from xmodal_kd.modalities.speech.use.live import Live, heard, words
from xmodal_kd.modalities.speech.use.transcribe import Recogniser
from xmodal_kd.runtime.errors import UserError

RATE = 8000
SYMBOLS = {"words": ["<blank>", "one", "three", "two"], "characters": ["<blank>", "a", "b", "|"]}
PCM = np.random.default_rng(3).integers(-9000, 9000, size=2 * RATE).astype("<i2") * (np.arange(2 * RATE) // 900 % 3)


def student(folder: Path, kind: str, normalise: str = "running") -> Path:
    torch.manual_seed(1)
    model = MODELS["conv"](MODELS["conv"].Config(), mels=16, classes=4).eval()
    with torch.no_grad():  # an untrained model that says something: its head is sharp
        model.head.weight.mul_(20)
    features = Features(sample_rate=RATE, mels=16, normalise=normalise).model_dump()
    return save_model(folder, "conv", {}, model, features, {"kind": kind, "symbols": SYMBOLS[kind]})


def header(channels: int = 1, rate: int = RATE, width: int = 2) -> bytes:
    with io.BytesIO() as whole:
        with wave.open(whole, "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(width)
            file.setframerate(rate)
            file.writeframes(np.repeat(PCM.astype("<i2"), channels).tobytes() if width == 2 else b"0" * 999)
        return whole.getvalue()


@pytest.mark.parametrize("kind", SYMBOLS)
@pytest.mark.parametrize("size", [777, 5000, 10**6])
def test_any_chunks_give_the_words_of_the_file(tmp_path: Path, kind: str, size: int) -> None:
    recogniser = Recogniser(student(tmp_path / "student", kind))
    (tmp_path / "a.wav").write_bytes(header())
    whole = recogniser.transcribe(tmp_path / "a.wav")
    sound = PCM.astype(np.float32) / 32768
    live = Live(recogniser)
    said = [word for at in range(0, len(sound), size) for word in live.push(sound[at : at + size])]
    said += live.finish()
    assert " ".join(word["word"] for word in said) == whole["text"] and len(said) > 1
    for word, placed in zip(said, whole["words"], strict=True):
        # a file's words reach as far as their sound does, and hold their spikes but for the last frame's rest
        assert placed["start"] <= word["start"] < word["end"] <= placed["end"] + recogniser.frame
        assert word["confidence"] == pytest.approx(placed["confidence"], abs=2e-3)


def test_words_are_said_before_the_sound_ends(tmp_path: Path) -> None:
    recogniser, read = Recogniser(student(tmp_path, "words")), []
    source, rate = heard(io.BytesIO(PCM.astype("<i2").tobytes()), RATE)

    def counted():  # type: ignore[no-untyped-def]
        for chunk in source:
            read.append(len(chunk))
            yield chunk

    first = next(words(recogniser, counted(), rate))
    assert first["end"] < 1 and sum(read) < 1.5 * RATE


@pytest.mark.parametrize("channels", [1, 2])
def test_a_pipe_of_wav_or_raw_samples_is_the_file(tmp_path: Path, channels: int) -> None:
    sound = PCM.astype(np.float32) / 32768
    for data, raw in ((header(channels), None), (PCM.astype("<i2").tobytes(), RATE)):
        chunks, rate = heard(io.BytesIO(data), raw)
        np.testing.assert_array_equal(np.concatenate(list(chunks)), sound)
        assert rate == RATE


def test_resampled_chunks_join_to_the_whole() -> None:
    sound = PCM.astype(np.float32) / 32768
    pieces = [sound[at : at + 777] for at in range(0, len(sound), 777)]
    for new in (RATE, 16000, 11025):
        joined = np.concatenate(list(audio.resampled(iter(pieces), RATE, new)))
        np.testing.assert_allclose(joined, audio.resample(sound, RATE, new), atol=1e-6)


@pytest.mark.parametrize(
    ("data", "options", "words_"),
    [
        (b"hello", [], "no WAV stream"),
        (b"", [], "it ends within its header"),
        (header(width=1), [], "8 bits"),
        (b"\0" * 99, ["--raw", "0"], "sample rate in Hz"),
        (b"\0" * 99, ["--raw", "8000", "--into", "x"], "standard input is heard alone"),
        (b"\0" * 99, ["other.wav"], "standard input is heard alone"),
    ],
)
def test_what_is_no_sound_is_refused(tmp_path: Path, data: bytes, options: list[str], words_: str) -> None:
    found = command(student(tmp_path, "words"), data, *options)
    assert isinstance(found.exception, UserError) and words_ in str(found.exception)


def test_the_command_writes_words_as_text_and_as_json(tmp_path: Path) -> None:
    folder, raw = student(tmp_path, "words"), PCM.astype("<i2").tobytes()
    text = command(folder, raw, "--raw", str(RATE)).stdout
    lines = [json.loads(line) for line in command(folder, raw, "--raw", str(RATE), "--json").stdout.splitlines()]
    assert text == " ".join(line["word"] for line in lines) + "\n" and len(lines) > 3


def test_features_of_the_whole_recording_cannot_be_heard_live(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the whole recording"):
        Live(Recogniser(student(tmp_path, "words", normalise="utterance")))


def command(folder: Path, data: bytes, *options: str):  # type: ignore[no-untyped-def]
    app = typer.Typer()
    app.command()(COMMANDS["transcribe"])
    return CliRunner().invoke(app, [str(folder), "-", *options], input=data)
