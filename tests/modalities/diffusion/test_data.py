from __future__ import annotations

import io
import json
import os
import struct
import time
import zipfile
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits

from xmodal_kd.errors import UserError
from xmodal_kd.loader import steps
from xmodal_kd.modalities.diffusion.data import DiffusionData, DiffusionSource, load_split
from xmodal_kd.streams import Streams

SPLITS = ("train", "dev", "test")
CIFAR = Path(os.environ.get("XMODAL_KD_DATA", Path(__file__).parents[4] / "shared/data")) / "cifar10"


def picture(i, mode="L", size=(8, 8)):
    """A picture of one value (in colour i, 2i, 3i), so that a test can tell which it is."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.new(mode, size, i if bands == 1 else tuple(k * i for k in range(1, bands + 1)))


def encoded(image, form="png"):
    out = io.BytesIO()
    image.save(out, {"tif": "tiff"}.get(form.lower(), form))
    return out.getvalue()


def folder(path, images):
    """Write {name: image or bytes} below `path`."""
    for name, image in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(image if isinstance(image, bytes) else encoded(image, Path(name).suffix[1:]))
    return path


def edm(path, images, labels="number", compression=zipfile.ZIP_STORED, **more):
    """Write {name: image or bytes} as a zip; labels are {name: class}, None, or classes by turns of three."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, image in images.items():
            file.writestr(name, image if isinstance(image, bytes) else encoded(image, Path(name).suffix[1:]))
        if labels == "number":
            labels = {name: i % 3 for i, name in enumerate(images)}
        content = {"labels": None if labels is None else [[name, label] for name, label in labels.items()], **more}
        file.writestr("dataset.json", json.dumps(content))
    return path


def grey(count, name="{:02d}.png", **how):
    return {name.format(i): picture(i, **how) for i in range(count)}


def read(sources, path, split="train", **more):
    return load_split(DiffusionData(**{"sources": sources, "path": path, "dev": 2, "test": 3, **more}), split)


def everything(*where, **more):
    """What all three splits hold, by name."""
    parts = [read(*where, split, **more) for split in SPLITS]
    return {key: (part.x[i], None if part.labels is None else int(part.labels[i]))
            for part in parts for i, key in enumerate(part.keys)}  # fmt: skip


