from __future__ import annotations

import io
import json
import os
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import NAMES, SPLITS, arrays, edm, encoded, everything, folder, grey, picture, read, refused
from PIL import Image

from xmodal_kd.adapter.images.stores import kept_open
from xmodal_kd.modalities.diffusion.data.source import DiffusionData, load_split
from xmodal_kd.runtime.errors import UserError

CIFAR = Path(os.environ.get("XMODAL_KD_DATA", Path(__file__).parents[4] / "shared/data")) / "cifar10"


@pytest.fixture
def cifar():
    if not CIFAR.is_dir():
        pytest.skip(f"no {CIFAR}; set XMODAL_KD_DATA to the folder that holds cifar10")
    return {"path": CIFAR / "cifar10-32x32-train.zip", "test_path": CIFAR / "cifar10-32x32-test.zip"}


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


@pytest.mark.full
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
    message = refused("arrays", arrays(tmp_path / "a.npz", **held), conditional=True)
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
    "not square": (picture(1, size=(9, 8)), "9x8 pixels, but 8x8 is expected (as 00.png)"),
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


def test_a_zip_that_is_kept_open_is_the_one_on_the_disk(tmp_path):
    path = edm(tmp_path / "a.zip", grey(8))
    assert kept_open(path) is kept_open(path) and "00.png" in kept_open(path).names
    edm(path, {"other.png": picture(1)})
    assert kept_open(path).names == ["other.png"]
    with pytest.raises(UserError, match=r"a\.zip: 00\.png: no longer in the zip"):
        kept_open(path).read("00.png")
    path.unlink()
    with pytest.raises(UserError, match=r"a\.zip is not readable"):
        kept_open(path)


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
    message = refused("edm", path, conditional=True)
    assert says in message and message.startswith(f"{path}: dataset.json: ")
    assert len(read("edm", path)) == 3 and read("edm", path).labels is None  # without classes nothing needs them


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe\x00"])
def test_a_dataset_json_that_is_none_is_refused(tmp_path, text):
    folder(tmp_path, {**grey(8), "dataset.json": text})
    message = refused("folder", tmp_path, conditional=True)
    assert "dataset.json: " in message and "JSON" in message
