"""Images and latents as people keep them: turned by a camera, in splits, not square, channels last, several broken."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from image_files import encoded, everything, folder, grey, picture, read, refused
from PIL import Image, features

from xmodal_kd.adapter.images import stores
from xmodal_kd.modalities.diffusion.data.captions import read_captions
from xmodal_kd.modalities.diffusion.data.found import samples
from xmodal_kd.modalities.diffusion.data.source import DiffusionData, DiffusionSource, load_split
from xmodal_kd.runtime.random_streams import Streams


def turned(orientation, size=(8, 8)):
    """A grey ramp that a camera wrote turned; shown side up it is dark at the top."""
    ramp = np.repeat(np.linspace(0, 240, size[1], dtype=np.uint8)[:, None], size[0], axis=1)
    back = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    image, out, exif = Image.fromarray(ramp), io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    (image if back[orientation] is None else image.transpose(back[orientation])).save(out, "png", exif=exif)
    return out.getvalue(), ramp


@pytest.mark.parametrize("size", [(8, 8), (12, 16)])
def test_a_camera_s_images_are_shown_side_up(tmp_path, size):
    content = {f"{i}.png": turned(i, size)[0] for i in (1, 3, 6, 8)}
    found = everything("folder", folder(tmp_path, content), dev=1, test=1)
    for x, _ in found.values():
        assert np.array_equal(x[0], turned(1, size)[1])


def test_images_that_are_not_square(tmp_path):
    train = read("folder", folder(tmp_path, grey(8, size=(12, 16))))
    assert train.shape == (1, 16, 12)
    assert read("folder", tmp_path, size=(16, 12)).shape == (1, 16, 12)
    assert "12x16 pixels, but 16x12 is expected" in refused("folder", tmp_path, size=(12, 16))
    assert "12x16 pixels, but 16x16 is expected" in refused("folder", tmp_path, size=16)


def test_classes_are_numbered_as_numbers(tmp_path):
    names = ("0", "1", "2", "10", "11")
    found = everything("folder", folder(tmp_path, {f"{n}/{i}.png": picture(int(n)) for n in names for i in range(3)}))
    assert {int(x[0, 0, 0]): label for x, label in found.values()} == {0: 0, 1: 1, 2: 2, 10: 3, 11: 4}
    assert read("folder", tmp_path).class_names == names


@pytest.mark.parametrize("other", ["test", "val", "validation"])
def test_train_and_test_folders_are_splits_and_never_classes(tmp_path, other):
    images = {f"{split}/{kind}/{i}.png": picture(i) for split in ("train", other) for kind in "ab" for i in range(6)}
    data = DiffusionData(sources="folder", path=folder(tmp_path, images), dev=2)
    assert (data.path, data.test_path) == (tmp_path / "train", tmp_path / other)
    assert load_split(data, "train").class_names == ("a", "b")
    assert [len(load_split(data, split)) for split in ("train", "dev", "test")] == [10, 2, 12]
    alone = folder(tmp_path / "alone", {f"{split}/{i}.png": picture(i) for split in (other,) for i in range(12)})
    assert "are splits, not classes: set data.path" in refused("folder", alone, conditional=True)


def test_formats_that_are_not_read_are_counted(tmp_path, monkeypatch):
    images = {**grey(8), "a.heic": b"-", "b.avif": b"-"}
    monkeypatch.setattr(stores, "UNREAD", {".heic", ".avif"})
    monkeypatch.setattr(stores, "EXTENSIONS", stores.EXTENSIONS - {".avif"})
    where = folder(tmp_path, images)
    data = DiffusionData(sources="folder", path=where, dev=2, test=3)
    told = DiffusionSource(data, "train", load_split(data, "train"), Streams(1), 1).describe()
    assert told["left_out"] == 2 and told["samples"] == 3
    assert [entry["key"] for entry in told["left_out_examples"]] == ["a.heic", "b.avif"]
    for name in grey(8):
        (where / name).unlink()
    assert "only 2 that Pillow cannot read here, as a.heic" in refused("folder", where, dev=1)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow is built without AVIF")
def test_avif_is_read(tmp_path):
    images = {f"{i}.avif": encoded(picture(3, "RGB", (16, 16)), "avif") for i in range(6)}
    assert read("folder", folder(tmp_path, images), dev=2, test=2).shape == (3, 16, 16)


def test_all_broken_images_are_named_at_once(tmp_path):
    broken = {"bad1.png": b"no", "bad2.png": encoded(picture(1, size=(9, 9))), "bad3.png": encoded(picture(1, "RGB"))}
    message = refused("folder", folder(tmp_path, {"00bad.png": b"no", **grey(8), **broken}))
    assert message.startswith(f"{tmp_path}: 4 of 12 images cannot be used (data.skip")
    assert all(name in message for name in ("00bad.png, bad1.png: not an image", "bad2.png: 9x9", "bad3.png: its mode"))
    assert "\n" not in message


def test_channels_last_are_told_from_their_shape(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 8, 8, 3), np.float32))
    assert "channels last?" in (message := refused("arrays", tmp_path / "a.npz"))
    assert "x.transpose(0, 3, 1, 2)" in message
    np.savez(tmp_path / "c.npz", x=np.zeros((20, 12, 16, 1), np.float32))
    assert "channels last?" in refused("arrays", tmp_path / "c.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros((20, 3, 8, 8), np.float32))
    assert read("arrays", tmp_path / "b.npz").shape == (3, 8, 8)


# Latents


def latents(path, shapes, labels=None):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        for i, shape in enumerate(shapes):
            out = io.BytesIO()
            np.save(out, rng.normal(size=shape).astype(np.float32) * 3)
            file.writestr(f"{i:05d}.npy", out.getvalue())
        file.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


def test_latents_are_read_where_the_recipe_says_so(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 4, 8, 8)).astype(np.float16) * 3
    np.savez(tmp_path / "a.npz", x=x)
    assert "if these are latents, set data.latents: true" in refused("arrays", tmp_path / "a.npz")
    found = everything("arrays", tmp_path / "a.npz", latents=True)
    assert len(found) == 20 and all(np.array_equal(found[str(i)][0], x[i].astype(np.float32)) for i in range(20))


def test_latents_in_a_zip(tmp_path):
    path = latents(tmp_path / "a.zip", [(4, 8, 8)] * 12, [[f"{i:05d}.npy", i % 2] for i in range(12)])
    assert "set data.latents: true" in refused("edm", path)
    train = read("edm", path, latents=True, conditional=True)
    assert train.shape == (4, 8, 8) and train.classes == 2 and float(np.abs(train.x).max()) > 1
    odd = latents(tmp_path / "b.zip", [(4, 8, 8)] * 3 + [(4, 9, 8)])
    assert "00003.npy: has shape (4, 9, 8), but (4, 8, 8)" in refused("edm", odd, latents=True)
    assert "holds no latents" in refused("edm", latents(tmp_path / "c.zip", []), latents=True)


@pytest.mark.parametrize("more", [{"sources": "digits"}, {"sources": "edm", "path": "a.zip", "size": 8}])
def test_latents_are_no_images(more):
    with pytest.raises(ValueError, match="latents: are of sources"):
        DiffusionData(latents=True, **more)


def test_folders_that_systems_make_are_no_classes(tmp_path):
    content = {f"{name}/{i}.png": picture(9) for name in ("cat", "dog", "@eaDir/cat", "__MACOSX/cat") for i in range(4)}
    assert read("folder", folder(tmp_path, content), conditional=True, dev=1, test=1).class_names == ("cat", "dog")


def test_the_folder_around_the_classes_is_no_class(tmp_path):
    content = {f"data/{name}/{i}.png": picture(9) for name in ("cat", "dog") for i in range(4)}
    told = refused("folder", folder(tmp_path, content), conditional=True)
    assert f"all its images lie in {tmp_path / 'data'}" in told and "set data.path to that one" in told
    assert read("folder", tmp_path / "data", conditional=True, dev=1, test=1).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "name, told",
    [
        ("data/train-00000-of-00001.parquet", r"save_to_disk"),
        ("a.h5", "write its images as PNG files"),
        ("x.npy", "numpy.savez"),
    ],
)
def test_what_holds_images_in_another_way_is_named_with_what_to_do(tmp_path, name, told):
    text = refused("folder", folder(tmp_path, {name: b"PAR1", "README.md": b""}))
    assert "has no images below it" in text and f"but {name}: " in text and told in text


def test_a_list_of_labels_that_is_not_read_is_named(tmp_path):
    content = {f"{i}.png": picture(i) for i in range(8)} | {"labels.csv": b"file,label\n0.png,cat\n"}
    assert "labels.csv is not read" in refused("folder", folder(tmp_path, content), conditional=True)


def test_arrays_of_half_the_range_are_noted(tmp_path):
    x = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    for name, values, notes in (("half", x, 1), ("whole", 2 * x - 1, 0)):
        np.savez(tmp_path / f"{name}.npz", x=values)
        found = samples(tmp_path / f"{name}.npz").notes
        assert len(found) == notes and all("half the range of images: of these save 2 * x - 1" in one for one in found)


def test_captions_as_windows_writes_them(tmp_path):
    mark = b"\xef\xbb\xbf"
    folder(tmp_path, {"beside/a.txt": mark + b"a cat\r\n"})
    assert read_captions(tmp_path / "beside", ["a.png"]) == ["a cat"]
    line = json.dumps({"file_name": "cat\\a.png", "text": "a cat"}).encode()
    folder(tmp_path, {"listed/metadata.jsonl": mark + line + b"\r\n"})
    assert read_captions(tmp_path / "listed", ["cat/a.png"]) == ["a cat"]
