"""Long manifests by an index give what short ones give by a list: utterances, errors, plans, samples, whole runs."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import indexed_worker
import numpy as np
import pytest
import soundfile as sf
from killed_runs import command, run, said
from safetensors.torch import load_file

from xmodal_kd.modalities.speech.data import indexed
from xmodal_kd.modalities.speech.data.corpora import SpeechData, build_tokens, utterances
from xmodal_kd.modalities.speech.data.indexed import Indexed, open_manifest
from xmodal_kd.modalities.speech.data.manifests import DIGITS, read_manifest
from xmodal_kd.modalities.speech.data.source import SpeechSource
from xmodal_kd.runtime import mapped_columns
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

WORDS = ("yes", "no", "it's", "Größe", "seven")


@pytest.fixture
def by_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every manifest has an index, sorted in pieces of five lines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(indexed, "LARGE", 0)
    monkeypatch.setattr(indexed, "AT_ONCE", 5)
    return tmp_path


def records(split: str, count: int, seed: int = 0) -> list[dict[str, object]]:
    """In no order: texts or none, whole files and segments, long ones, and three speakers."""
    rng, found = np.random.default_rng([seed, len(split)]), []
    for i in rng.permutation(count).tolist():
        one: dict[str, object] = {"audio_filepath": f"{split}/{i % 7}/{i}.wav", "speaker": f"s{i % 3}"}
        one |= {"text": " ".join(WORDS[k] for k in rng.integers(0, 5, 1 + i % 4)), "duration": float(1 + i % 9)}
        if i % 5 == 0:
            one |= {"audio_filepath": f"{split}/long.wav", "offset": i * 10}
        if i % 6 == 1 and split == "train":
            one["text"] = None
        if i % 11 == 3:
            one["duration"] = 0.05
        found.append(one)
    return found


def write(folder: Path, split: str, count: int, ending: str = "\n") -> Path:
    file = folder / f"{split}.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in records(split, count)]
    lines.insert(2, "")
    file.write_bytes(("\ufeff" + ending.join(lines)).encode())
    return file


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_an_index_holds_what_the_list_holds(by_index: Path, ending: str) -> None:
    file = write(by_index, "train", 43, ending)
    found, listed = open_manifest(file), read_manifest(file)
    assert isinstance(found, Indexed) and len(found) == 43
    assert list(found) == listed and found[-1] == listed[-1] and found[3:9] == listed[3:9]
    assert list(found.texts()) == [one.text for one in listed]
    assert all(found.find(one.key) == [at] for at, one in enumerate(listed)) and found.find("none.wav") == []
    again = pickle.loads(pickle.dumps(found))
    assert list(again) == listed and isinstance(again.columns["seconds"], np.memmap)
    assert not list(by_index.glob("*.npy")), "nothing beside the user's data"


@pytest.mark.parametrize(
    "bad",
    [
        '{"audio_filepath": "a.wav", "offset": -1}', '{"text": "no"}', '{"audio_filepath": "a.wav", "text": 7}', "{no",
        "[1]", '{"audio_filepath": "./b.wav"}', '{"audio_filepath": "a.wav", "duration": 0}',
    ],
)  # fmt: skip
def test_both_say_the_same_of_a_bad_line(by_index: Path, bad: str) -> None:
    file = by_index / "train.jsonl"
    file.write_text('{"audio_filepath": "b.wav"}\n\n' + bad + "\n")
    with pytest.raises(UserError) as one:
        read_manifest(file)
    with pytest.raises(UserError) as other:
        open_manifest(file)
    assert str(one.value) == str(other.value) and "line 3" in str(one.value)


def test_what_is_no_text_or_has_no_end_is_named(by_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = by_index / "train.jsonl"
    file.write_bytes(b'{"audio_filepath": "b.wav"}\n\xff\n')
    with pytest.raises(UserError, match=r"train\.jsonl: not readable as UTF-8 text \(line 2"):
        open_manifest(file)
    monkeypatch.setattr(indexed, "LONGEST_LINE", 20)
    with pytest.raises(UserError, match=r"train\.jsonl line 1: it has more than 20 bytes"):
        open_manifest(file)


def sources(folder: Path, monkeypatch: pytest.MonkeyPatch, **keys: object) -> list[SpeechSource]:
    """By the index, and by the list."""
    found = []
    for large in (0, 1 << 40):
        monkeypatch.setattr(indexed, "LARGE", large)
        data = SpeechData.model_validate({"sources": "manifest", "path": folder, "max_seconds": 8, **keys})
        found.append(SpeechSource(data, "train", build_tokens(data), Streams(3), 4))
    assert isinstance(utterances(found[0].data, "train"), list)
    return found


@pytest.mark.parametrize("keys", [{}, {"tokens": "characters", "normaliser": "none"}, {"one": True}, {"skip": True}])
def test_a_source_is_the_same(by_index: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, object]) -> None:
    files = {split: write(by_index, split, count) for split, count in (("train", 60), ("dev", 9), ("test", 9))}
    if keys.pop("one", None):
        keys = {"path": files["train"], "train_speakers": ["s0"], "dev_speakers": ["s1"], "test_speakers": ["s2"]}
    if keys.pop("skip", None):
        (by_index / "skip").write_text("train/1/1.wav\ntrain/long.wav@50\nnobody.wav\n")
        keys = {"skip": by_index / "skip"}
    one, other = sources(by_index, monkeypatch, **keys)
    assert one.tokens == other.tokens and len(one) == len(other)
    assert list(one.left_out) == list(other.left_out) != []
    assert one.describe() == other.describe() and one.skipped == other.skipped
    assert list(one.labelled) == list(other.labelled) and len(one.labelled) <= len(one)
    fields = ("key", "text", "speaker", "seconds", "margin")
    told = [[[getattr(i, f) for f in fields] for i in source.items] for source in (one, other)]
    assert told[0] == told[1]
    assert all(one.plan(epoch) == other.plan(epoch) for epoch in range(3)) and one.plan(0) != one.plan(1)


def test_headers_are_asked_where_the_list_says_no_duration(by_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "dev", "test"):
        lines = []
        for i in range(6):
            sf.write(by_index / f"{split}{i}.wav", np.zeros(16000 + 400 * i), 16000)
            told = {"duration": 1 + i / 40} if i % 2 else {}
            lines.append(json.dumps({"audio_filepath": f"{split}{i}.wav", "text": "yes", **told}))
        (by_index / f"{split}.jsonl").write_text("\n".join(lines))
    one, other = sources(by_index, monkeypatch)
    assert [(i.seconds, i.margin) for i in one.items] == [(i.seconds, i.margin) for i in other.items]
    sample, same = one.sample(3, 0), other.sample(3, 0)
    assert (sample.key, sample.target) == (same.key, same.target) and sample.features.equal(same.features)


def test_a_recording_in_two_splits_is_refused(by_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "dev", "test"):
        write(by_index, split, 30)
    with (by_index / "dev.jsonl").open("a") as file:
        file.write('\n{"audio_filepath": "train/long.wav", "offset": 55, "duration": 3, "text": "yes"}')
    messages = []
    for large in (0, 4000, 1 << 40):
        monkeypatch.setattr(indexed, "LARGE", large)
        with pytest.raises(UserError, match=r"'train/long\.wav@55' is in train\.jsonl and in dev\.jsonl") as error:
            utterances(SpeechData(sources=("manifest",), path=by_index), "train")
        messages.append(str(error.value))
    assert len(set(messages)) == 1


# The cache


def test_an_index_is_made_once_and_again_when_the_file_changed(by_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    build = indexed._build
    monkeypatch.setattr(indexed, "_build", lambda file, keep: (made.append(file), build(file, keep)))
    file = write(by_index, "train", 20)
    before = list(open_manifest(file))
    assert list(open_manifest(file)) == before and len(made) == 1
    os.utime(file, ns=(1, 1))
    assert list(open_manifest(file)) == before and len(made) == 1, "the same content"
    file.write_bytes(file.read_bytes().replace(b"yes", b"yet", 1))
    os.utime(file, ns=(1, 1))
    assert len(open_manifest(file)) == 20 and len(made) == 2, "of the same size and time"
    folders = [path for path in (by_index / "user" / "xmodal-kd" / "columns").iterdir() if path.is_dir()]
    assert len(folders) == 1, "that of what the file was before is gone"
    next(folders[0].glob("seconds.npy")).write_bytes(b"cut")
    assert len(open_manifest(file)) == 20 and len(made) == 3, "a damaged one is made anew"


def test_without_a_cache_it_is_held_in_memory(by_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (by_index / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(by_index / "file"))
    file = write(by_index, "train", 20)
    found = open_manifest(file)
    assert isinstance(found, Indexed) and found.columns.folder is None and list(found) == read_manifest(file)
    assert found.remembered("sum", lambda: np.array([3]))[0] == 3 == found.remembered("sum", lambda: np.array([4]))[0]


def test_what_changes_under_a_run_is_named(by_index: Path) -> None:
    file = write(by_index, "train", 20)
    found = open_manifest(file)
    file.write_text("")
    with pytest.raises(UserError, match=r"train\.jsonl: it was changed while it was in use: start again"):
        found[3]


def test_what_was_worked_out_is_kept_for_what_it_was_worked_out_of(by_index: Path) -> None:
    found = open_manifest(write(by_index, "train", 20))
    assert isinstance(found, Indexed)
    count = lambda one: one.remembered("lines", lambda: np.array([len(one)]))  # noqa: E731
    assert (count(found)[0], count(found.chosen(np.arange(4)))[0]) == (20, 4)
    again = mapped_columns.Columns.of(found.columns.folder or Path())
    assert Indexed(found.file, again).remembered("lines", lambda: np.array([0]))[0] == 20


# Resume


@pytest.mark.full
def test_who_is_killed_within_an_epoch_goes_on_with_the_next_sample(by_index: Path) -> None:
    """Seven batches an epoch; the index that the killed one made is found by the next."""
    for split in ("train", "dev", "test"):
        lines = []
        for i in range(27 if split == "train" else 4):
            sf.write(by_index / f"{split}{i}.wav", np.random.default_rng(i).normal(0, 0.1, 4000 + 200 * i), 16000)
            lines.append(
                json.dumps({"audio_filepath": f"{split}{i}.wav", "text": WORDS[i % 5], "duration": 0.25 + i / 80})
            )
        (by_index / f"{split}.jsonl").write_text("\n".join(lines))
    whole = indexed_worker.heard(by_index, 1 << 40)
    before = indexed_worker.heard(by_index, 0, kill_behind=3)
    assert [step for step, *_ in before] == [0, 1, 2, 3] and len(whole) == 12
    assert list((by_index / "user" / "xmodal-kd" / "columns").glob("*/seconds.npy"))
    assert before + indexed_worker.heard(by_index, 0, start=4) == whole


RECIPE = """
modality: speech
seed: 5
data:
  {{sources: manifest, path: {data}, features: {{sample_rate: 8000, mels: 40}}}}
