"""The student with its state as ONNX: any chunks say what the whole says, in float32 and int8, from export to pipe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile as sf
import torch
from torch import nn

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.audio import read
from xmodal_kd.modalities.speech.data.corpora import SpeechData
from xmodal_kd.modalities.speech.export import onnx_steps, standalone
from xmodal_kd.modalities.speech.export.onnx import FP32, INT8, OnnxModel
from xmodal_kd.modalities.speech.export.onnx_steps import STREAM_FP32, STREAM_INT8, OnnxSteps, in_chunks
from xmodal_kd.modalities.speech.export.saved_folder import PROGRAM
from xmodal_kd.modalities.speech.models.streaming import ENDLESS, Steps, Windows
from xmodal_kd.modalities.speech.use.live import words
from xmodal_kd.modalities.speech.use.transcribe import Recogniser
from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import RunError, UserError
from xmodal_kd.runtime.random_streams import Streams

MELS, RATE = 40, 8000
STREAMS = (STREAM_FP32, STREAM_INT8)


def adapter(digits: Path, **changes: Any) -> SpeechAdapter:
    data = {
        "sources": "fsdd", "path": digits, "train_speakers": ["anna"], "dev_speakers": ["duncan"],
        "test_speakers": ["edith"], "features": {"sample_rate": RATE, "mels": MELS}, "streaming": True,
        "compose": {"utterances": {"train": 8, "dev": 2, "test": 6}, "clips": [2, 4]},
    }  # fmt: skip
    return SpeechAdapter(SpeechData.model_validate(data | changes), Streams(1), 4)


@pytest.fixture(scope="module")
def made(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, Mapping[str, Any]]:
    """A folder, the student in it, which says something, and what its export found."""
    folder, speech = tmp_path_factory.mktemp("student"), adapter(digits)
    torch.manual_seed(1)
    model = speech.build("student", "conv", {"dilations": [1], "lookahead": 2}).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)
    speech.save("student", model, folder)
    return folder, model, speech.export(model, folder)


def features(length: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(length).standard_normal((length, MELS), dtype=np.float32))


@pytest.mark.parametrize("size", [1, 3, 4, 25, 1000])
@pytest.mark.parametrize("length", [1, 4, 5, 130])
def test_any_chunks_say_what_the_whole_says(made: tuple[Path, nn.Module, Any], size: int, length: int) -> None:
    folder, model, _ = made
    x, count = features(length), torch.tensor([length])
    with torch.no_grad():
        whole = model(x[None], count)[0][0]
    parts = torch.cat(list(in_chunks(OnnxSteps(folder / STREAM_FP32), x, size)))
    torch.testing.assert_close(parts, OnnxModel(folder / FP32)(x[None], count)[0][0], atol=1e-4, rtol=0)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)
    small = OnnxSteps(folder / STREAM_INT8)
    at_once = torch.cat(list(in_chunks(small, x, 10_000)))
    torch.testing.assert_close(torch.cat(list(in_chunks(small, x, size))), at_once, atol=1e-4, rtol=0)


def test_int8_is_small_and_as_close_as_that_of_the_whole(made: tuple[Path, nn.Module, Any]) -> None:
    folder, _, found = made
    sizes = {name: found[name]["bytes"] for name in (FP32, INT8, *STREAMS)}
    assert sizes == {name: (folder / name).stat().st_size for name in sizes}
    assert sizes[STREAM_INT8] < 0.6 * sizes[STREAM_FP32] < 0.7 * sizes[FP32]
    x = features(300)
    whole, of_whole = (OnnxModel(folder / name)(x[None], torch.tensor([300]))[0][0] for name in (FP32, INT8))
    streamed = torch.cat(list(in_chunks(OnnxSteps(folder / STREAM_INT8), x, 30)))
    assert (streamed - whole).square().mean() < 1.2 * (of_whole - whole).square().mean() < 0.01 * whole.square().mean()


def test_both_are_scored_and_float_scores_the_same(made: tuple[Path, nn.Module, Mapping[str, Any]]) -> None:
    found = made[2]
    scores = {name: {k: v for k, v in found[name]["metrics"].items() if k != "rtf"} for name in (FP32, STREAM_FP32)}
    assert scores[FP32] == scores[STREAM_FP32] and found[STREAM_INT8]["metrics"]["wer"] > 0


def test_the_file_says_how_it_is_fed(made: tuple[Path, nn.Module, Any]) -> None:
    graph = onnx.load(made[0] / STREAM_INT8).graph
    taken, given = ([value.name for value in part] for part in (graph.input, graph.output))
    assert taken[:3] == ["features", "length", "position"] and given[:3] == ["logits", "frames", "next_position"]
    assert given[2:] == [f"next_{name}" for name in taken[2:]]
    steps = OnnxSteps(made[0] / STREAM_INT8)
    assert [one.shape[0] for one in steps.start(3)] == [3] * (len(taken) - 2)
    chunk, endless = features(8).expand(3, -1, -1), torch.full((3,), ENDLESS)
    logits, frames, position, *_ = steps(chunk, endless, *steps.start(3))
    assert logits.shape[:2] == (3, 2) and frames.tolist() == [[-2, -1]] * 3 and position.tolist() == [2, 2, 2]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_pipe_is_heard_with_the_state(made: tuple[Path, nn.Module, Any], digits: Path, precision: Any) -> None:
    recogniser, path = Recogniser(made[0], precision), sorted(digits.rglob("*edith*.wav"))[0]
    assert isinstance(recogniser.stream(), Steps)
    wave, rate = read(path)
    said = [word["word"] for word in words(recogniser, iter([np.tile(wave, 3)]), rate)]
    by_windows = Recogniser(made[0], precision)
    by_windows._steps = None
    assert isinstance(by_windows.stream(), Windows)
    again = [word["word"] for word in words(by_windows, iter([np.tile(wave, 3)]), rate)]
    assert len(said) > 2 and (precision == "int8" or said == again)


def test_an_export_that_differs_is_refused(made: tuple[Path, nn.Module, Any], digits: Path) -> None:
    torch.manual_seed(2)
    other = adapter(digits).build("student", "conv", {"dilations": [1], "lookahead": 2}).eval()
    with pytest.raises(RunError, match=r"in chunks of 7 it differs from the torch model"):
        onnx_steps._check(other, OnnxSteps(made[0] / STREAM_FP32), MELS)


def test_what_cannot_stream_is_refused_before_it_is_trained(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"data\.streaming: 'conformer' cannot hear chunks: set student\.model to conv"):
        adapter(digits).build("student", "conformer", {"layers": 1})
    adapter(digits, streaming=False).build("student", "conformer", {"layers": 1})
    changes = (f"data.path={digits}", "data.streaming=true", "data.features.normalise=utterance")
    sets = [word for change in changes for word in ("--set", change)]
    assert call(["run", "smoke/speech", "--quiet", *sets]) == 2
    assert "streaming: features.normalise: utterance needs the whole recording" in capsys.readouterr().err


# ---------------------------------------------------------------- the program beside it


@pytest.fixture(scope="module")
def recording(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "eight.wav"
    sf.write(path, np.concatenate([sf.read(clip)[0] for clip in sorted(digits.rglob("*edith*.wav"))[:8]]), RATE)
    return path


def said(folder: Path, path: Path, *, live: bool = False, int8: bool = False) -> list[str]:
    card = read_object(folder / "card.json")
    heard = standalone.recogniser(folder, card, int8=int8, live=live)(standalone.pieces(str(path), RATE))
    return [word for _, word in standalone.words(standalone.collapsed(heard), card["tokens"]["symbols"], "words", 0.04)]


@pytest.mark.parametrize("int8", [False, True])
def test_the_program_says_what_transcribe_says(
    made: tuple[Path, nn.Module, Any], recording: Path, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made[0]
    ours = Recogniser(folder, "int8" if int8 else "fp32").transcribe(recording)["text"].split()
    assert len(ours) > 3 and said(folder, recording, int8=int8) == ours
    monkeypatch.setattr(standalone, "PIECE", 0.31)
    assert said(folder, recording, int8=int8) == ours
    if not int8:
        monkeypatch.setattr(standalone, "WINDOW", 40)
        assert said(folder, recording) == ours == said(folder, recording, live=True)


def test_the_program_by_itself(made: tuple[Path, nn.Module, Any], recording: Path, tmp_path: Path) -> None:
    """Files, one of them broken, and a pipe."""
    (tmp_path / "cut.wav").write_bytes(b"RIFF")
    command = [sys.executable, "-I", str(made[0] / PROGRAM)]
    files = subprocess.run([*command, tmp_path / "cut.wav", recording], capture_output=True, text=True, check=False)
    expected = " ".join(said(made[0], recording))
    assert files.returncode == 1 and files.stdout == f"{recording}: {expected}\n"
    assert "cut.wav: cannot be read" in files.stderr
    pcm = sf.read(recording, dtype="int16")[0].tobytes()
    piped = subprocess.run([*command, "-"], input=pcm, capture_output=True, check=True)
    assert piped.stdout.decode().split() == expected.split()
