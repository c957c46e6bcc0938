"""Lists of cuts as Lhotse writes them: what each supervision is, where its audio lies, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from xmodal_kd.modalities.speech.data.corpora import SPLITS, SpeechData, utterances
from xmodal_kd.modalities.speech.data.cuts import read_cuts
from xmodal_kd.modalities.speech.data.found import recordings
from xmodal_kd.runtime.errors import UserError

RATE = 8000


def supervision(key: str, start: float, duration: float, **more: Any) -> dict[str, Any]:
    said = {"id": key, "recording_id": "r", "start": start, "duration": duration, "channel": 0}
    return {**said, "text": f"said {key}", "speaker": "ann", **more}


def cut(folder: Path, name: str, *said: dict[str, Any], start: float = 0, seconds: float = 2.0, **more: Any) -> Any:
    """A cut of a recording of 2 s, as lhotse 1.33 lists one."""
    path = folder / f"{name}.wav"
    sf.write(path, 0.1 * np.random.default_rng(len(name)).standard_normal(2 * RATE), RATE)
    source = {"type": "file", "channels": [0], "source": str(path)}
    recording = {
        "id": name, "sources": [source], "sampling_rate": RATE, "num_samples": 2 * RATE, "duration": 2.0,
        "channel_ids": [0],
    }  # fmt: skip
    return {
        "id": f"{name}-cut", "start": start, "duration": seconds, "channel": 0, "supervisions": list(said),
        "recording": recording, "type": "MonoCut", **more,
    }  # fmt: skip


def write(file: Path, *cuts: Any) -> Path:
    lines = "".join(json.dumps(one) + "\n" for one in cuts).encode()
    file.write_bytes(gzip.compress(lines) if file.suffix == ".gz" else lines)
    return file


def test_each_supervision_is_an_utterance_of_its_recording(tmp_path: Path) -> None:
    several = cut(tmp_path, "a", supervision("a2", 1.0, 0.8, speaker="bob"), supervision("a1", 0.0, 0.75))
    part = cut(tmp_path, "b", supervision("b1", 0.1, 0.8), start=0.9, seconds=1.0)
    whole = cut(tmp_path, "c", supervision("c1", 0, 2.0))
    silent = cut(tmp_path, "d")
    found = {one.key: one for one in read_cuts(write(tmp_path / "x.jsonl", several, part, whole, silent))}
    assert list(found) == ["a1", "a2", "b-cut", "c-cut", "d-cut"]
    told = {key: (one.text, one.speaker, one.offset, one.duration) for key, one in found.items()}
    assert told["a1"] == ("said a1", "ann", 0.0, 0.75) and told["a2"] == ("said a2", "bob", 1.0, 0.8)
    assert told["b-cut"] == ("said b1", "ann", 1.0, 0.8) and told["c-cut"] == ("said c1", "ann", None, 2.0)
    assert told["d-cut"] == (None, "unknown", None, 2.0)
    wave, _ = sf.read(tmp_path / "a.wav", dtype="float32")
    np.testing.assert_array_equal(found["a2"].wave(RATE), wave[RATE : RATE + 6400])


@pytest.mark.parametrize(
    "name", ["{}.jsonl", "{}.jsonl.gz", "cuts_{}.jsonl.gz", "cuts_{}.jsonl", "libri_cuts_{}-clean.jsonl.gz"]
)
def test_lists_are_the_splits_and_new_knows_them(tmp_path: Path, name: str) -> None:
    for split in SPLITS:
        one = cut(tmp_path, split, supervision(split, 0, 2.0, speaker=split))
        one["recording"]["sources"][0]["source"] = f"{split}.wav"  # beside the list
        one["recording"]["transforms"] = [{"name": "Resample", "kwargs": {}}]
        write(tmp_path / name.format(split), one)
    data = SpeechData(sources=("lhotse",), path=tmp_path)
    assert [utterances(data, split)[0].path for split in SPLITS] == [tmp_path / f"{split}.wav" for split in SPLITS]
    by_speaker = data.model_copy(update={"train_speakers": ("dev",), "test_speakers": ("train", "test")})
    assert [one.text for one in utterances(by_speaker, "test")] == ["said train", "said test"]
    assert recordings(tmp_path).section["sources"].value == "lhotse"
    write(tmp_path / "dev.jsonl.gz", one)
    write(tmp_path / "dev.jsonl", one)
    with pytest.raises(UserError, match="leave one of them"):
        utterances(data, "train")


def test_a_recording_of_two_splits_is_refused(tmp_path: Path) -> None:
    for split in SPLITS:
        write(tmp_path / f"{split}.jsonl", cut(tmp_path, "same", supervision(split, 0, 2.0)))
    with pytest.raises(UserError, match=r"is in train\.jsonl and in dev\.jsonl: a split must not see another"):
        utterances(SpeechData(sources=("lhotse",), path=tmp_path), "train")
    with pytest.raises(UserError, match=r"train\.jsonl\.gz is missing"):
        utterances(SpeechData(sources=("lhotse",), path=tmp_path / ".."), "train")


CHANGED = {
    "a MixedCut": {"type": "MixedCut"},
    "has no recording: its features alone": {"recording": None},
    "lies partly outside of its cut: cut by trim_to_supervisions": {"duration": 0.5},
    "'duration' must be seconds, got 'x'": {"duration": "x"},
    "'text' must be text, got 3": {"supervisions": [supervision("s", 0, 2.0, text=3)]},
    "its recording is no file": {"channel": 1},
}


@pytest.mark.parametrize(("message", "change"), CHANGED.items())
def test_what_is_not_in_a_file_as_it_will_be_heard_is_refused(tmp_path: Path, message: str, change: Any) -> None:
    good, bad = cut(tmp_path, "a", supervision("s", 0, 2.0)), cut(tmp_path, "b", supervision("t", 0, 2.0), **change)
    with pytest.raises(UserError, match=rf"x\.jsonl line 2: .*{message}"):
        read_cuts(write(tmp_path / "x.jsonl", good, bad))


def test_recordings_that_are_changed_fetched_or_of_several_channels_are_refused(tmp_path: Path) -> None:
    one = cut(tmp_path, "a", supervision("s", 0, 2.0))
    one["recording"]["transforms"] = [{"name": "Speed", "kwargs": {"factor": 1.1}}]
    with pytest.raises(UserError, match=r"is changed when it is loaded: .*data\.augment"):
        read_cuts(write(tmp_path / "x.jsonl", one))
    one = cut(tmp_path, "a", supervision("s", 0, 2.0))
    one["recording"]["sources"][0]["type"] = "url"
    with pytest.raises(UserError, match=r"is no file \(but url\)"):
        read_cuts(write(tmp_path / "x.jsonl", one))
    one["recording"]["sources"] = [{"type": "file", "channels": [0, 1], "source": "a.wav"}]
    with pytest.raises(UserError, match="its file has 2 channels: write channel 0 to one"):
        read_cuts(write(tmp_path / "x.jsonl", one))
    with pytest.raises(UserError, match=r"line 2: 'a-cut' was on a line before"):
        read_cuts(write(tmp_path / "x.jsonl", *[cut(tmp_path, "a", supervision("s", 0, 2.0))] * 2))


@pytest.mark.parametrize("content", [b"{]\n", b"[1]\n", b"\xff\n"])
def test_what_is_no_list_of_cuts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.jsonl line 1: "):
        read_cuts(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(content)[:-4])
    with pytest.raises(UserError, match=r"x\.jsonl\.gz"):
        read_cuts(tmp_path / "x.jsonl.gz")
    assert read_cuts(write(tmp_path / "empty.jsonl.gz")) == []
