"""Boxes as labels: of the simulator, of KITTI and nuScenes, and what a recipe of detection may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from xmodal_kd.modalities.points.data.config import PointsData
from xmodal_kd.modalities.points.data.detection_config import Detection
from xmodal_kd.modalities.points.data.frame import CLASSES, Box
from xmodal_kd.modalities.points.data.frames import frames_of
from xmodal_kd.modalities.points.data.readers import READERS
from xmodal_kd.modalities.points.data.simulator.cast import simulate
from xmodal_kd.modalities.points.data.simulator.sensors import SENSORS
from xmodal_kd.runtime.errors import UserError

SEES = {"task": "detection", "teacher": {"sees": "pillars"}, "student": {"sees": "pillars", "beams": 16}}


def test_the_simulator_counts_the_points_on_its_things() -> None:
    frame = simulate("train", 0, SENSORS["hdl64e"].with_columns(128))[0]
    assert frame.boxes
    for box in frame.boxes:
        assert box.points is not None and box.points >= 1
        assert box.level == (box.points < 50) + (box.points < 15) + (box.points < 5)
    assert frame.scan.labels is not None
    for name in ("car", "truck", "person"):
        points = sum(box.points or 0 for box in frame.boxes if box.name == name)
        assert points == (frame.scan.labels == CLASSES.index(name)).sum()


def test_levels_of_kitti_are_those_of_its_benchmark(kitti: Path) -> None:
    """By hand, of the label files: heights in pixels 165, 33, 22, 30 (occluded: 3), 161, 33."""
    reader = READERS["kitti"](kitti)
    boxes = {key: reader.frame(i, pictures=False).boxes for i, key in enumerate(reader.keys)}
    assert [b.level for b in boxes["training/000000"] or ()] == [0]
    assert [(b.name, b.level) for b in boxes["training/000001"] or ()] == [("Truck", 1), ("Car", 3), ("Cyclist", 3)]
    assert [b.level for b in boxes["training/000002"] or ()] == [0, 1]
    assert all(b.points for b in boxes["training/000000"] or ())
    assert boxes["testing/000000"] is None and reader.boxed(0) != reader.boxed(len(reader) - 1)


def test_nuscenes_boxes_are_labels_too(nuscenes_frame: Path) -> None:
    reader = READERS["nuscenes"](nuscenes_frame)
    boxes = reader.frame(0, pictures=False).boxes
    assert reader.boxed(0) and boxes and max(b.points or 0 for b in boxes if b.name == "truck") == 479


def test_frames_of_detection_are_labelled_by_boxes(kitti: Path) -> None:
    parts = {"train": {"first": 2, "last": 5}, "dev": {"first": 5, "last": 6}, "test": {"first": 0, "last": 2}}
    data = PointsData.model_validate(SEES | {"sources": "kitti", "path": str(kitti), **parts})
    frames = frames_of(data, "train")
    assert len(frames) == 3 and frames.labelled == [0, 1, 2]
    assert data.needs_pictures, "KITTI's boxes are those of what its photograph shows"
    parts |= {"test": {"first": 6, "last": 8}}
    data = PointsData.model_validate(SEES | {"sources": "kitti", "path": str(kitti), **parts})
    with pytest.raises(UserError, match="kitti has no boxes, so nothing can be measured on test"):
        frames_of(data, "test")


def test_what_is_a_thing_to_find() -> None:
    looks = Detection(range=(-8, -8, 8, 8), classes={"car": ("Car",), "person": ("Pedestrian", "person")}, points=2)

    def box(name: str, x: float = 0.0, points: int | None = 5) -> Box:
        return Box(name, (x, 0.0, 0.0), (4.0, 2.0, 1.5), 0.0, points)

    assert [looks.number(box(name)) for name in ("car", "PEDESTRIAN", "Van")] == [0, 1, -1]
    assert looks.wanted(box("car")) and looks.wanted(box("car", points=None)) and looks.wanted(box("car", -8.0))
    assert not looks.wanted(box("car", points=1)) and not looks.wanted(box("car", 8.0)) and not looks.wanted(box("van"))


@pytest.mark.parametrize(("content", "said"), [
    ({"task": "detection"}, "task detection and a view that sees range: it needs pillars or image: set sees to one"),
    ({"student": {"sees": "pillars"}}, "it needs no pillars: set data.task to detection"),
    (SEES | {"detection": {"range": [0, 0, 10, 10]}}, "25 x 25 pillars of 0.4 m: give sides that are multiples"),
    (SEES | {"detection": {"range": [8, 0, 0, 8]}}, "holds no ground"),
    (SEES | {"detection": {"classes": {"a": ["x"], "b": ["X"]}}}, "'x' stands there twice"),
    (SEES | {"detection": {"classes": {"a": []}}}, "name at least one, each with the names"),
    (SEES | {"sources": "semantickitti", "path": "."}, "semantickitti has no boxes: detection needs one of simulator"),
    (SEES | {"measure": "points"}, "real and measure are of segmentation: leave them out"),
])  # fmt: skip
def test_what_a_recipe_of_detection_may_not_say(content: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PointsData.model_validate(content)
