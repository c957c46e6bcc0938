"""Where words stand in time: alignments against all paths, spans against sounds whose ends are known, subtitles."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from oracles import ctc as oracle
from typer.testing import CliRunner

from xmodal_kd.modalities.speech.evaluate.spans import align, widened
from xmodal_kd.modalities.speech.evaluate.subtitles import cues, srt, vtt

#: Seconds a frame of loudness, and frames of it in one of a model's answer.
HOP, STRIDE = 0.01, 4


@pytest.mark.parametrize("tokens", [(1, 2), (1, 1), (2,), (2, 1, 2), (3, 3, 1)])
def test_an_alignment_is_the_best_of_all_paths(tokens: tuple[int, ...]) -> None:
    torch.manual_seed(len(tokens))
    logits = 2 * torch.randn(5, 4)
    log_p = logits.log_softmax(dim=-1).numpy().astype(np.float64)
    spelt = [(score, path) for path, score in oracle.paths(log_p) if oracle.collapse(path) == tokens]
    best, spans, at = max(spelt)[1], [], 0
    for symbol, run in itertools.groupby(best):
        count = len(list(run))
        spans += [(at, at + count)] if symbol else []
        at += count
    assert align(logits, tokens) == spans


def test_what_cannot_be_aligned() -> None:
    assert align(torch.zeros(2, 3), [1, 1]) is None
    assert align(torch.zeros(2, 3), []) == []


def loud(sounds: list[tuple[float, float]], seconds: float) -> torch.Tensor:
    """Loudness of sounds in noise, with ups and downs within each."""
    rng = np.random.default_rng(0)
    values = -2 + 0.2 * rng.standard_normal(round(seconds / HOP))
    for start, end in sounds:
        span = slice(round(start / HOP), round(end / HOP))
        values[span] = 2 + 0.7 * rng.standard_normal(len(values[span]))
    return torch.from_numpy(values).float()


@pytest.mark.parametrize("late", [-0.12, 0.0, 0.12])
def test_a_spike_becomes_as_long_as_its_sound(late: float) -> None:
    """Spikes of one 40 ms frame, before the middle, at it or behind it: the span is the sound's to within 50 ms."""
    sounds = [(0.3, 0.8), (1.1, 1.5), (1.62, 2.1), (2.6, 3.0)]
    spikes = [round(((a + b) / 2 + late) / HOP / STRIDE) for a, b in sounds]
    cores = [(STRIDE * at, STRIDE * (at + 1)) for at in spikes]
    for (start, end), found in zip(sounds, widened(cores, loud(sounds, 3.5), HOP), strict=True):
        assert found[0] * HOP == pytest.approx(start, abs=0.05)
        assert found[1] * HOP == pytest.approx(end, abs=0.05)


def test_words_without_a_pause_meet_where_it_is_quietest() -> None:
    loudness = loud([(0.2, 2.0)], 2.4)
    loudness[98:103] -= 2.5
    first, second = widened([(60, 64), (140, 144)], loudness, HOP)
    assert 0 <= second[0] - first[1] <= 2 and abs(first[1] - 100) <= 3


def test_spans_keep_their_spikes_and_their_order_whatever_is_heard() -> None:
    rng = np.random.default_rng(0)
    for trial in range(50):
        loudness = torch.from_numpy(rng.standard_normal(rng.integers(20, 200))).float()
        edges = np.sort(rng.choice(len(loudness) + 8, size=2 * rng.integers(1, 6), replace=False)).tolist()
        cores = list(zip(edges[::2], edges[1::2], strict=True))
        found = widened(cores, loudness, HOP)
        for (start, end), (low, high) in zip(cores, found, strict=True):
            assert low <= start and high >= min(end, len(loudness)), trial
        assert all(a[1] <= max(b[0], a[1] if a[1] > len(loudness) - 1 else 0) or a[1] <= b[0] + 1
                   for a, b in itertools.pairwise(found)), trial  # fmt: skip