def refused(*where, **more):
    """The one line that reading ends with."""
    with pytest.raises(UserError) as caught:
        read(*where, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def cifar():
    if not CIFAR.is_dir():
        pytest.skip(f"no {CIFAR}; set XMODAL_KD_DATA to the folder that holds cifar10")
    return {"path": CIFAR / "cifar10-32x32-train.zip", "test_path": CIFAR / "cifar10-32x32-test.zip"}


# Digits


def test_digits_are_scaled_exactly_and_split_as_said():
    data = DiffusionData(sources="digits")
    parts = {split: load_split(data, split) for split in SPLITS}
    assert [len(part) for part in parts.values()] == [1000, 297, 500]
    numbers = sorted(int(key.removeprefix("digit")) for part in parts.values() for key in part.keys)
    assert numbers == list(range(1797)), "every digit is in exactly one split"
    truth = load_digits()
    for part in parts.values():
        at = [int(key.removeprefix("digit")) for key in part.keys]
        x = part.tensor()
        assert x.dtype == torch.float32 and x.shape == (len(part), 1, 8, 8)
        assert np.array_equal((x.double().numpy()[:, 0] + 1) * 8, truth.images[at])
        assert np.array_equal(part.labels, truth.target[at])
        assert part.class_names == tuple("0123456789") and part.classes == 10


def test_splits_do_not_move():
    """Results of other days are compared on these very samples."""
    assert load_split(DiffusionData(sources="digits"), "test").keys[:4] == [
        "digit0004",
        "digit0006",
        "digit0008",
        "digit0009",
    ]


def test_a_split_is_read_once_whatever_the_rest_of_the_recipe_says():
    one = load_split(DiffusionData(sources="digits"), "dev")
    assert load_split(DiffusionData(sources="digits", flip=True, samples=7, process={"steps": 512}), "dev") is one
    assert len(load_split(DiffusionData(sources="digits", dev=10), "dev")) == 10


def test_digits_as_conditional_data_have_every_class_in_training():
    part = load_split(DiffusionData(sources="digits", conditional=True), "train")
    assert np.bincount(part.labels).min() > 50


def test_tensor_leaves_the_stored_values_alone():
    part = load_split(DiffusionData(sources="digits"), "dev")
    before = part.x.copy()
    part.tensor().zero_()
    part.tensor([0]).zero_()
    assert np.array_equal(part.x, before)


# Folders


def test_a_folder_is_read_in_natural_order_with_classes_from_its_subfolders(tmp_path):
    images = {f"{name}/deep/{i}.png": picture(20 * c + i) for c, name in enumerate(("cat", "dog")) for i in range(11)}
    images |= {"cat/.hidden.png": b"no", "__MACOSX/cat/._1.png": b"no", "notes.txt": b"no"}
    found = everything("folder", folder(tmp_path, images), conditional=True)
    assert len(found) == 22
    for name, (x, label) in found.items():
        kind, _, number = name.split("/")
        assert label == ("cat", "dog").index(kind)
        assert x.dtype == np.uint8 and (x == 20 * label + int(Path(number).stem)).all()
    train = read("folder", tmp_path)
    assert train.class_names == ("cat", "dog") and train.shape == (1, 8, 8)
    numbers = [int(Path(key).stem) for key in train.keys if key.startswith("cat")]
    assert numbers == sorted(numbers)


def test_all_formats_that_lose_nothing_read_the_same(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    names = ["a.png", "b.bmp", "c.tiff", "d.ppm", "e.PNG", "f.tif"]
    found = everything("folder", folder(tmp_path, dict.fromkeys(names, Image.fromarray(colours))), dev=1, test=1)
    assert sorted(found) == sorted(names)
    for x, label in found.values():
        assert label is None and np.array_equal(x, colours.transpose(2, 0, 1))


def test_uint8_covers_the_whole_range_exactly(tmp_path):
    images = {f"{i:03d}.png": picture(i) for i in range(256)}
    part = read("folder", folder(tmp_path, images), dev=1, test=1)
    values = [int(Path(key).stem) / 127.5 - 1 for key in part.keys]
    assert torch.allclose(part.tensor()[:, 0, 0, 0].double(), torch.tensor(values, dtype=torch.float64), atol=1e-7)
    assert part.tensor().min() >= -1 and part.tensor().max() <= 1
    assert torch.equal(part.tensor([5, 3]), part.tensor()[[5, 3]])


def test_a_dataset_json_in_a_folder_wins_over_subfolders(tmp_path):
    images = grey(9, "x/{:02d}.png")
    labels = [[name, 1 - i % 2] for i, name in enumerate(images)]
    folder(tmp_path, images)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "classes": ["odd", "even"]}))
    assert {name: label for name, (_, label) in everything("folder", tmp_path).items()} == dict(map(tuple, labels))


def test_a_loose_image_leaves_a_folder_without_labels(tmp_path):
    folder(tmp_path, {**grey(8, "x/{:02d}.png"), "loose.png": picture(1)})
    assert read("folder", tmp_path).labels is None
    assert "loose.png" in refused("folder", tmp_path, conditional=True)


# Zips


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_with_its_labels(tmp_path, compression):
    path = edm(tmp_path / "a.zip", grey(12, "0/{}.png"), compression=compression, classes=["a", "b", "c"])
    for name, (x, label) in everything("edm", path, conditional=True).items():
        number = int(Path(name).stem)
        assert label == number % 3 and (x == number).all()
    assert read("edm", path).class_names == ("a", "b", "c")


def test_a_zip_without_classes_counts_and_without_labels_has_none(tmp_path):
    assert read("edm", edm(tmp_path / "a.zip", grey(9))).class_names == ("0", "1", "2")
    bare = read("edm", edm(tmp_path / "b.zip", grey(9), labels=None))
    assert bare.labels is None and bare.class_names is None and bare.classes is None


