"""Recordings and manifests that are broken, called in process: one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from refusals import Capture, fails

from xmodal_kd.cli.main import call
from xmodal_kd.runtime.checkpoint import read_json

# ---------------------------------------------------------------- bad recordings


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A manifest folder of a few noises that are called words."""
    folder, draw = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 6), ("dev", 2), ("test", 2)):
        lines = []
        for i in range(count):
            name = f"{split}{i}.wav"
            sf.write(folder / name, 0.1 * draw.standard_normal(4000), 8000, subtype="FLOAT")
            lines.append({"audio_filepath": name, "text": ("yes", "no")[i % 2], "speaker": split, "duration": 0.5})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "speech.yaml").write_text(SPEECH.format(folder=folder))
    return folder


SPEECH = """\
modality: speech
data: {{sources: manifest, path: {folder}, features: {{sample_rate: 8000, mels: 8}}}}
student: {{model: conv, params: {{width: 8, dilations: [1]}}}}
objective: [{{loss: ctc}}]
control: false
trackers: []
train: {{steps: 2, batch_size: 3, eval_every: 2}}
"""


def speak(recordings: Path, *more: str) -> list[str]:
    folder = recordings.parent
    return ["run", str(folder / "speech.yaml"), "--out", str(folder / "run"), "--quiet", "--no-export", *more]


def edit(recordings: Path, index: int, **change: Any) -> None:
    path = recordings / "train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[index] = {k: v for k, v in (lines[index] | change).items() if v is not None}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_missing_audio(recordings: Path, capfd: Capture) -> None:
    (recordings / "train1.wav").unlink()
    assert "train1.wav" in fails(capfd, 2, *speak(recordings))


def test_truncated_audio(recordings: Path, capfd: Capture) -> None:
    whole = (recordings / "train1.wav").read_bytes()
    (recordings / "train1.wav").write_bytes(whole[: len(whole) // 3])
    assert "train1.wav" in fails(capfd, 2, *speak(recordings))


def test_empty_audio(recordings: Path, capfd: Capture) -> None:
    (recordings / "train1.wav").write_bytes(b"")
    assert "train1.wav" in fails(capfd, 2, *speak(recordings))


def test_nan_in_audio(recordings: Path, capfd: Capture) -> None:
    wave = np.zeros(4000)
    wave[100] = np.nan
    sf.write(recordings / "train1.wav", wave, 8000, subtype="FLOAT")
    assert "train1.wav" in fails(capfd, 2, *speak(recordings))


def test_manifest_line_that_is_not_json(recordings: Path, capfd: Capture) -> None:
    with (recordings / "train.jsonl").open("a") as file:
        file.write("{audio: \n")
    assert "train.jsonl line 7: not JSON" in fails(capfd, 2, *speak(recordings))
    assert not (recordings.parent / "run").exists()


def test_manifest_line_that_lacks_a_key(recordings: Path, capfd: Capture) -> None:
    edit(recordings, 2, audio_filepath=None)
    assert "train.jsonl line 3: lacks 'audio_filepath'" in fails(capfd, 2, *speak(recordings))


def test_transcript_that_cannot_be_aligned_is_counted_and_listed(recordings: Path, capfd: Capture) -> None:
    edit(recordings, 2, text="yes no " * 20)
    assert call(speak(recordings)) == 0
    report = read_json(recordings.parent / "run" / "report.json")
    assert report["data"]["train"]["left_out"] == 1
    [entry] = report["data"]["train"]["left_out_examples"]
    assert entry["key"] == "train2.wav" and "needs 40 output frames" in entry["reason"]
    text = (recordings.parent / "run" / "report.md").read_text()
    assert "train: 1 left out, for example train2.wav (its text needs 40 output frames" in text


def test_teacher_of_another_vocabulary_whatever_it_hears(recordings: Path, capfd: Capture) -> None:
    assert call(speak(recordings)) == 0
    saved = f"teacher={{path: {recordings.parent / 'run' / 'student'}}}"
    other = [*speak(recordings, "--set", saved), "--out", str(recordings.parent / "other")]
    edit(recordings, 0, text="maybe")
    assert "its teacher writes another vocabulary" in fails(capfd, 2, *other, "--set", "data.features.mels=10")
    assert not (recordings.parent / "other").exists()


def test_a_broken_sample_keeps_what_was_done(recordings: Path, capfd: Capture) -> None:
    """The line names it, and once it is mended the run goes on."""
    good = (recordings / "train1.wav").read_bytes()
    (recordings / "train1.wav").write_bytes(b"")
    assert "train1.wav" in fails(capfd, 2, *speak(recordings))
    (recordings / "train1.wav").write_bytes(good)
    assert call(speak(recordings, "--resume")) == 0
