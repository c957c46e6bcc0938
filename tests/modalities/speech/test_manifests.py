from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile as sf
from shared_data import shared

from xmodal_kd.modalities.speech.data.corpora import SpeechData, utterances
from xmodal_kd.modalities.speech.data.manifests import read_fsdd, read_librispeech, read_manifest
from xmodal_kd.runtime.errors import UserError


def line(**changes):
    record = {"audio_filepath": "audio/a.wav", "duration": 1.5, "text": "one two", "speaker": "ann"} | changes
    return json.dumps({key: value for key, value in record.items() if value is not ...}, ensure_ascii=False)


def write(folder, *lines):
    path = folder / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_manifest_is_read_sorted_and_relative_to_itself(tmp_path):
    path = write(tmp_path, line(audio_filepath="b.wav", speaker=..., duration=...), "", line(text="Größe\u2028"))
    first, second = read_manifest(path)
    assert (first.key, first.path, first.text) == ("audio/a.wav", tmp_path / "audio/a.wav", "Größe\u2028")
    assert (first.speaker, first.duration) == ("ann", 1.5)
    assert (second.key, second.speaker, second.duration) == ("b.wav", "unknown", None)


@pytest.mark.parametrize(
    "bad, message",
    [
        (line(offset="late"), r"line 3: 'offset' must be seconds, got 'late'"),
        (line(offset=-1), r"line 3: 'offset' must be seconds, got -1"),
        (line(audio_filepath=...), r"train\.jsonl line 3: lacks 'audio_filepath'"),
        (line(text=7), r"line 3: 'text' must be text, got 7"),
        (line(duration="long"), r"line 3: 'duration' must be seconds, got 'long'"),
        (line(duration=-1), r"line 3: 'duration' must be seconds"),
        (line(duration=float("nan")), r"line 3: 'duration' must be seconds"),
        ("{not json", r"line 3: not JSON"),
        ("[1, 2]", r"line 3: a JSON object is expected, one a line, not a list: jq -c '\.\[\]' "),
        (line(), r"line 3: 'audio/a.wav' is on line 1 already"),
    ],
)
def test_manifest_errors_name_the_line(tmp_path, bad, message):
    path = write(tmp_path, line(), "", bad)
    with pytest.raises(UserError, match=message) as error:
        read_manifest(path)
    assert "\n" not in str(error.value)


def test_a_missing_or_binary_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.jsonl: not readable"):
        read_manifest(tmp_path / "binary.jsonl")


def test_a_file_that_is_not_as_long_as_its_manifest_says(tmp_path):
    (tmp_path / "audio").mkdir()
    sf.write(tmp_path / "audio/a.wav", np.zeros(8000, np.float32), 16000)
    (utterance,) = read_manifest(write(tmp_path, line(duration=1.5)))
    with pytest.raises(UserError, match=r"a\.wav: it holds 0\.50 s, its manifest says 1\.50 s"):
        utterance.wave(16000)
    (utterance,) = read_manifest(write(tmp_path, line(duration=0.5)))
    assert len(utterance.wave(8000)) == 4000