def test_the_real_cifar_is_read_whole_and_quickly(cifar, capfd):
    data = DiffusionData(sources="edm", conditional=True, flip=True, dev=500, **cifar)
    began = time.process_time()
    parts = {split: load_split(data, split) for split in SPLITS}
    took = time.process_time() - began
    assert [len(part) for part in parts.values()] == [19500, 500, 5000]
    assert took < 20, "3 s where it was written"
    train = parts["train"]
    assert train.shape == (3, 32, 32) and train.x.dtype == np.uint8
    assert train.class_names[:3] == ("airplane", "automobile", "bird") and train.classes == 10
    assert np.bincount(train.labels).min() > 1900 and (np.bincount(parts["test"].labels) == 500).all()
    with zipfile.ZipFile(cifar["path"]) as file:
        pixels = np.asarray(Image.open(file.open(train.keys[7])))
        labels = dict(map(tuple, json.loads(file.read("dataset.json"))["labels"]))
    assert np.array_equal(train.x[7].transpose(1, 2, 0), pixels) and train.labels[7] == labels[train.keys[7]]
    assert "20000/20000" in capfd.readouterr().err, "long reads show that they go on"


# Arrays


def arrays(path, **held):
    np.savez(path, **{"x": np.linspace(-1, 1, 60).reshape(10, 3, 2), **held})
    return path


def test_arrays_have_any_shape(tmp_path):
    names = np.array(["a", "b"])
    path = arrays(tmp_path / "a.npz", labels=np.arange(10) % 2, classes=names)
    found = everything("arrays", path, conditional=True)
    assert len(found) == 10
    for name, (x, label) in found.items():
        assert label == int(name) % 2
        assert np.array_equal(x, np.linspace(-1, 1, 60).reshape(10, 3, 2)[int(name)].astype(np.float32))
    train = read("arrays", path)
    assert train.class_names == ("a", "b") and train.tensor().shape == (5, 3, 2)
    assert train.tensor().dtype == torch.float32


class Trap:
    def __reduce__(self):
        return (os._exit, (3,))


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"x": np.zeros((9, 2), dtype=np.uint8)}, "'x' is uint8"),
        ({"x": np.full((9, 2), 1.5)}, "lies in [1.5, 1.5]; it must lie in [-1, 1]"),
        ({"x": np.array([[0.0, 1], [np.nan, 0]])}, "sample 1 of 'x' has values that are not finite"),
        ({"x": np.zeros(9)}, "'x' has shape (9,)"),
        ({"x": np.zeros((0, 2))}, "'x' has shape (0, 2)"),
        ({"x": np.array([[Trap()]], dtype=object)}, "arrays of numbers are expected"),
        ({"labels": np.zeros(9, dtype=int)}, "integers of shape (10,)"),
        ({"labels": np.zeros(10)}, "'labels' is float64"),
        ({"labels": np.arange(10) * 2}, "0 to k-1 without a hole"),
        ({"labels": np.arange(10), "classes": np.array(["a", "b"])}, "of 2 classes, labels must be 0 to 1, got 2, 3"),
        ({"labels": np.zeros(10, dtype=int), "classes": np.array([1])}, "'classes' must be one axis of text"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, held, says):
    message = refused("arrays", arrays(tmp_path / "a.npz", **held))
    assert says in message and "a.npz" in message


def test_files_that_are_no_arrays_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert "not an .npz" in refused("arrays", tmp_path / "a.npy")
    np.savez(tmp_path / "b.npz", y=np.zeros((9, 2)))
    assert "no array 'x' (it holds y)" in refused("arrays", tmp_path / "b.npz")
    assert "no array 'labels'" in refused("arrays", arrays(tmp_path / "c.npz"), conditional=True)


# Images that are refused


