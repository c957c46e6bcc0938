"""COCO's keypoint annotations as people bring them: persons cut out of their images, splits, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xmodal_kd.modalities.images.adapter import ImagesAdapter
from xmodal_kd.modalities.images.data.keypoints.coco import annotations_of, cut_of, opened
from xmodal_kd.modalities.images.data.keypoints.source import load_figures
from xmodal_kd.modalities.images.data.source import ImagesData
from xmodal_kd.runtime.errors import UserError

NAMES = ["nose", "left_hand", "right_hand"]


def content(count: int = 12) -> dict[str, Any]:
    """So many images of 60x40, of two persons each, whose nose is a bright dot."""
    persons = [
        {
            "id": 10 * image + one, "image_id": image, "category_id": 3, "iscrowd": 0,
            "bbox": [5 + 25 * one, 5, 20, 30],
            "keypoints": [15 + 25 * one, 12, 2, 10 + 25 * one, 20, 1, 0, 0, 0],
        }
        for image in range(count) for one in (0, 1)
    ]  # fmt: skip
    return {
        "images": [{"id": i, "file_name": f"deep/{i:02d}.png", "width": 60, "height": 40} for i in range(count)],
        "annotations": persons,
        "categories": [
            {"id": 1, "name": "cat"}, {"id": 3, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]},
        ],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "coco", content())


def written(place: Path, said: dict[str, Any]) -> Path:
    (place / "annotations").mkdir(parents=True)
    (place / "images/deep").mkdir(parents=True)
    (place / "annotations/person_keypoints_mine.json").write_text(json.dumps(said))
    for image in said["images"]:
        picture = Image.new("RGB", (60, 40), (30, 60, 90))
        for at in (15, 40):
            picture.paste((255, 255, 255), (at - 1, 11, at + 1, 13))
        picture.save(place / "images" / image["file_name"])
    return place


def section(place: Path, **changed: Any) -> ImagesData:
    given = {"task": "keypoints", "sources": "coco", "path": place, "size": [32, 24], "dev": 2, "test": 3, **changed}
    return ImagesData(**given)


def test_persons_are_cut_out_by_their_boxes(folder: Path) -> None:
    config = section(folder, keypoints={"stride": 2})
    splits = {split: load_figures(config, split) for split in ("train", "dev", "test")}
    assert [len(one) for one in splits.values()] == [14, 4, 6], "dev and test count images, each with all its persons"
    names = [{key.partition("#")[0] for key in one.keys} for one in splits.values()]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    train = splits["train"]
    assert train.shape == (3, 32, 24) and train.skeleton.names == tuple(NAMES)
    assert train.skeleton.edges == ((0, 1), (0, 2)) and train.skeleton.mirrored == (0, 2, 1)
    assert train.visible[0].tolist() == [2, 1, 0]
    for i in range(len(train)):
        bright = train.x[[i]][0].astype(float).sum(axis=0)
        y, x = np.unravel_index(bright.argmax(), bright.shape)
        assert abs(x + 0.5 - train.joints[i, 0, 0]) <= 1.5 and abs(y + 0.5 - train.joints[i, 0, 1]) <= 1.5
    box = cut_of((5, 5, 20, 30), 32, 24, 1.25)
    assert train.sizes[0] == pytest.approx(30 * 32 / (box[3] - box[1]))
    assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(24 / 32, abs=0.02) and box[3] - box[1] == 38


def test_skipped_persons_and_files(folder: Path, tmp_path: Path) -> None:
    skip = tmp_path / "skip.txt"
    skip.write_text("deep/00.png#0\ndeep/00.png#1\n")
    config = section(folder, skip=skip)
    assert sum(len(load_figures(config, split)) for split in ("train", "dev", "test")) == 22
    listed = list(ImagesAdapter.files(config))
    assert load_figures(config, "train").skipped, "the report says how many"
    assert len(listed) == 12 and [one.key for one in listed[:2]] == ["data.path", "deep/01.png#10"]
    broken = folder / "images/deep/03.png"
    broken.write_bytes(b"no image")
    [one] = [one for one in listed if one.path == broken]
    with pytest.raises(UserError, match="not an image"):
        one.look(one.path)
    with pytest.raises(UserError, match=r"03\.png: not an image"):
        load_figures(config.model_copy(update={"dev": 3}), "train")


def test_a_test_path_of_its_own(folder: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other", content(4))
    config = section(folder, test_path=other / "annotations/person_keypoints_mine.json", test=None)
    assert [len(load_figures(config, split)) for split in ("train", "dev", "test")] == [20, 4, 8]
    few = section(folder, test_path=other, test=3)
    assert len(load_figures(few, "test")) == 6, "images, as dev counts them"
    with pytest.raises(UserError, match=r"data\.test: 5 test samples are asked for, .* has 4"):
        load_figures(section(folder, test_path=other, test=5), "test")
    said = content(4)
    said["categories"][1]["keypoints"] = ["nose", "right_hand", "left_hand"]
    (other / "annotations/person_keypoints_mine.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="give annotations of the same joints, in the same order"):
        load_figures(section(folder, test_path=other, test=None), "test")


def test_persons_that_teach_nothing_are_passed_over(tmp_path: Path) -> None:
    said = content(4)
    said["annotations"][0]["iscrowd"] = 1
    said["annotations"][1]["keypoints"] = [0] * 9
    said["annotations"][2]["category_id"] = 1
    assert len(annotations_of(written(tmp_path / "x", said)).persons) == 5


def first(said: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = said["annotations"][0]
    return found


REFUSED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c.pop("categories"), "no keypoint annotations of COCO: it needs the lists images, annotations"),
    (lambda c: first(c).update(image_id=99), "annotation 0: there is no image 99 in images"),
    (lambda c: first(c).update(keypoints=[1, 2]), "annotation 0: keypoints must be x, y, v of 3 joints"),
    (lambda c: first(c).update(keypoints=[1, 2, "?"] * 3), "keypoints must be x, y, v"),
    (lambda c: first(c).update(keypoints=[1, 2, 5] * 3), "how visible a joint is must be 0, 1 or 2"),
    (lambda c: first(c).update(bbox=[0, 0, 0, 5]), "annotation 0: bbox: its sides are 0 and 5"),
    (lambda c: first(c).pop("bbox"), "annotation 0: bbox must be left, top, width, height"),
    (lambda c: c["images"][0].pop("file_name"), "an entry without id or file_name"),
    (lambda c: c["images"][0].update(id=[1]), "an entry without id or file_name"),
    (lambda c: first(c).update(image_id={}), "annotation 0: there is no image {} in images"),
    (lambda c: first(c).update(bbox=[0, 0, 10**400, 5]), "annotation 0: bbox must be left, top"),
    (lambda c: c["categories"][1].update(skeleton=7), "skeleton must be pairs of numbers from 1 to 3"),
    (lambda c: c["categories"][1].update(skeleton=[[1, 4]]), "skeleton must be pairs of numbers from 1 to 3"),
    (lambda c: c["categories"][0].update(keypoints=["tail"]), "has joints of cat, person: name one of them"),
    (lambda c: [one.update(keypoints=[0] * 9) for one in c["annotations"]], "no annotation of its category has"),
]


@pytest.mark.parametrize(("change", "says"), REFUSED, ids=[says[:30] for _, says in REFUSED])
def test_what_is_wrong_is_named(folder: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    said = content()
    change(said)
    (folder / "annotations/person_keypoints_mine.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=says):
        annotations_of(folder)


def test_a_box_of_more_than_an_image(folder: Path) -> None:
    said = content()
    first(said)["bbox"] = [0, 0, 30000, 30000]
    (folder / "annotations/person_keypoints_mine.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"mine\.json: deep/00\.png#0: a figure's box of 30000x30000 is cut out with"):
        load_figures(section(folder), "train")


def test_an_image_is_turned_as_its_camera_says(folder: Path) -> None:
    path = folder / "images/deep/00.png"
    pixels = np.asarray(opened(path, "L"))
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # seen upright when turned clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert np.array_equal(np.asarray(opened(path, "L")), pixels)


def test_where_files_are_looked_for(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no JSON file: give the file of COCO's keypoint annotations"):
        annotations_of(folder / "images")
    with pytest.raises(UserError, match="does not exist"):
        annotations_of(tmp_path / "gone")
    (folder / "images").rename(folder / "mine")  # as COCO's own: the split's name is the folder's
    assert annotations_of(folder).images == folder / "mine"
    (folder / "mine").rename(folder / "elsewhere")
    with pytest.raises(UserError, match=r"its image deep/00\.png is in none of"):
        annotations_of(folder)
    with pytest.raises(UserError, match=r"no joints of 'persn' \(nearest: person\)"):
        annotations_of(folder, "persn")


def test_splits_that_leave_nothing(folder: Path) -> None:
    with pytest.raises(UserError, match="has 12 images with figures, of which dev and test take 12: none are left"):
        load_figures(section(folder, dev=6, test=6), "train")