def test_fsdd_takes_either_folder_and_sorts_takes_as_numbers(tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for name in ("7_theo_10", "7_theo_9", "0_ann_0", "notes"):
        sf.write(recordings / f"{name}.wav", np.zeros(80, np.float32), 8000)
    found = read_fsdd(tmp_path)
    assert [u.key for u in found] == ["0_ann_0", "7_theo_9", "7_theo_10"]
    assert [u.text for u in found] == ["zero", "seven", "seven"] and found[2].speaker == "theo"
    assert found == read_fsdd(recordings)
    assert found[0].seconds() == 0.01


def test_a_folder_without_recordings_is_named(tmp_path):
    with pytest.raises(UserError, match="no recordings named"):
        read_fsdd(tmp_path)
    with pytest.raises(UserError, match="no LibriSpeech transcripts"):
        read_librispeech(tmp_path)


def librispeech(folder, speaker, chapter, texts):
    place = folder / speaker / chapter
    place.mkdir(parents=True)
    lines = [f"{speaker}-{chapter}-{i:04d} {text}" for i, text in enumerate(texts)]
    (place / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    for name in lines:
        sf.write(place / f"{name.split()[0]}.flac", np.zeros(1600, np.float32), 16000)


def test_librispeech(tmp_path):
    librispeech(tmp_path, "84", "121", ["GO DO YOU HEAR", "BUT IN LESS THAN FIVE MINUTES"])
    librispeech(tmp_path, "174", "50", ["HE'D"])
    found = read_librispeech(tmp_path)
    assert [u.key for u in found] == ["174-50-0000", "84-121-0000", "84-121-0001"]
    assert (found[1].speaker, found[1].text, found[1].seconds()) == ("84", "GO DO YOU HEAR", 0.1)
    found[2].path.unlink()
    with pytest.raises(UserError, match=r"84-121\.trans\.txt line 2: 84-121-0001\.flac is not beside it"):
        read_librispeech(tmp_path)


def test_real_fsdd(fsdd):
    found = read_fsdd(fsdd)
    assert len(found) == 2500 and {u.speaker for u in found} == {"george", "jackson", "lucas", "nicolas", "yweweler"}


def test_real_kathleen(kathleen):
    assert [len(read_manifest(kathleen / f"{name}.jsonl")) for name in ("train", "dev", "test")] == [440, 40, 40]
    utterance = read_manifest(kathleen / "dev.jsonl")[0]
    assert len(utterance.wave(16000)) / 16000 == pytest.approx(utterance.duration, abs=0.01)


def test_the_digits_of_the_project(digits):
    assert len(read_fsdd(digits)) == 300


@pytest.mark.parametrize("again", ["./a.wav", "sub/../a.wav", "{folder}/a.wav"])
def test_a_recording_written_another_way_is_the_same_recording(tmp_path, again):
    def entry(name):
        return json.dumps({"audio_filepath": name.format(folder=tmp_path), "text": "yes"}) + "\n"

    (tmp_path / "twice.jsonl").write_text(entry("a.wav") + entry(again))
    with pytest.raises(UserError, match=r"twice\.jsonl line 2: .* is on line 1 already"):
        read_manifest(tmp_path / "twice.jsonl")
    (tmp_path / "train.jsonl").write_text(entry("a.wav"))
    (tmp_path / "dev.jsonl").write_text(entry(again))
    config = SpeechData.model_validate({"sources": "manifest", "path": tmp_path})
    with pytest.raises(UserError, match="a split must not see another"):
        utterances(config, "train")


def test_a_line_without_text_is_untranscribed_audio_of_the_training_split(tmp_path):
    path = write(tmp_path, line(text=...), line(audio_filepath="b.wav", text=None), line(audio_filepath="c.wav"))
    assert [utterance.text for utterance in read_manifest(path)] == [None, None, "one two"]
    (tmp_path / "dev.jsonl").write_text(line(audio_filepath="d.wav", text=...))
    data = SpeechData(sources="manifest", path=tmp_path)
    assert len(utterances(data, "train")) == 3
    with pytest.raises(UserError, match=r"dev utterance 'd.wav' lacks 'text': only training audio may"):
        utterances(data, "dev")


def test_segments_of_one_file_are_utterances(tmp_path):
    rng = np.random.default_rng(0)
    wave = (0.1 * rng.standard_normal(16000)).astype(np.float32)
    sf.write(tmp_path / "long.flac", wave, 8000)
    path = write(
        tmp_path,
        line(audio_filepath="long.flac", offset=1.25, duration=0.75),
        line(audio_filepath="long.flac", offset=0.5, duration=0.75),
        line(audio_filepath="long.flac", offset=0, duration=0.5),
    )
    found = read_manifest(path)
    assert [one.key for one in found] == ["long.flac@0", "long.flac@0.5", "long.flac@1.25"]
    joined = np.concatenate([one.wave(8000) for one in found])
    np.testing.assert_allclose(joined, wave, atol=1e-4)
    late = read_manifest(write(tmp_path, line(audio_filepath="long.flac", offset=1.5, duration=0.75)))
    with pytest.raises(UserError, match=r"long\.flac: it holds 2\.00 s: no segment from 1\.50 s to 2\.25 s"):
        late[0].wave(8000)
    open_end = read_manifest(write(tmp_path, line(audio_filepath="long.flac", offset=1.5, duration=...)))
    assert open_end[0].seconds() == 0.5 and len(open_end[0].wave(8000)) == 4000


@pytest.mark.parametrize("start, refused", [(1.0, False), (0.9, True), (0.0, True)])
def test_segments_of_two_splits_share_a_file_and_no_second_of_it(tmp_path, start, refused):
    write(tmp_path, line(audio_filepath="long.flac", offset=0.0, duration=1.0))
    (tmp_path / "test.jsonl").write_text(line(audio_filepath="long.flac", offset=start, duration=1.0))
    data = SpeechData(sources="manifest", path=tmp_path)
    if refused:
        with pytest.raises(UserError, match=r"is in train\.jsonl and in test\.jsonl"):
            utterances(data, "train")
    else:
        assert len(utterances(data, "train")) == 1


def test_paths_from_home_and_absolute_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = read_manifest(write(tmp_path, line(audio_filepath="~/a.wav"), line(audio_filepath="/else/b.wav")))
    assert sorted(str(one.path) for one in found) == ["/else/b.wav", str(tmp_path / "home/a.wav")]


def test_segments_that_people_bring():
    data = SpeechData(sources="manifest", path=shared("../cases/speech/offsets"), tokens="characters")
    counts = {split: len(utterances(data, split)) for split in ("train", "dev", "test")}
    assert counts == {"train": 12, "dev": 4, "test": 4}
    for one in utterances(data, "dev"):
        assert abs(len(one.wave(16000)) / 16000 - one.duration) < 1e-3