WORDS = [
    {"word": "hello", "start": 0.5, "end": 1.25},
    {"word": "<world>", "start": 1.3, "end": 1.9},
    {"word": "again", "start": 3600.0, "end": 3601.5},
]


def test_subtitles() -> None:
    assert srt(WORDS) == (
        "1\n00:00:00,500 --> 00:00:01,900\nhello <world>\n\n2\n01:00:00,000 --> 01:00:01,500\nagain\n"
    )
    assert vtt(WORDS) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.900\nhello &lt;world&gt;\n\n01:00:00.000 --> 01:00:01.500\nagain\n"
    )
    assert srt([]) == "" and vtt([]) == "WEBVTT\n"


def test_cues_are_short() -> None:
    words = [{"word": "abcdefghi", "start": 0.4 * i, "end": 0.4 * i + 0.3} for i in range(100)]
    found = list(cues(words))
    assert " ".join(text for *_, text in found) == " ".join(["abcdefghi"] * 100)
    assert all(len(text) <= 84 and end - start <= 6 for start, end, text in found)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from xmodal_kd.modalities.speech.data.features import Features
    from xmodal_kd.modalities.speech.export.saved_folder import save_model
    from xmodal_kd.modalities.speech.models import MODELS

    torch.manual_seed(0)
    model = MODELS["conv"](MODELS["conv"].Config(width=8, dilations=(1,)), mels=16, classes=4).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)
    tokens = {"kind": "words", "symbols": ["<blank>", "one", "three", "two"]}
    features = Features(sample_rate=8000, mels=16).model_dump()
    return save_model(
        tmp_path_factory.mktemp("student"), "conv", {"width": 8, "dilations": [1]}, model, features, tokens
    )


def test_one_bad_file_and_one_empty_folder_stop_nobody(student: Path, tmp_path: Path) -> None:
    import typer

    from xmodal_kd.modalities.speech.use.commands import COMMANDS

    app = typer.Typer()
    app.command()(COMMANDS["transcribe"])
    wave = 0.1 * np.random.default_rng(0).standard_normal(8000)
    kinds = {"a.flac": None, "b.aiff": None, "c.caf": None, "d.w64": None, "e.opus": "OPUS", "f.au": None}
    for name, subtype in kinds.items():
        container = "OGG" if subtype else None
        sf.write(tmp_path / name, wave, 8000, subtype=subtype, format=container)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    (tmp_path / "sub").mkdir()
    out = tmp_path / "out"
    given = [str(student), str(tmp_path / "sub"), str(tmp_path), "--format", "srt", "--into", str(out)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert sorted(path.name for path in (out / tmp_path.name).iterdir()) == [f"{name}.srt" for name in sorted(kinds)]
    assert "bad.wav" in result.stderr and "no audio in this folder" in result.stderr
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "sub" / "a.flac").write_bytes((tmp_path / "a.flac").read_bytes())
    result = CliRunner().invoke(app, [str(student), str(tmp_path), "--into", str(tmp_path / "apart")])
    assert {str(path.relative_to(tmp_path / "apart")) for path in (tmp_path / "apart").rglob("a.*")} == {
        "a.flac.txt", "sub/a.flac.txt",
    }  # fmt: skip
    assert "gone.wav: no such file" in " ".join(result.stderr.split())
    both = [str(tmp_path / "a.flac"), str(tmp_path / "sub" / "a.flac")]
    result = CliRunner().invoke(app, [str(student), *both, "--into", str(tmp_path / "one")])
    assert "2 recordings would be written to" in str(result.exception) and not (tmp_path / "one").exists()
    result = CliRunner().invoke(
        app, [str(student), *map(str, (tmp_path / "a.flac", tmp_path / "b.aiff")), "--format", "vtt"]
    )
    assert result.exit_code != 0 and "name a folder for their files by --into" in str(result.exception)
