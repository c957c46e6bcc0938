"""Images in shards of tars and in saved tables: what a folder of them gives, captions, latents, errors by name."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_files import png, tables, tar

from xmodal_kd.adapter.images import read
from xmodal_kd.adapter.images.later import Later
from xmodal_kd.modalities.diffusion.data.captions import captions_of
from xmodal_kd.modalities.diffusion.data.source import DiffusionData
from xmodal_kd.modalities.diffusion.data.source import load_split as load_diffusion
from xmodal_kd.modalities.diffusion.models.classifier import _data_hash
from xmodal_kd.modalities.images.adapter import ImagesAdapter
from xmodal_kd.modalities.images.data.source import ImagesData, ImagesSource, load_split
from xmodal_kd.run.listed_files import look
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

CLASSES = ("cat", "dog", "owl")
FEATURES = {
    "image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"},
    "text": {"dtype": "string", "_type": "Value"},
}  # fmt: skip
SPLITS = {"train": 40, "test": 12}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def rows(split: str) -> list[dict[str, Any]]:
    first = 100 * len(split)
    return [{"image": png(first + i), "label": i % 3, "text": f"a {CLASSES[i % 3]}"} for i in range(SPLITS[split])]


def folder(path: Path) -> Path:
    for split in SPLITS:
        for i, row in enumerate(rows(split)):
            (path / split / CLASSES[row["label"]]).mkdir(parents=True, exist_ok=True)
            (path / split / CLASSES[row["label"]] / f"{i:03d}.png").write_bytes(row["image"])
    return path


def sharded(path: Path, label: str = "cls") -> Path:
    """The images of `folder` in its order; labels as numbers, or as names in JSON."""
    for split in SPLITS:
        order = sorted(enumerate(rows(split)), key=lambda one: (one[1]["label"], one[0]))
        samples = []
        for i, row in order:
            said = (
                {".cls": f"{row['label']}\n".encode()}
                if label == "cls"
                else {".json": json.dumps({"class": CLASSES[row["label"]]}).encode()}
            )
            samples.append((f"{split}{i:03d}", {".png": row["image"], ".txt": row["text"].encode(), **said}))
        for start in range(0, len(samples), 16):
            tar(path / f"{split}-{start // 16}.tar", samples[start : start + 16])
    return path


def saved(path: Path) -> Path:
    pytest.importorskip("pyarrow")
    order = {split: sorted(rows(split), key=lambda row: row["label"]) for split in SPLITS}
    return tables(path, order, FEATURES)


@pytest.mark.parametrize("kind", ["numbers", "names", "table"])
def test_what_is_packed_gives_what_a_folder_gives(tmp_path: Path, kind: str) -> None:
    packed = (
        saved(tmp_path / "p") if kind == "table" else sharded(tmp_path / "p", "cls" if kind == "numbers" else "json")
    )
    keys: dict[str, Any] = {"dev": 9, "flip": True, "shift": 2}
    mine = ImagesData(sources="datasets" if kind == "table" else "webdataset", path=packed, **keys)
    theirs = ImagesData(sources="folder", path=folder(tmp_path / "f"), **keys)
    assert mine.test_path is not None
    for split in ("train", "dev", "test"):
        one, other = load_split(mine, split), load_split(theirs, split)
        assert isinstance(one.x, Later) and np.array_equal(one.x[:], other.x[:]) and one.shape == other.shape
        assert one.labels is not None and one.labels.tolist() == other.labels.tolist()
        assert one.class_names == (("0", "1", "2") if kind == "numbers" else CLASSES)
        a, b = (ImagesSource(c, split, images, Streams(2), 4) for c, images in ((mine, one), (theirs, other)))
        assert a.plan(1) == b.plan(1) and a.sample(3, 1).x.equal(b.sample(3, 1).x)
        assert pickle.loads(pickle.dumps(a)).sample(3, 1).x.equal(b.sample(3, 1).x)
    files = look(ImagesAdapter.files(mine))
    assert (files.files, files.bad) == (52, [])


def test_captions_and_classes_lie_beside_images(tmp_path: Path) -> None:
    data = DiffusionData(sources="webdataset", path=sharded(tmp_path / "s"), captions=True, dev=9)
    said = captions_of(data, "dev")
    labels = load_diffusion(data, "dev").labels
    assert labels is not None and said == tuple(f"a {CLASSES[i]}" for i in labels)
    tar(tmp_path / "s" / "train-9.tar", [("bare", {".png": png(7), ".cls": b"0"})])
    load_diffusion.__globals__["_splits"].cache_clear()
    captions_of.__globals__["_captions"].cache_clear()
    with pytest.raises(UserError, match=r"sample 'bare' has no caption: a \.txt beside it"):
        [captions_of(data, split) for split in ("train", "dev")]


def test_latents_are_read_from_shards(tmp_path: Path) -> None:
    held = np.random.default_rng(0).normal(size=(30, 4, 2, 2)).astype(np.float32) * 3
    samples = []
    for i, one in enumerate(held):
        out = io.BytesIO()
        np.save(out, one)
        samples.append((f"{i:03d}", {".npy": out.getvalue(), ".cls": str(i % 2).encode()}))
    tar(tmp_path / "a.tar", samples)
    data = DiffusionData(sources="webdataset", path=tmp_path / "a.tar", latents=True, conditional=True, dev=6, test=6)
    train = load_diffusion(data, "train")
    assert train.shape == (4, 2, 2) and train.classes == 2
    assert np.array_equal(train.x[:], held[[int(key) for key in train.keys]])


def test_a_judge_is_of_the_samples_that_it_is_trained_on(tmp_path: Path) -> None:
    """What is kept by content is found again, and not for others."""
    data = ImagesData(sources="webdataset", path=sharded(tmp_path / "s"), dev=9)
    train = load_split(data, "train")
    assert _data_hash(train) == _data_hash(train.take(range(len(train)))) != _data_hash(train.take(range(30)))


Samples = list[tuple[str, dict[str, bytes]]]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a", {".cls": b"0"})], r"s\.tar: a: no image in this sample \(it holds \.cls\)"),
        ([("a", {".npy": b""})], r"no image in this sample .*arrays are read where data\.latents is true"),
        ([("a", {".png": b"", ".jpg": b""})], r"s\.tar: a: it has several images \(\.png, \.jpg\)"),
        ([("a", {".png": png(1), ".cls": b"0"}), ("b", {".png": png(2)})], r"s\.tar: b\.png: no class"),
        ([("a", {".png": png(1)})], r"a classifier needs labels: no sample has a \.cls"),
        ([("a", {".png": png(1), ".cls": b"0"}), ("b", {".png": png(2), ".cls": b"2"})], r"labels must be 0 to k-1"),
        ([("a", {".png": png(1), ".json": b'{"label": 1.5}'})], r"its class must be a number from 0, or a name, got 1"),
        ([("a", {".png": b"x", ".cls": b"0"})], r"s\.tar: a\.png: not an image that Pillow can read"),
        ([], "no samples, in this file"),
    ],
)  # fmt: skip
def test_a_bad_sample_is_named_with_its_shard(tmp_path: Path, samples: Samples, message: str) -> None:
    data = ImagesData(sources="webdataset", path=tar(tmp_path / "s.tar", samples))
    with pytest.raises(UserError, match=message):
        load_split(data, "train")


def test_an_image_unlike_the_first_is_named_when_it_is_read(tmp_path: Path) -> None:
    samples = [
        (f"{i:02d}", {".png": png(i, (8, 8) if i < 29 else (8, 9)), ".cls": str(i % 2).encode()}) for i in range(30)
    ]
    data = ImagesData(sources="webdataset", path=tar(tmp_path / "s.tar", samples), dev=2, test=2)
    train = load_split(data, "train")
    with pytest.raises(UserError, match=r"s\.tar: 29\.png: 9x8 pixels, but 8x8 is expected \(as 00\.png\)"):
        train.tensor()


def test_test_samples_are_of_no_shard_of_training(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "s")
    data = ImagesData(sources="webdataset", path=folder / "*.tar", test_path=folder / "test-*.tar", dev=5)
    with pytest.raises(UserError, match=r"data\.test_path: .*test-0\.tar is of data\.path too"):
        load_split(data, "train")


@pytest.mark.parametrize("kind", ["folder", "edm"])
def test_more_images_than_are_held_are_read_when_they_are_wanted(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "f") / "train"
    if kind == "edm":
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*.png"))
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in names:
                packed.write(path / name, name)
            labels = [[name, CLASSES.index(name.partition("/")[0])] for name in names]
            packed.writestr("dataset.json", json.dumps({"labels": labels, "classes": CLASSES}))
        path = tmp_path / "a.zip"
    found = []
    for held in (1 << 32, 100):
        monkeypatch.setattr(read, "HELD", held)
        load_split.__globals__["_splits"].cache_clear()
        data = ImagesData.model_validate({"sources": kind, "path": path, "dev": 5, "test": 5})
        found.append(ImagesSource(data, "train", load_split(data, "train"), Streams(2), 4))
        assert isinstance(found[-1].images.x, Later) == (held == 100)
    for source in (found[1], pickle.loads(pickle.dumps(found[1]))):
        assert np.array_equal(source.images.x[:], found[0].images.x) and source.plan(1) == found[0].plan(1)
        assert list(source.images.keys) == list(found[0].images.keys) and source.classes == found[0].classes
    assert _data_hash(found[1].images) == _data_hash(load_split(data, "train"))
