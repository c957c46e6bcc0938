"""Classes of a recipe: shipped maps, files of data sets, ids written out; and all that answers in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from points_small import COLUMNS, VIEWS, drive, smallest

from xmodal_kd.modalities.points.adapter import PointsAdapter
from xmodal_kd.modalities.points.data.classes import EIGHT, SHIPPED, classes_of
from xmodal_kd.modalities.points.data.config import PointsData
from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.modalities.points.data.readers import READERS, RangeImages
from xmodal_kd.modalities.points.export.label import write_label
from xmodal_kd.modalities.points.use.segment import Segmenter
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

OFFICIAL = (
    "car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist", "road", "parking",
    "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole", "traffic-sign",
)  # fmt: skip
PATH = Path("a.label")


def test_semantickittis_map_is_the_official_one() -> None:
    found = classes_of("semantickitti")
    assert found.names == OFFICIAL
    assert found.labels(np.array([0, 1, 52, 99]), PATH).tolist() == [-1] * 4, "not counted"
    assert found.labels(np.array([10, 252, 13, 257, 60, 254]), PATH).tolist() == [0, 0, 4, 4, 8, 5]
    assert [found.table[id_] for id_ in found.written] == list(range(19)), "what is written is read back"
    with pytest.raises(
        UserError, match=r"a\.label: label id 7 and 1 others is out of range: semantickitti has no such"
    ):
        found.labels(np.array([10, 7, 8]), PATH)
    learnt = classes_of("semantickitti_learnt")
    assert (learnt.names, learnt.written) == (OFFICIAL, found.written), "written with the data set's ids"
    assert learnt.labels(np.arange(20), PATH).tolist() == list(range(-1, 19))


def test_nuscenes_map_has_the_sixteen_classes_of_the_challenge() -> None:
    found = classes_of("nuscenes")
    assert (len(found), found.names[0], found.names[6], found.names[-1]) == (16, "barrier", "pedestrian", "vegetation")
    assert sorted(found.table) == list(range(32)) and [found.table[id_] for id_ in found.written] == list(range(16))
    counted = {id_: found.names[index] for id_, index in found.table.items() if index >= 0}
    assert {counted[id_] for id_ in (2, 3, 4, 6)} == {"pedestrian"} and counted[15] == counted[16] == "bus"
    assert {0, 1, 5, 7, 8, 10, 11, 13, 19, 20, 29, 31} == set(found.table) - set(counted)


def test_a_data_sets_own_file_is_read_as_it_is(tmp_path: Path) -> None:
    """Its other keys are passed over, and its order of the ids does not matter."""
    content = yaml.safe_load(SHIPPED["semantickitti"].read_text())
    content |= {"color_map": {0: [0, 0, 0]}, "split": {"train": [0]}, "content": {0: 0.1}}
    content["learning_map"] = dict(reversed(content["learning_map"].items()))
    path = tmp_path / "semantic-kitti.yaml"
    path.write_text(yaml.safe_dump(content))
    mine, ours = classes_of(str(path)), classes_of("semantickitti")
    assert (mine.names, mine.table, mine.written) == (ours.names, ours.table, ours.written)
    content = {"sources": "kitti", "path": "x", "classes": str(path), **SPLITS}
    assert [one.path for one in PointsData.model_validate(content).listed()] == [path], "what a run is made from"
    assert not list(PointsData.model_validate(content | {"classes": "nuscenes"}).listed())


def test_ids_written_out_leave_all_others_uncounted() -> None:
    found = classes_of({"car": (10, 252), "road": (40,)})
    assert found.names == ("car", "road") and found.written == (10, 40)
    assert found.labels(np.array([[252, 40], [7, 0]]), PATH).tolist() == [[0, 1], [-1, -1]]


def test_the_eight_are_what_they_were() -> None:
    assert EIGHT.names == CLASSES and len(CLASSES) == 8
    assert EIGHT.labels(np.array([40, 72, 48, 10, 252, 13, 258, 50, 80, 71, 31, 255, 11, 99]), PATH).tolist() == [
        0, 0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 7, -1, -1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("semantikitti", "no classes are called 'semantikitti' .*semantickitti"),
        ("gone.yaml", "gone.yaml is missing"),
        ({"car": [10], "road": [10]}, "id 10 is of 'car' and of 'road'"),
        ({"car": [10], "road": []}, "class 'road' has no ids"),
        ({"car": [10]}, "1 classes: give 2 to 127"),
        ({"car": [10], "road": [70000]}, "65535"),
    ],
)
def test_classes_that_cannot_be_are_refused_in_one_line(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointsData.model_validate({"sources": "kitti", "path": "x", "classes": spec, **SPLITS})


SPLITS = {"train": {"last": 2}, "dev": {"first": 2, "last": 3}, "test": {"first": 3, "last": 4}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: {0: a}", "learning_map: Field required: the shape of semantic-kitti.yaml"),
        ("labels: {0: a, 1: b}\nlearning_map: {0: 0, 1: x}", "learning_map.1: "),
        ("labels: {0: a, 1: b}\nlearning_map: {0: 0, 1: 1, 2: 2}", "no name for id 2"),
        ("labels: {0: a, 1: b, 2: b}\nlearning_map: {0: 0, 1: 1, 2: 2}", "two classes are called 'b'"),
        ("labels: [", "not YAML"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"map.yaml: .*{message}"):
        classes_of(str(path))


def test_what_the_eight_alone_have_is_said() -> None:
    with pytest.raises(ValueError, match="the simulator labels its streets with its own eight"):
        PointsData.model_validate({"classes": "semantickitti"})
    with pytest.raises(ValueError, match="range_images needs classes"):
        PointsData.model_validate({"sources": "range_images", "path": "x", **SPLITS})
    with pytest.raises(ValueError, match="no class is called 'ground'"):
        view = {"sees": "range", "classes": ["ground", "car"]}
        PointsData.model_validate({"sources": "kitti", "path": "x", "classes": "nuscenes", "teacher": view, **SPLITS})


def streets(folder: Path, **more: Any) -> PointsAdapter:
    """Four simulated frames as SemanticKITTI has them: two to train on, one and one to measure on."""
    content = {"sources": "semantickitti", "path": drive(folder), "classes": "semantickitti", **SPLITS,
               "teacher": VIEWS["scan"], "student": VIEWS["sparse"], "supervoxels": 3}  # fmt: skip
    return PointsAdapter(PointsData.model_validate(content | more), Streams(1), 2)


def test_a_run_answers_in_the_classes_of_its_recipe(tmp_path: Path) -> None:
    made = streets(tmp_path / "data")
    made.begin("student", range(2))
    assert made.class_names("student") == OFFICIAL and len(made.data("train").count()) == 19
    model = smallest(made, "student").requires_grad_(False).eval()
    found = made.evaluate("student", model, "test")
    assert set(found.metrics["iou"]) <= set(OFFICIAL) and "miou_official" not in found.metrics
    made.save("student", model, tmp_path / "saved")
    card = read_json(tmp_path / "saved/card.json")
    assert tuple(card["classes"]) == OFFICIAL and card["label_ids"][:3] == [10, 11, 15]
    again = made.load("student", tmp_path / "saved")
    batch = made.data("test").collate([made.data("test").clean(0)])
    assert torch.equal(made.answer("student", again.eval(), batch), made.answer("student", model, batch))
    segmenter = Segmenter(tmp_path / "saved")
    scan = made.data("test").frames[0][0].scan
    ids = np.frombuffer(
        write_label(
            tmp_path / "a.label", segmenter.segment(scan).labels, card["classes"], card["label_ids"]
        ).read_bytes(),
        "<u4",
    )
    assert set(ids.tolist()) <= {0, *card["label_ids"]}
    eight = streets(tmp_path / "eight", classes=None)
    with pytest.raises(UserError, match="its class 0 is 'car', here it is 'ground'"):
        eight.load("student", tmp_path / "saved")
    eight.save("student", smallest(eight, "student"), tmp_path / "plain")
    assert "label_ids" not in read_json(tmp_path / "plain/card.json"), "the card of the eight is what it was"


def test_an_id_that_means_no_label_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the id of class 'road' is 0"):
        write_label(tmp_path / "a.label", np.array([0]), ("road", "car"), (0, 1))


def image(folder: Path, name: str, rows: int = 8, **more: Any) -> Path:
    """A range image whose last row has no return."""
    azimuth = np.pi - 2 * np.pi * (np.arange(32) + 0.5) / 32
    up = np.radians(np.linspace(2, -20, rows))[:, None]
    xyz = 10 * np.stack([np.cos(up) * np.cos(azimuth), np.cos(up) * np.sin(azimuth), np.sin(up) + 0 * azimuth], axis=-1)
    xyz[-1] = 0
    label = np.where(np.arange(32) < 16, 3, 200).astype(np.uint8) + np.zeros((rows, 1), np.uint8)
    arrays = {"xyz": xyz.astype("f4"), "intensity": np.full((rows, 32), 51, "f4"), "label": label} | more
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **{key: value for key, value in arrays.items() if value is not None})
    return folder


def test_a_range_image_is_its_returns_by_row(tmp_path: Path) -> None:
    classes = classes_of({"near": (3,), "far": (4,)})
    reader = RangeImages(image(tmp_path / "a", "000"), classes)
    scan = reader.frame(0).scan
    assert (len(scan), scan.beams, reader.keys, reader.labelled(0)) == (7 * 32, 8, ["000"], True)
    assert scan.ring is not None and (np.bincount(scan.ring, minlength=8) == [32] * 7 + [0]).all()
    assert scan.labels is not None and (np.bincount(scan.labels + 1) == [7 * 16, 7 * 16]).all()
    assert scan.intensity.max() == np.float32(0.2), "0 to 255 is brought to 0 to 1"
    plain = READERS["range_images"](tmp_path / "a")
    assert plain.classes == () and plain.frame(0).scan.labels is None, "the eight have no ids there"
    image(tmp_path / "b/01", "000")
    assert RangeImages(image(tmp_path / "b/02", "000").parent, classes).keys == ["01/000", "02/000"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"xyz": None}, "no array 'xyz'"),
        ({"xyz": np.zeros((8, 32, 3), "f4")}, "all 256 cells are empty"),
        ({"intensity": np.zeros((8, 31))}, "'intensity' must be numbers 8x32, got float64"),
        ({"label": np.zeros((8, 32))}, "'label' must be numbers 8x32, got float64"),
        ({"xyz": np.ones((8, 32))}, "'xyz' must be numbers rowsxcolumnsx3"),
    ],
)
def test_a_range_image_that_is_none_is_refused_by_its_array(tmp_path: Path, more: Any, message: str) -> None:
    reader = RangeImages(image(tmp_path, "000", **more), classes_of({"near": (3,), "far": (4,)}))
    with pytest.raises(UserError, match=f"000.npz: .*{message}"):
        reader.frame(0)


def test_range_images_are_taught_and_measured(tmp_path: Path) -> None:
    for number in range(4):
        image(tmp_path, f"{number:03d}", rows=64, label=np.full((64, 32), number % 2 + 1, np.uint8))
    content = {"sources": "range_images", "path": tmp_path, "classes": {"odd": [2], "even": [1]}, **SPLITS,
               "teacher": {"sees": "range", "columns": COLUMNS}, "student": VIEWS["sparse"]}  # fmt: skip
    made = PointsAdapter(PointsData.model_validate(content), Streams(1), 2)
    made.begin("student", range(2))
    seen = made.data("train").clean(1).student
    assert set(seen.labels[seen.valid].tolist()) == {0} and seen.inputs.shape == (5, 16, COLUMNS)
    found = made.evaluate("student", smallest(made, "student").requires_grad_(False).eval(), "test")
    assert set(found.metrics["iou"]) <= {"odd", "even"} and found.metrics["rows"] == 16 * 32
