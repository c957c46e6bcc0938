"""Recordings in shards of tars and in saved tables: what a manifest of the same ones gives, errors by name, resume."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import indexed_worker
import pytest
from killed_runs import command, run, said
from packed_files import tables, tar, wav
from safetensors.torch import load_file

from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data import stored
from xmodal_kd.modalities.speech.data.corpora import SpeechData, build_tokens, utterances
from xmodal_kd.modalities.speech.data.manifests import DIGITS
from xmodal_kd.modalities.speech.data.source import SpeechSource
from xmodal_kd.modalities.speech.data.stored import Stored
from xmodal_kd.run.listed_files import look
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

WORDS = ("yes", "no", "it's", "Größe", "seven")
COUNTS = {"train": 27, "dev": 5, "test": 4}
KINDS = {"text": "string", "speaker": "string", "duration": "float64"}
FEATURES = {
    "audio": {"_type": "Audio"}, **{name: {"dtype": kind, "_type": "Value"} for name, kind in KINDS.items()},
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "xmodal-kd" / "columns"


def records(split: str) -> list[dict[str, Any]]:
    """Of training, every sixth is untranscribed."""
    return [
        {
            "key": f"{split[:2]}{i:03d}", "audio": wav(0.3 + i / 100, i), "speaker": f"s{i % 3}",
            "text": None if split == "train" and i % 6 == 1 else WORDS[i % 5], "duration": 0.3 + i / 100,
        }
        for i in range(COUNTS[split])
    ]  # fmt: skip


def manifests(folder: Path) -> Path:
    folder.mkdir()
    for split in COUNTS:
        lines = []
        for one in records(split):
            (folder / f"{one['key']}.wav").write_bytes(one.pop("audio"))
            lines.append(json.dumps({"audio_filepath": f"{one.pop('key')}.wav", **one}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def sharded(folder: Path, each: int = 10) -> Path:
    """Texts lie in .txt or in .json, by turns."""
    for split in COUNTS:
        samples = []
        for i, one in enumerate(records(split)):
            said = {"speaker": one["speaker"], "duration": one["duration"]}
            beside = i % 2 and one["text"] is not None
            members = {
                ".wav": one["audio"],
                ".json": json.dumps(said if beside else {**said, "text": one["text"]}).encode(),
            }
            samples.append((one["key"], members | ({".txt": f"{one['text']}\n".encode()} if beside else {})))
        for start in range(0, len(samples), each):
            tar(folder / f"{split}-{start // each:03d}.tar", samples[start : start + each])
    return folder


def source(folder: Path, kind: str, split: str = "train", **keys: Any) -> SpeechSource:
    data = SpeechData.model_validate({"sources": kind, "path": folder, "augment": {"speed": (0.9, 1.1)}, **keys})
    return SpeechSource(data, split, build_tokens(data), Streams(3), 4)


def saved(folder: Path) -> Path:
    pytest.importorskip("pyarrow")
    names = {"train": "train", "validation": "dev", "test": "test"}
    return tables(
        folder,
        {
            name: [{k: v for k, v in one.items() if k != "key"} for one in records(split)]
            for name, split in names.items()
        },
        FEATURES,
    )


@pytest.mark.parametrize("kind", ["webdataset", "datasets"])
def test_what_is_packed_gives_what_a_manifest_gives(tmp_path: Path, kind: str) -> None:
    listed = manifests(tmp_path / "listed")
    packed = (sharded if kind == "webdataset" else saved)(tmp_path / "packed")
    for split, count in COUNTS.items():
        one, other = source(packed, kind, split), source(listed, "manifest", split)
        assert one.tokens == other.tokens and len(one) == count and list(one.labelled) == list(other.labelled)
        assert one.describe() == other.describe()
        assert all(one.plan(epoch) == other.plan(epoch) for epoch in range(2))
        told = [[(i.text, i.speaker, i.seconds, i.margin) for i in s.items] for s in (one, other)]
        assert told[0] == told[1]
        for i in range(0, count, 3):
            mine, theirs = one.sample(i, 1), other.sample(i, 1)
            assert mine.features.equal(theirs.features) and mine.target == theirs.target
    again = pickle.loads(pickle.dumps(one.items[0]))
    assert (again.wave() == one.items[0].wave()).all()
    files = look(SpeechAdapter.files(one.data))
    assert files.files == sum(COUNTS.values()) and not files.bad


@pytest.mark.parametrize(
    "pattern",
    ["{}/train-{{000..002}}.tar::{}/dev-*.tar::{}/test-000.tar", "{}/{{train,dev,test}}-*.tar", "{}"],
)  # fmt: skip
def test_shards_are_named_by_patterns(tmp_path: Path, pattern: str) -> None:
    folder = sharded(tmp_path / "s")
    found = source(Path(pattern.replace("{}", str(folder)).replace("{{", "{").replace("}}", "}")), "webdataset")
    assert len(found) == 27 and found.items[0].key == "tr000"


def test_headers_are_asked_once_and_speakers_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [
        (f"a/{i}", {".wav": wav(0.3 + i / 10, i), ".json": json.dumps({"speaker": i % 3}).encode(), ".txt": b"yes"})
        for i in range(9)
    ]
    folder = tar(tmp_path / "all.tar", samples).parent
    keys: dict[str, Any] = {"train_speakers": ["0"], "dev_speakers": ["1"], "test_speakers": ["2"]}
    first = source(folder / "all.tar", "webdataset", **keys)
    assert [i.key for i in first.items] == ["a/0", "a/3", "a/6"] and first.seconds.tolist() == pytest.approx(
        [0.3, 0.6, 0.9]
    )
    monkeypatch.setattr(
        "xmodal_kd.modalities.speech.data.manifests.audio.duration", lambda _: pytest.fail("asked again")
    )
    assert source(folder / "all.tar", "webdataset", **keys).seconds.tolist() == first.seconds.tolist()


def test_samples_are_left_out_by_key(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("tr003\nnobody\n")
    found = source(sharded(tmp_path / "s"), "webdataset", skip=tmp_path / "bad")
    assert len(found) == 26 and found.skipped.found == ["tr003"]


def test_an_index_is_made_anew_where_a_shard_changed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    store = stored.store
    monkeypatch.setattr(stored, "store", lambda *args: (made.append(1), store(*args)))
    folder = sharded(tmp_path / "s")
    data = SpeechData(sources=("webdataset",), path=folder)
    first = utterances(data, "train")
    assert isinstance(first, Stored) and len(utterances(data, "train")) == 27 and len(made) == 1
    tar(folder / "train-002.tar", [("new", {".wav": wav(0.2), ".txt": b"no"})])
    assert [one.key for one in utterances(data, "train")][20:] == ["new"] and len(made) == 2
    assert len(list(cache.glob("*/seconds.npy"))) == 1


Samples = list[tuple[str, dict[str, bytes]]]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a", {".wav": b""}), ("a", {".txt": b"x"}), ("b", {".wav": b""}), ("a", {".flac": b""})],
         r"train-0\.tar: a\.flac: sample 'a' is in this shard already: the members of a sample lie side by side"),
        ([("a", {".wav": b"", ".WAV": b""})], r"sample 'a' has two members that end in \.wav"),
        ([("a", {".wav": b"", ".flac": b""})], r"a: it has several recordings \(\.wav, \.flac\)"),
        ([("a", {".txt": b"x"})], r"train-0\.tar: a: no recording in this sample \(it holds \.txt\)"),
        ([("a", {".wav": b"", ".json": b"[1]"})], r"a\.json: a JSON object is expected"),
        ([("a", {".wav": b"", ".json": b"{"})], r"train-0\.tar: a\.json: is not JSON"),
        ([("a", {".wav": b"", ".json": b'{"text": 7}'})], r"a: its text must be text, got 7"),
        ([("a", {".wav": b"", ".json": b'{"duration": "x"}'})], r"a: 'duration' must be seconds, got 'x'"),
        ([("a", {".wav": b"", ".txt": b"\xff"})], r"a\.txt: a text in UTF-8 is expected"),
    ],
)  # fmt: skip
def test_a_bad_sample_is_named_with_its_shard(tmp_path: Path, samples: Samples, message: str) -> None:
    tar(tmp_path / "train-0.tar", samples)
    with pytest.raises(UserError, match=message):
        utterances(SpeechData(sources=("webdataset",), path=tmp_path), "train")


def test_one_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    for i in range(2):
        tar(tmp_path / f"train-{i}.tar", [("a", {".wav": b""})])
    with pytest.raises(
        UserError, match=r"sample 'a' is in .*train-0\.tar and .*train-1\.tar: give every sample a name"
    ):
        utterances(SpeechData(sources=("webdataset",), path=tmp_path), "train")


def test_dev_must_be_transcribed(tmp_path: Path) -> None:
    tar(tmp_path / "dev-0.tar", [("a", {".wav": wav(1.0)})])
    with pytest.raises(UserError, match="dev utterance 'a' lacks 'text'"):
        utterances(SpeechData(sources=("webdataset",), path=tmp_path), "dev")


def test_a_shard_that_is_none_is_named(tmp_path: Path) -> None:
    shard = tar(tmp_path / "train-0.tar", [(f"a{i}", {".wav": wav(1.0, i)}) for i in range(3)])
    whole = shard.read_bytes()
    data = SpeechData(sources=("webdataset",), path=tmp_path)
    for content, message in (
        (whole[:40000], r"train-0\.tar: a1\.wav: the tar is cut"),
        (whole[:32768], r"train-0\.tar: a broken tar: behind byte 32,768|the tar is cut"),
        (b"x" * 3000, r"train-0\.tar: not a tar, or a broken one"),
        (whole[: len(whole) // 2 // 512 * 512] + b"y" * 5000, r"train-0\.tar: (a broken tar|a1\.wav: the tar is cut)"),
        (
            gzip.compress(whole),
            r"train-0\.tar: a compressed tar, .*: unpack it: mv .*0\.tar .*0\.tar\.gz && gunzip .*gz$",
        ),
    ):
        shard.write_bytes(content)
        with pytest.raises(UserError, match=message):
            utterances(data, "train")
    shard.rename(tmp_path / "train-0.tar.gz")
    with pytest.raises(
        UserError, match=r"train-0\.tar\.gz: a compressed tar, .*: unpack it: gunzip .*train-0\.tar\.gz$"
    ):
        utterances(data, "train")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s/train-{000..007}.tar", r"data\.path: .*train-003\.tar does not exist"),
        ("s/none*.tar", r"data\.path: .*none\*\.tar does not exist"),
        ("https://host/{0..9}.tar", r"data\.path: https:.*: shards are read from files on this machine"),
        ("s/train-{9..1}.tar", r"\{9\.\.1\} counts upwards"),
        ("s/dev-*.tar", r"has no train split, only dev"),
        ("s/odd.tar", r"no shard says by its name"),
    ],
)  # fmt: skip
def test_shards_that_are_not_there_are_named(
    tmp_path: Path, path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded(tmp_path / "s")
    tar(tmp_path / "s" / "odd.tar", [("z", {".wav": b""})])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        utterances(SpeechData(sources=("webdataset",), path=Path(path)), "train")


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "t")
    data = SpeechData(sources=("datasets",), path=folder)
    with pytest.raises(UserError, match=r"not a DatasetDict that datasets has saved"):
        utterances(SpeechData(sources=("datasets",), path=folder / "train"), "train")
    arrow = folder / "train" / "data-00001-of-00002.arrow"
    content = arrow.read_bytes()
    arrow.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow: not an Arrow stream, or a broken one"):
        utterances(data, "train")
    info = folder / "train" / "dataset_info.json"
    info.write_text(json.dumps({"features": {"sound": {"_type": "Value"}}}))
    with pytest.raises(UserError, match=r"train: no Audio or Image among its columns \(sound\)"):
        utterances(data, "train")
    arrow.unlink()
    with pytest.raises(UserError, match=r"state\.json: 'data-00001-of-00002\.arrow' is not there"):
        utterances(data, "train")


def test_a_shard_that_is_cut_under_a_run_is_named(tmp_path: Path) -> None:
    found = source(sharded(tmp_path / "s"), "webdataset")
    os.truncate(tmp_path / "s" / "train-000.tar", 2000)
    with pytest.raises(UserError, match=r"train-000\.tar: tr000\.wav: .* ends before it does"):
        found.sample(0, 0)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["webdataset", "datasets"])
def test_who_is_killed_within_an_epoch_goes_on_with_the_next_sample(tmp_path: Path, kind: str) -> None:
    """Seven batches an epoch, two workers, from step 4 on."""
    folder = (sharded if kind == "webdataset" else saved)(tmp_path / "packed")
    whole = indexed_worker.heard(folder, 0, kind=kind)
    before = indexed_worker.heard(folder, 0, kill_behind=3, kind=kind)
    assert [step for step, *_ in before] == [0, 1, 2, 3] and len(whole) == 12
    assert before + indexed_worker.heard(folder, 0, start=4, kind=kind) == whole


RECIPE = """
modality: speech
seed: 5
data: {{sources: {kind}, path: {data}, features: {{sample_rate: 8000, mels: 40}}}}
teacher: {{path: {root}/assets/teachers/speech}}
student: {{model: conv, params: {{width: 4}}}}
objective: [{{loss: ctc}}, {{loss: kd}}]
train: {{steps: 10, batch_size: 8, workers: 2, eval_every: 10, checkpoint_every: 3}}
trackers: []
"""


@pytest.mark.full
@pytest.mark.parametrize("kind", ["webdataset", "datasets"])
def test_a_run_that_is_killed_within_an_epoch_ends_as_one_that_was_not(tmp_path: Path, digits: Path, kind: str) -> None:
    """SIGKILL behind the checkpoint of step 6, ten batches an epoch, two workers."""
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, voice, most in (("train", "anna", 80), ("dev", "duncan", 10), ("test", "edith", 10)):
        files = sorted((digits / "recordings").glob(f"*_{voice}_*.wav"))[:: 1 if split == "train" else 3][:most]
        splits[split] = [{"key": f.stem, "audio": f.read_bytes(), "text": DIGITS[int(f.name[0])]} for f in files]
    if kind == "webdataset":
        for split, rows in splits.items():
            tar(
                tmp_path / "data" / f"{split}-0.tar",
                [(one["key"], {".wav": one["audio"], ".txt": one["text"].encode()}) for one in rows],
            )
    else:
        pytest.importorskip("pyarrow")
        features = {"audio": {"_type": "Audio"}, **{n: {"dtype": "string", "_type": "Value"} for n in ("key", "text")}}
        tables(tmp_path / "data", splits, features)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(kind=kind, data=tmp_path / "data", root=Path(__file__).parents[3]))
    at, user, whole, out = indexed_worker.at, tmp_path / "user", tmp_path / "whole", tmp_path / "out"
    assert said(command(recipe, whole), at, user)[0] == 0
    last = out / "checkpoints" / "student" / "step-00000006"
    assert run(command(recipe, out), at, user, last) == -9 and last.exists()
    assert said(command(recipe, out, "--resume"), at, user)[0] == 0
    for role in ("control", "student"):
        one, other = (load_file(path / role / "model.safetensors") for path in (whole, out))
        assert all(one[name].equal(other[name]) for name in one)