teacher: {{path: {root}/assets/teachers/speech}}
student: {{model: conv, params: {{width: 4}}}}
objective: [{{loss: ctc}}, {{loss: kd}}]
train: {{steps: 10, batch_size: 8, workers: 2, eval_every: 10, checkpoint_every: 3}}
trackers: []
"""


@pytest.mark.full
def test_a_run_that_is_killed_within_an_epoch_ends_as_one_without_an_index(tmp_path: Path, digits: Path) -> None:
    """Lines are long, so that the manifest has an index by itself."""
    at, cache = indexed_worker.at, tmp_path / "user"
    for kind, note in (("short", ""), ("long", "x" * 600_000)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "recipe.yaml").write_text(
            RECIPE.format(data=tmp_path / kind, root=Path(__file__).parents[3])
        )
        for split, voice, most in (("train", "anna", 80), ("dev", "duncan", 10), ("test", "edith", 10)):
            files = sorted((digits / "recordings").glob(f"*_{voice}_*.wav"))
            texts = {str(file): DIGITS[int(file.name[0])] for file in [*files[::-3], *files][: 2 * most]}
            lines = [{"audio_filepath": file, "text": text, "note": note} for file, text in texts.items()]
            (tmp_path / kind / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert said(command(tmp_path / "short/recipe.yaml", whole), at, cache)[0] == 0
    assert not (cache / "xmodal-kd" / "columns").exists()
    last = out / "checkpoints" / "student" / "step-00000006"
    assert run(command(tmp_path / "long/recipe.yaml", out), at, cache, last) == -9 and last.exists()
    assert said(command(tmp_path / "long/recipe.yaml", out, "--resume"), at, cache)[0] == 0
    for role in ("control", "student"):
        one, other = (load_file(path / role / "model.safetensors") for path in (whole, out))
        assert all(one[name].equal(other[name]) for name in one)
    assert list((cache / "xmodal-kd" / "columns").glob("*/seconds.npy"))
