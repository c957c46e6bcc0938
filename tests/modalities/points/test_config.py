"""The `data` section: what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from xmodal_kd.modalities.points.data.config import Folder, Frames, PointsData, View

RECORDED: dict[str, Any] = {
    "sources": "semantickitti", "path": "drives", "train": {"last": 4}, "dev": {"first": 4, "last": 6},
    "test": {"first": 6},
}  # fmt: skip


def test_recorded_splits_may_come_in_any_order() -> None:
    made = PointsData.model_validate(RECORDED | {"train": {"first": 6}, "test": {"last": 4}})
    assert made.path == Path("drives") and made.train == Frames(first=6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": None}, "semantickitti needs path"),
        ({"dev": None}, "need train, dev and test"),
        ({"dev": {"first": 3, "last": 6}}, "overlap"),
        ({"dev": {"first": 4}}, "overlap"),  # up to the end, as test is
        ({"dev": {"first": 4, "last": 4}}, "no frames from 4 up to 4"),
        ({"train": {"first": -1, "last": 4}}, "greater than or equal to 0"),
        ({"student": {"sees": "image", "beams": 16}}, "an image has no beams"),
        ({"student": {"sees": "image", "sweeps": 2}}, "an image has no beams, no sweeps and no intensity"),
        ({"balance": 1.5}, "less than or equal to 1"),
        ({"sources": "waymo"}, "'simulator', 'kitti'"),
        ({"augment": {"rotat": True}}, "Extra inputs"),
        ({"unlabelled": {"sources": "kitti", "path": "drives", "frames": {"first": 7}}}, "unlabelled and test overlap"),
        ({"sources": "simulator"}, "path is of recorded frames"),
        ({"sources": "simulator", "path": None}, "train is of recorded frames"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PointsData.model_validate(RECORDED | change)


def test_frames_that_are_learnt_from_are_not_measured_on() -> None:
    real = [{"sources": "kitti_raw", "path": "a"}, {"sources": "kitti_raw", "path": "b", "frames": {"first": 5}}]
    mine = {"sources": "kitti_raw", "path": "b", "frames": {"last": 5}}
    assert PointsData.model_validate({"real": real, "unlabelled": mine}).unlabelled == Folder.model_validate(mine)
    with pytest.raises(ValidationError, match=r"unlabelled and real\.1 overlap"):
        PointsData.model_validate({"real": real, "unlabelled": mine | {"frames": {"last": 6}}})


def test_spans_overlap_where_they_share_a_frame() -> None:
    assert not Frames(last=4).overlaps(Frames(first=4)) and not Frames(first=4).overlaps(Frames(last=4))
    assert Frames(last=5).overlaps(Frames(first=4)) and Frames().overlaps(Frames(first=9))
    assert Frames(first=2, last=3).overlaps(Frames(first=1, last=9))


@pytest.mark.parametrize(("teacher", "student", "pictures"), [
    ("range", "range", False), ("image", "range", True), ("range", "image", True), ("points", "range", False),
])  # fmt: skip
def test_pictures_are_made_only_where_somebody_looks(teacher: str, student: str, pictures: bool) -> None:
    made = PointsData(teacher=View(sees=teacher), student=View(sees=student))  # type: ignore[arg-type]
    assert made.needs_pictures is pictures