def png16(colour):
    """A 16-bit PNG, which Pillow cannot write in colour."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 8, 8, 16, 2 if colour else 0, 0, 0, 0)
    rows = (b"\0" + b"\x12\x34" * 8 * (3 if colour else 1)) * 8
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def animation():
    out = io.BytesIO()
    picture(1, "RGB").save(out, "webp", save_all=True, append_images=[picture(9, "RGB")], lossless=True)
    return out.getvalue()


def transparent():
    out = io.BytesIO()
    picture(1, "RGB").save(out, "png", transparency=(1, 2, 3))
    return out.getvalue()


BAD = {
    "another size": (picture(1, size=(9, 9)), "9x9 pixels, but 8x8 is expected (as 00.png)"),
    "not square": (picture(1, size=(9, 8)), "9x8 pixels: images must be square"),
    "colour": (picture(1, "RGB"), "RGB (8-bit colour), but L (8-bit grey) is expected (as 00.png)"),
    "palette": (picture(1, "P"), "P (palette)"),
    "transparency": (picture(1, "RGBA"), "RGBA (colour with transparency)"),
    "bilevel": (picture(1, "1"), "1 (black and white)"),
    "16-bit grey": (png16(False), "16-bit grey"),
    "16-bit colour": (png16(True), "16-bit RGB"),
    "16-bit PPM": (b"P6 8 8 65535\n" + b"\x12" * 384, "16-bit RGB"),
    "print": (encoded(picture(1, "CMYK"), "jpeg"), "CMYK (print colours)"),
    "transparent colour": (transparent(), "RGB with a transparent colour"),
    "cut": (encoded(Image.effect_noise((8, 8), 50))[:70], "a broken image"),
    "cut JPEG": (encoded(Image.effect_noise((8, 8), 50), "jpeg")[:-60], "a broken image"),
    "text": (b"this is no image", "not an image that Pillow can read"),
    "empty": (b"", "not an image that Pillow can read"),
}


@pytest.mark.parametrize("kind", ["folder", "edm"])
@pytest.mark.parametrize("name", BAD)
def test_an_image_unlike_the_others_is_named(tmp_path, kind, name):
    image, says = BAD[name]
    images = {**grey(8), "bad.png": image if isinstance(image, bytes) else encoded(image)}
    where = folder(tmp_path / "f", images) if kind == "folder" else edm(tmp_path / "a.zip", images)
    message = refused(kind, where)
    assert says in message and message.startswith(str(where)) and "bad.png" in message


def test_an_animation_is_refused(tmp_path):
    folder(tmp_path, {**grey(8, mode="RGB"), "bad.webp": animation()})
    assert "several pages" in refused("folder", tmp_path)


def test_the_recipe_can_say_what_images_must_be(tmp_path):
    folder(tmp_path, grey(8))
    assert "8x8 pixels, but 16x16 is expected (as the recipe says)" in refused("folder", tmp_path, size=16)
    assert "L (8-bit grey), but RGB (8-bit colour) is expected" in refused("folder", tmp_path, mode="RGB")
    assert read("folder", tmp_path, size=8, mode="L").shape == (1, 8, 8)


# Stores that are refused


def test_places_without_images_are_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    text = folder(tmp_path, {"a.zip": b"no zip"}) / "a.zip"
    whole = edm(tmp_path / "b.zip", {})
    assert "has no images below it" in refused("folder", empty)
    assert "holds no images" in refused("edm", whole)
    assert "is not a zip" in refused("edm", text)
    assert "is a folder, not a zip" in refused("edm", empty)
    assert "is a file, not a folder" in refused("folder", whole)
    for kind in ("folder", "edm", "arrays"):
        assert "data.path" in (message := refused(kind, tmp_path / "no")) and "does not exist" in message


def test_a_damaged_member_of_a_zip_is_named(tmp_path):
    path = edm(tmp_path / "a.zip", grey(8))
    content = path.read_bytes()
    at = content.index(b"IDAT", content.index(b"03.png"))
    path.write_bytes(content[:at] + b"XXXX" + content[at + 4 :])
    assert "a.zip: 03.png: cannot be read from the zip" in refused("edm", path)


def test_conditional_needs_labels(tmp_path):
    assert "are null" in refused("edm", edm(tmp_path / "a.zip", grey(8), labels=None), conditional=True)
    for name, says in (("dataset.txt", "has no dataset.json"), ("in/dataset.json", "must lie at the top")):
        path = tmp_path / f"{Path(name).suffix}.zip"
        with zipfile.ZipFile(path, "w") as file:
            for image, content in grey(8).items():
                file.writestr(image, encoded(content))
            file.writestr(name, "{}")
        assert says in refused("edm", path, conditional=True)
        assert read("edm", path).labels is None


NAMES = [f"{i:02d}.png" for i in range(8)]


@pytest.mark.parametrize(
    ("labels", "more", "says"),
    [
        ({**dict.fromkeys(NAMES, 0), "else.png": 0}, {}, "labels 'else.png', which is not there"),
        (dict.fromkeys(NAMES[1:], 0), {}, "'00.png' has no label"),
        (dict.fromkeys(NAMES, 1), {}, "0 to k-1 without a hole, got 1"),
        (dict.fromkeys(NAMES, -1), {"classes": ["a"]}, "must be 0 to 0, got -1"),
        (dict.fromkeys(NAMES, 10**30), {"classes": ["a"]}, "must be 0 to 0"),
        (dict.fromkeys(NAMES, "cat"), {}, "must be a class number, got cat"),
        (dict.fromkeys(NAMES, True), {}, "must be a class number"),
        ({name: [0.0, 1.0] for name in NAMES}, {}, "must be a class number"),
        (dict.fromkeys(NAMES, 0), {"classes": ["a", "a"]}, "two classes are called 'a'"),
        (dict.fromkeys(NAMES, 0), {"classes": "ab"}, "'classes' must be a list of names"),
        (dict.fromkeys(NAMES, 0), {"labels": {"00.png": 1}}, "'labels' must be a list"),
        (dict.fromkeys(NAMES, 0), {"labels": [["00.png"]]}, "must be [name, class], got ['00.png']"),
        (dict.fromkeys(NAMES, 0), {"labels": [["00.png", 0], ["00.png", 1]]}, "two labels, 0 and 1"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, labels, more, says):
    path = tmp_path / "a.zip"
    content = {"labels": [[name, label] for name, label in labels.items()], **more}
    with zipfile.ZipFile(path, "w") as file:
        for name, image in grey(8).items():
            file.writestr(name, encoded(image))
        file.writestr("dataset.json", json.dumps(content))
    message = refused("edm", path)
    assert says in message and message.startswith(f"{path}: dataset.json: ")


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe\x00"])
def test_a_dataset_json_that_is_none_is_refused(tmp_path, text):
    folder(tmp_path, {**grey(8), "dataset.json": text})
    message = refused("folder", tmp_path)
    assert "dataset.json: " in message and "JSON" in message


# Splits


def test_splits_must_leave_something(tmp_path):
    folder(tmp_path, grey(8))
    message = refused("folder", tmp_path, dev=4, test=4)
    assert "has 8 samples, of which dev takes 4 and test 4: none are left" in message
    assert "of which dev takes 297 and test 500" in refused("folder", tmp_path, dev=297, test=None)
    assert len(read("folder", tmp_path, dev=4, test=3)) == 1


def test_conditional_training_must_see_every_class(tmp_path):
    path = edm(tmp_path / "a.zip", grey(8), labels=dict.fromkeys(NAMES, 0), classes=["cat", "dog"])
    assert "no training sample is of class 'dog'" in refused("edm", path, conditional=True)
    assert read("edm", path).classes == 2


def test_a_test_path_is_the_test_split(tmp_path):
    train, test = edm(tmp_path / "a.zip", grey(12)), edm(tmp_path / "b.zip", grey(6, "t{}.png"))
    parts = {split: read("edm", train, split, test_path=test, test=None) for split in SPLITS}
    assert [len(part) for part in parts.values()] == [10, 2, 6]
    assert all(key.startswith("t") for key in parts["test"].keys)
    some = read("edm", train, "test", test_path=test, test=4)
    assert len(some) == 4 and set(some.keys) < set(parts["test"].keys)
    assert "7 test samples are asked for" in refused("edm", train, test_path=test, test=7)


def test_a_test_zip_that_only_numbers_its_classes_takes_their_names(tmp_path):
    train = edm(tmp_path / "a.zip", grey(12), classes=["a", "b", "c"])
    test = edm(tmp_path / "b.zip", grey(6), labels=dict.fromkeys(NAMES[:6], 2))
    assert read("edm", train, "test", test_path=test).class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("test", "says"),
    [
        (lambda path: edm(path, grey(6, size=(9, 9))), "9x9 pixels, but 8x8 is expected (as the training images)"),
        (lambda path: edm(path, grey(6, mode="RGB")), "its mode is RGB"),
        (lambda path: edm(path, grey(6), labels=None), "has classes no labels; training has 0, 1, 2"),
        (lambda path: edm(path, grey(6), classes=["a", "b", "c"]), "has classes a, b, c; training has 0, 1, 2"),
        (lambda path: path, "data.test_path: "),
    ],
)
def test_a_test_path_must_be_like_the_training_data(tmp_path, test, says):
    train = edm(tmp_path / "a.zip", grey(12))
    message = refused("edm", train, test_path=test(tmp_path / "b.zip"))
    assert says in message and "b.zip" in message


def test_test_arrays_must_have_the_shape_of_training(tmp_path):
    train, test = arrays(tmp_path / "a.npz"), arrays(tmp_path / "b.npz", x=np.zeros((9, 2, 3)))
    assert "shape (2, 3), training samples (3, 2)" in refused("arrays", train, test_path=test)


def test_a_relative_path_means_another_file_elsewhere(tmp_path, monkeypatch):
    for i, name in enumerate(("a", "b")):
        folder(tmp_path / name / "images", {f"{j}.png": picture(i) for j in range(8)})
        monkeypatch.chdir(tmp_path / name)
        assert (read("folder", "images").x == i).all()


# The data section


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"sources": "folder"}, "needs the path"),
        ({"sources": "edm", "test_path": "a"}, "needs the path"),
        ({"sources": "digits", "path": "a"}, "come with scikit-learn"),
        ({"sources": "arrays", "path": "a", "flip": True}, "flip: is for images"),
        ({"sources": "arrays", "path": "a", "size": 8}, "size: is for images"),
        ({"sources": "folder", "path": "a", "test_path": "a"}, "overlap"),
        ({"sources": "folder", "path": "a", "test_path": "a/test"}, "overlap"),
        ({"sources": "folder", "path": "a/train", "test_path": "a/train/../"}, "overlap"),
        ({"sources": "digits", "sampling": {"steps": 2048}}, "2048 is more than process.steps (1024)"),
        ({"sources": "digits", "dev": 0}, "greater than or equal to 1"),
        ({"sources": "digits", "mode": "RGBA"}, "'L' or 'RGB'"),
        ({"sources": "svhn"}, "'digits', 'folder', 'edm' or 'arrays'"),
    ],
)
def test_a_data_section_that_cannot_be_is_refused(keys, says):
    with pytest.raises(ValidationError) as caught:
        DiffusionData(**keys)
    assert says in str(caught.value)


def test_a_data_section_survives_being_written_down():
    data = DiffusionData(sources="edm", path="a.zip", test_path="b.zip", sampling={"solver": "heun"})
    assert DiffusionData(**data.model_dump(mode="json")) == data


# The source


def source(split="train", seed=1, batch_size=64, **more):
    data = DiffusionData(sources="digits", **more)
    return DiffusionSource(data, split, load_split(data, split), Streams(seed), batch_size)


def test_training_epochs_are_full_batches_in_an_order_of_their_own():
    made = source()
    plan = made.plan(3)
    assert [len(batch) for batch in plan] == [64] * 15
    assert len({i for batch in plan for i in batch}) == 960, "no sample twice"
    assert plan == source().plan(3)
    assert plan != made.plan(4) and plan != source(seed=2).plan(3)
    assert {i for epoch in range(8) for batch in made.plan(epoch) for i in batch} == set(range(1000))


def test_dev_and_test_are_whole_and_in_order():
    plan = source("dev").plan(0)
    assert [i for batch in plan for i in batch] == list(range(297)) and len(plan[-1]) == 297 % 64


def test_a_batch_larger_than_the_training_split_is_refused():
    with pytest.raises(UserError, match=r"train\.batch_size: 1001 is more than the 1000 training samples"):
        source(batch_size=1001)
    assert source("dev", batch_size=1001).plan(0) == [list(range(297))]


def test_draws_are_a_function_of_seed_split_epoch_and_sample():
    made = source()
    late, first = made.sample(7, 3), made.sample(0, 0)
    again = source().sample(7, 3)
    assert torch.equal(late.noise, again.noise) and late.u == again.u and torch.equal(late.x, again.x)
    others = [first, made.sample(7, 4), made.sample(8, 3), source(seed=2).sample(7, 3), source("dev").sample(7, 3)]
    for other in others:
        assert not torch.equal(late.noise, other.noise) and late.u != other.u


def test_noise_is_standard_normal_and_u_uniform():
    made = source()
    batch = made.collate([made.sample(i, epoch) for epoch in range(4) for i in range(len(made))])
    noise, u = batch["noise"].double(), batch["u"].double()
    assert noise.numel() == 256_000
    assert abs(noise.mean()) < 5 / 256_000**0.5 and abs(noise.var() - 1) < 5 * (2 / 256_000) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / 256_000) ** 0.5
    assert u.min() >= 0 and u.max() < 1
    grid = (torch.arange(4000) + 0.5) / 4000
    assert (u.sort().values - grid).abs().max() < 1.95 / 4000**0.5, "Kolmogorov-Smirnov at one in a thousand"
    assert abs(torch.corrcoef(torch.stack([u, noise[:, 0, 0, 0], noise[:, 0, 0, 1]])) - torch.eye(3)).max() < 0.08


def test_mirroring_changes_half_of_the_training_samples_and_no_draw():
    plain, mirrored = source(), source(flip=True)
    turned = 0
    for i in range(400):
        one, other = plain.sample(i, 0), mirrored.sample(i, 0)
        assert torch.equal(one.noise, other.noise) and one.u == other.u
        same = torch.equal(one.x, other.x)
        assert same or torch.equal(one.x.flip(-1), other.x)
        turned += not same
    assert 150 < turned < 250
    dev, still = source("dev"), source("dev", flip=True)
    assert all(torch.equal(dev.sample(i, 0).x, still.sample(i, 0).x) for i in range(50))


def test_a_batch_holds_what_methods_need():
    made = source(conditional=True)
    ids = [5, 2, 9]
    batch = made.collate([made.sample(i, 0) for i in ids])
    assert batch["ids"].tolist() == ids and batch["ids"].dtype == torch.int64
    assert batch["x"].shape == batch["noise"].shape == (3, 1, 8, 8) and batch["u"].shape == (3,)
    assert {batch[name].dtype for name in ("x", "noise", "u")} == {torch.float32}
    assert torch.equal(batch["x"], made.images.tensor(ids)) and batch["keys"] == [made.images.keys[i] for i in ids]
    assert batch["labels"].tolist() == made.images.labels[ids].tolist() and batch["labels"].dtype == torch.int64
    assert "labels" not in source().collate([source().sample(0, 0)])


def test_workers_and_resume_change_nothing():
    """Through the core's own loader, over the end of an epoch."""

    def batches(start, workers):
        return [step[0] for step in islice(steps(source(flip=True), start=start, workers=workers), 20 - start)]

    whole = batches(0, 0)
    for start, workers in ((12, 0), (0, 2)):
        for one, other in zip(whole[start:], batches(start, workers), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in ("ids", "x", "noise", "u"))


def test_arrays_of_another_shape_go_through_the_source(tmp_path):
    data = DiffusionData(sources="arrays", path=arrays(tmp_path / "a.npz"), dev=2, test=3)
    made = DiffusionSource(data, "train", load_split(data, "train"), Streams(1), 5)
    batch = made.collate([made.sample(i, 0) for i in made.plan(0)[0]])
    assert batch["x"].shape == batch["noise"].shape == (5, 3, 2)
    assert made.describe() == {"samples": 5, "left_out": 0, "shape": [3, 2], "classes": None}


def test_describe_says_what_a_report_needs():
    assert source().describe() == {"samples": 1000, "left_out": 0, "shape": [1, 8, 8], "classes": 10}
