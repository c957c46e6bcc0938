"""Corpora in the layouts of Kaldi, Common Voice and Speech Commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from packed_files import tar, wav

from xmodal_kd.modalities.speech.data import indexed
from xmodal_kd.modalities.speech.data.corpora import SPLITS, SpeechData, build_tokens, utterances
from xmodal_kd.modalities.speech.data.found import recordings
from xmodal_kd.modalities.speech.data.layouts import read_kaldi
from xmodal_kd.modalities.speech.data.listed import listed_file
from xmodal_kd.modalities.speech.data.long import Long
from xmodal_kd.modalities.speech.data.source import SpeechSource
from xmodal_kd.modalities.speech.use.commands import _files
from xmodal_kd.run.listed_files import look
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams


def sound(path: Path, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.sin(np.arange(round(8000 * seconds)) / 9), 8000)
    return path


def kaldi(folder: Path, segments: bool = False) -> Path:
    for split, speaker in zip(SPLITS, ("ann", "bob", "eve"), strict=True):
        sound(folder / f"audio/{speaker}.wav", 2.0)
        (folder / split).mkdir(exist_ok=True)
        (folder / split / "wav.scp").write_text(f"{speaker}-1 audio/{speaker}.wav\n")
        keys = [f"{speaker}-1"]
        if segments:
            keys = [f"{speaker}-b", f"{speaker}-a"]
            (folder / split / "segments").write_text(f"{keys[0]} {speaker}-1 1.0 1.75\n{keys[1]} {speaker}-1 0 0.5\n\n")
        (folder / split / "text").write_text("".join(f"{key} one  two\n" for key in keys))
        (folder / split / "utt2spk").write_text("".join(f"{key} {speaker}\n" for key in keys))
    return folder


def common_voice(folder: Path) -> Path:
    for split in SPLITS:
        rows = ["client_id\tpath\tsentence\tup_votes"]
        for take in (2, 1):
            sound(folder / f"clips/{split}{take}.wav")
            rows.append(f'{split}-reader\t{split}{take}.wav\tSay "one"\u2028 {take}, please.\t2')
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def speech_commands(folder: Path) -> Path:
    for word in ("yes", "no"):
        for speaker in ("a1", "b2", "c3"):
            sound(folder / f"{word}/{speaker}_nohash_0.wav")
    sound(folder / "_background_noise_/x_nohash_0.wav")
    (folder / "validation_list.txt").write_text("yes/b2_nohash_0.wav\nno/b2_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("yes/c3_nohash_0.wav\nno/c3_nohash_0.wav\n")
    return folder


LAYOUTS = {"kaldi": kaldi, "common_voice": common_voice, "speech_commands": speech_commands}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognised_and_split(tmp_path: Path, name: str) -> None:
    found = recordings(LAYOUTS[name](tmp_path))
    assert found.section["sources"].value == name and found.rate == 8000
    parts = {split: {one.key for one in found.parts[split]} for split in SPLITS}
    assert all(parts.values()) and not parts["train"] & parts["dev"] and not parts["train"] & parts["test"]


def test_kaldi_takes_files_or_segments_of_them(tmp_path: Path) -> None:
    whole = utterances(SpeechData(sources="kaldi", path=kaldi(tmp_path)), "train")
    assert [(one.key, one.text, one.speaker, one.offset) for one in whole] == [("ann-1", "one  two", "ann", None)]
    assert len(whole[0].wave(8000)) == 16000
    (tmp_path / "train/text").unlink()
    assert utterances(SpeechData(sources="kaldi", path=tmp_path), "train")[0].text is None
    parts = utterances(SpeechData(sources="kaldi", path=kaldi(tmp_path, segments=True)), "dev")
    assert [(one.key, one.offset, one.duration) for one in parts] == [("bob-a", 0.0, 0.5), ("bob-b", 1.0, 0.75)]
    assert [len(one.wave(8000)) for one in parts] == [4000, 6000]


def test_speakers_part_a_corpus_that_brings_splits_too(tmp_path: Path) -> None:
    given = {"train_speakers": ("ann", "eve"), "dev_speakers": ("bob",), "test_speakers": ()}
    data = SpeechData(sources="kaldi", path=kaldi(tmp_path), **given)
    assert [one.speaker for one in utterances(data, "train")] == ["ann", "eve"]
    data = SpeechData(sources="speech_commands", path=speech_commands(tmp_path / "s"), train_speakers=("b2", "c3"))
    assert [one.key for one in utterances(data, "train")] == [
        "no/b2_nohash_0.wav", "no/c3_nohash_0.wav", "yes/b2_nohash_0.wav", "yes/c3_nohash_0.wav",
    ]  # fmt: skip


def test_common_voice_keeps_sentences_as_they_are(tmp_path: Path) -> None:
    found = utterances(SpeechData(sources="common_voice", path=common_voice(tmp_path), tokens="characters"), "test")
    assert [one.key for one in found] == ["test1.wav", "test2.wav"]
    assert (found[0].text, found[0].speaker) == ('Say "one"\u2028 1, please.', "test-reader")


def test_speech_commands_trains_on_what_no_list_names(tmp_path: Path) -> None:
    found = utterances(SpeechData(sources="speech_commands", path=speech_commands(tmp_path)), "train")
    assert [(one.key, one.text, one.speaker) for one in found] == [
        ("no/a1_nohash_0.wav", "no", "a1"), ("yes/a1_nohash_0.wav", "yes", "a1"),
    ]  # fmt: skip


WRONG = {
    "no wav.scp": ("kaldi", {"train/wav.scp": None}, "a Kaldi data folder is expected"),
    "a pipe": ("kaldi", {"train/wav.scp": "a sph2pipe a.sph |"}, r"wav.scp line 1: a command, which is not run"),
    "a segment of nothing": ("kaldi", {"train/segments": "x gone 0 1"}, r"segments line 1: UTTERANCE RECORDING"),
    "no time": ("kaldi", {"train/segments": "x ann-1 0 end"}, r"segments line 1: 'end' is no time"),
    "backwards": ("kaldi", {"train/segments": "x ann-1 1 0.5"}, "ends before it begins"),
    "no split": ("common_voice", {"train.tsv": None}, r"train\.tsv is missing"),
    "no column": ("common_voice", {"train.tsv": "path\tsentence\na\tb"}, "no column 'client_id'"),
    "a short row": ("common_voice", {"train.tsv": "path\tsentence\tclient_id\na"}, r"train.tsv line 2: a clip and its"),
    "no list": ("speech_commands", {"testing_list.txt": None}, "testing_list.txt: missing"),
    "gone": ("speech_commands", {"validation_list.txt": "yes/z_nohash_0.wav"}, "yes/z_nohash_0.wav is not there"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    name, files, words = WRONG[case]
    LAYOUTS[name](tmp_path)
    for file, content in files.items():
        (tmp_path / file).unlink() if content is None else (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        for split in ("train", "dev"):
            utterances(SpeechData(sources=name, path=tmp_path), split)
    assert "\n" not in str(error.value)


def test_a_split_may_not_see_another(tmp_path: Path) -> None:
    (kaldi(tmp_path) / "dev/wav.scp").write_text("bob-1 audio/ann.wav\n")
    with pytest.raises(UserError, match="'bob-1' is in train and in dev: a split must not see another"):
        utterances(SpeechData(sources="kaldi", path=tmp_path), "train")


def test_paths_are_taken_from_the_data_folder_or_from_the_corpus(tmp_path: Path) -> None:
    sound(tmp_path / "train/here.wav")
    (tmp_path / "train/wav.scp").write_text(f"a here.wav\nb {sound(tmp_path / 'far/b.wav')}\n")
    assert [one.path for one in read_kaldi(tmp_path / "train", tmp_path)] == [
        tmp_path / "train/here.wav", tmp_path / "far/b.wav",
    ]  # fmt: skip


# Long lists


def librispeech(folder: Path) -> Path:
    for split, speaker in zip(SPLITS, ("11", "22", "33"), strict=True):
        for chapter in ("5", "4"):
            lines = []
            for take in (1, 0):
                key = f"{speaker}-{chapter}-{take}"
                sound(folder / f"{split}-clean" / speaker / chapter / f"{key}.flac")
                lines.append(f"{key} ONE {take}\n")
            (folder / f"{split}-clean" / speaker / chapter / f"{speaker}-{chapter}.trans.txt").write_text(
                "".join(lines)
            )
    return folder


def manifests(folder: Path) -> Path:
    for split, speaker in zip(SPLITS, ("ann", "bob", "eve"), strict=True):
        lines = []
        for i, text in enumerate(("one two", None) if split == "train" else ("one", "two")):
            sound(folder / f"{split}{i}.wav")
            lines.append(json.dumps({"audio_filepath": f"{split}{i}.wav", "text": text, "speaker": speaker}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def shards(folder: Path) -> Path:
    for split in SPLITS:
        said = json.dumps({"text": "one", "speaker": split}).encode()
        tar(folder / f"{split}-0.tar", [(f"{split}{i}", {".wav": wav(0.5, i, 8000), ".json": said}) for i in range(2)])
    return folder


def several(folder: Path) -> Path:
    for name, make in (("kaldi", kaldi), ("manifest", manifests), ("webdataset", shards), ("librispeech", librispeech)):
        (folder / name).mkdir(parents=True)
        make(folder / name)
    return folder


LONG = {
    "kaldi": (kaldi, "kaldi", ("ann", "bob", "eve")),
    "segments": (lambda folder: kaldi(folder, segments=True), "kaldi", ("ann", "bob", "eve")),
    "common_voice": (common_voice, "common_voice", tuple(f"{split}-reader" for split in SPLITS)),
    "librispeech": (librispeech, "librispeech", ("11", "22", "33")),
    "manifests": (manifests, "manifest", ("ann", "bob", "eve")),
    "several": (several, ["webdataset", "librispeech", "manifest", "kaldi"], ("ann", "bob", "eve")),
}  # fmt: skip


@pytest.mark.parametrize("by_speaker", [False, True])
@pytest.mark.parametrize("name", LONG)
def test_long_lists_by_an_index_give_what_they_give_held(
    tmp_path: Path, name: str, by_speaker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    make, sources, who = LONG[name]
    keys = {f"{split}_speakers": [speaker] for split, speaker in zip(SPLITS, who, strict=True)} if by_speaker else {}
    data = SpeechData.model_validate({"sources": sources, "path": make(tmp_path / "data"), **keys})
    for split in SPLITS:
        told = []
        for large in (1 << 40, 0, 0):
            monkeypatch.setattr(indexed, "LARGE", large)
            found = utterances(data, split)
            assert isinstance(found, Long) == (large == 0)
            source = SpeechSource(data, split, build_tokens(data), Streams(3), 2)
            told.append([
                [(one.key, one.file, one.text, one.speaker, one.duration, one.offset) for one in found],
                source.describe(), [source.plan(epoch) for epoch in range(2)], source.sample(0, 1).features.tolist(),
                list(look(map(listed_file, found)).bad), source.seconds.tolist(),
            ])  # fmt: skip
        assert told[0] == told[1] == told[2]
    (tmp_path / "skip").write_text(f"{found[0].key}\n")
    if len(found) > 1:
        left = utterances(data.model_copy(update={"skip": tmp_path / "skip"}), "test")
        assert [one.key for one in left] == [one.key for one in found][1:]


def test_a_list_that_changed_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(indexed, "LARGE", 0)
    data = SpeechData(sources=("kaldi",), path=kaldi(tmp_path / "data"))
    assert utterances(data, "dev")[0].text == "one  two"
    (tmp_path / "data/dev/text").write_text("bob-1 three\n")
    assert utterances(data, "dev")[0].text == "three"
    (tmp_path / "data/dev/wav.scp").write_text("bob-1 audio/ann.wav\n")
    with pytest.raises(UserError, match=r"'ann-1' is in dev and in train: a split must not see another"):
        utterances(data, "dev")
    (tmp_path / "data/dev/wav.scp").write_text("bob-1 sox |\n")
    with pytest.raises(UserError, match=r"wav\.scp line 1: a command"):
        utterances(data, "dev")


def test_kaldi_lists_are_parted_by_tabs_too(tmp_path):
    folder = kaldi(tmp_path, segments=True)
    plain = [read_kaldi(folder / split, folder) for split in SPLITS]
    for file in folder.glob("*/*"):
        if file.suffix != ".wav":
            text = file.read_text()
            file.write_text("".join(line.replace(" ", "\t", 1) + "\n" for line in text.splitlines()))
    assert [read_kaldi(folder / split, folder) for split in SPLITS] == plain


def test_kaldi_lists_that_say_two_things_of_one_are_refused(tmp_path):
    folder = kaldi(tmp_path)
    for name, line in (("text", "ann-1 three\n"), ("wav.scp", "ann-1 audio/bob.wav\n")):
        file = folder / "train" / name
        before = file.read_text()
        file.write_text(before + line)
        with pytest.raises(UserError, match=rf"{name} line 2: 'ann-1' is on line 1 already"):
            read_kaldi(folder / "train", folder)
        file.write_text(before)


def test_a_kaldi_text_of_other_utterances_is_not_taken_for_none(tmp_path):
    folder = kaldi(tmp_path)
    (folder / "train" / "text").write_text("ANN_1 one two\n")
    with pytest.raises(UserError, match=r"train.text: it has 'ANN_1'.* as 'ann-1': name them alike"):
        read_kaldi(folder / "train", folder)
    (folder / "train" / "text").unlink()
    assert read_kaldi(folder / "train", folder)[0].text is None


def named_manifests(folder: Path, names: tuple[str, ...], text: str = "text") -> Path:
    for name in names:
        file = sound(folder / f"{name}.wav")
        (folder / name).write_text(json.dumps({"audio_filepath": file.name, text: "one", "speaker": name}) + "\n")
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "val.jsonl", "test.jsonl"),
        ("train_manifest.json", "dev_manifest.json", "test_manifest.json"),
        ("manifest-training.jsonl", "Validation.jsonl", "test.json"),
    ],
)
def test_manifests_named_after_splits_are_splits(tmp_path, names):
    found = recordings(named_manifests(tmp_path, names))
    assert [found.parts[split][0].speaker for split in SPLITS] == list(names)


def test_two_manifests_of_one_split_are_refused(tmp_path):
    folder = named_manifests(tmp_path, ("train_a.jsonl", "train_b.jsonl", "dev.jsonl", "test.jsonl"))
    with pytest.raises(UserError, match=r"train_a.jsonl, train_b.jsonl for the train split: join them"):
        recordings(folder)


def test_a_transcript_of_another_name_is_not_untranscribed(tmp_path):
    folder = named_manifests(tmp_path, ("train.jsonl", "dev.jsonl", "test.jsonl"), text="sentence")
    with pytest.raises(UserError, match=r"train.jsonl line 1: has 'sentence' and no 'text'"):
        recordings(folder)


@pytest.mark.parametrize(
    "name, told",
    [
        ("metadata.csv", r"1 recordings, as a.wav, and no transcripts that are known here; metadata.csv is not read"),
        ("data/train-00000-of-00001.parquet", r"load_dataset\('.*'\)\.save_to_disk"),
        (
            "manifests/libri_supervisions_train-clean-5.jsonl.gz",
            r"is of Lhotse: write cuts_train.jsonl.gz, .*from_manif",
        ),
        ("data/train_clean/wav.scp", r"Kaldi's lists lie in data.train_clean: give a folder of train, dev and test"),
    ],
)
def test_lists_that_are_not_read_are_named(tmp_path, name, told):
    sound(tmp_path / "a.wav")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("file_name,transcription\na.wav,one\n")
    with pytest.raises(UserError, match=told):
        recordings(tmp_path)


def test_recordings_that_are_not_read_are_told_of(tmp_path):
    for name in ("a.m4a", "b.webm"):
        (tmp_path / name).write_bytes(b"\0\0\0\x20ftypM4A ")
    with pytest.raises(UserError, match=r"2 recordings that are not read here, as a.m4a: convert it \(ffmpeg"):
        recordings(tmp_path)
    for name in ("._c.wav", "c.wav"):
        sound(tmp_path / name)
    found = [one for one, _ in _files([tmp_path])]
    assert [str(one) for one in found if isinstance(one, UserError)] == [
        f"{tmp_path}: 2 recordings are not read here, as a.m4a: convert it (ffmpeg -i FILE FILE.flac)"
    ]
    assert [one.name for one in found if isinstance(one, Path)] == ["c.wav"]


@pytest.mark.parametrize("name", [*LAYOUTS, "librispeech"])
def test_a_folder_above_says_where_the_splits_lie(tmp_path, name):
    {**LAYOUTS, "librispeech": librispeech}[name](tmp_path / "corpus/en")
    for above, told in ((tmp_path / "corpus", "in en: give that"), (tmp_path, "in corpus/en: give that")):
        with pytest.raises(UserError, match=f"the splits lie below it, {told}"):
            recordings(above)


def test_what_lacks_a_split_is_split_by_speaker(tmp_path):
    """Most take one part of LibriSpeech, linked together, or find no lists beside the commands."""
    parts, commands, lists = librispeech(tmp_path / "all"), speech_commands(tmp_path / "words"), kaldi(tmp_path / "k")
    (tmp_path / "some/train-part").mkdir(parents=True)
    for speaker in parts.glob("*/*/"):
        (tmp_path / "some/train-part" / speaker.name).symlink_to(speaker)
    (commands / "testing_list.txt").unlink()
    for name in ("wav.scp", "text", "utt2spk"):
        (lists / "train" / name).write_text("".join((lists / split / name).read_text() for split in SPLITS))
    for split in ("dev", "test"):
        shutil.rmtree(lists / split)
    for name, folder in (("librispeech", tmp_path / "some"), ("speech_commands", commands), ("kaldi", lists)):
        found = recordings(folder)
        assert found.section["sources"].value == name
        assert all(len(found.section[f"{split}_speakers"].value) == 1 and found.parts[split] for split in SPLITS)


def test_shards_of_lhotse_are_no_shards_of_tars(tmp_path):
    tar(tmp_path / "recording.000000.tar", [("a", {".flac": b""})])
    (tmp_path / "cuts.000000.jsonl.gz").write_bytes(b"")
    with pytest.raises(UserError, match="of Lhotse Shar, which is not read"):
        recordings(tmp_path)


def test_segments_behind_the_end_are_named_before_a_run(tmp_path):
    folder = kaldi(tmp_path, segments=True)
    ends = {"a": "0 0.5", "b": "1.0 2.05", "c": "1.0 9.0", "d": "3 4"}
    (folder / "dev/segments").write_text("".join(f"bob-{key} bob-1 {told}\n" for key, told in ends.items()))
    (folder / "dev/text").write_text("".join(f"bob-{key} one\n" for key in ends))
    parts = [listed_file(one) for one in utterances(SpeechData(sources="kaldi", path=folder), "dev")]
    assert [(bad.key, bad.why.partition(": ")[2]) for bad in look(parts).bad] == [
        ("bob-c", "it holds 2.00 s: no segment from 1.00 s to 9.00 s"),
        ("bob-d", "it holds 2.00 s: no segment from 3.00 s to 4.00 s"),
    ]
    (folder / "audio/bob.wav").write_bytes(b"RIFF")
    assert [bad.key for bad in look(parts).bad] == ["bob-a", "bob-b", "bob-c", "bob-d"]
