"""All points of a scan, counted as SemanticKITTI's own program counts the files that `segment` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from oracles.semantickitti_api import scores
from points_small import VIEWS, drive, smallest
from shared_data import shared

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.points.adapter import PointsAdapter
from xmodal_kd.modalities.points.data.classes import SHIPPED
from xmodal_kd.modalities.points.data.config import PointsData
from xmodal_kd.modalities.points.evaluate.metrics import PointTally
from xmodal_kd.runtime.random_streams import Streams

MAP = yaml.safe_load(SHIPPED["semantickitti"].read_text())


def held_against_the_api(folder: Path, student: str, columns: int, frames: int, tmp_path: Path) -> None:
    """Train nothing: an untrained 19-class model that is sure of something, measured and written out."""
    content = {
        "sources": "semantickitti", "path": folder, "classes": "semantickitti", "measure": "points",
        "train": {"last": 1}, "dev": {"first": 1, "last": 2}, "test": {"first": 2, "last": 2 + frames},
        "teacher": VIEWS["scan"], "student": VIEWS[student] | {"columns": columns},
    }  # fmt: skip
    made = PointsAdapter(PointsData.model_validate(content), Streams(1), 1)
    model = smallest(made, "student").eval()
    with torch.no_grad():
        model.head.weight.mul_(20)
        found = made.evaluate("student", model, "test").metrics
    made.save("student", model, tmp_path / "saved")
    keys = made.data("test").frames.frames.reader.keys[2 : 2 + frames]  # type: ignore[attr-defined]
    names = [key.rpartition("/")[2] for key in keys]
    sequence = folder / "sequences/00"
    scans = [str(sequence / f"velodyne/{name}.bin") for name in names]
    out = tmp_path / "out"
    assert (
        call(["segment", str(tmp_path / "saved"), *scans, "--format", "semantickitti", "--out", str(out), "--json"])
        == 0
    )
    pairs = [(sequence / f"labels/{n}.label", out / f"sequences/00/predictions/{n}.label") for n in names]
    mean, by_class = scores(pairs, MAP["learning_map"], 19)
    assert found["miou_official"] == pytest.approx(mean, abs=1e-12) and mean > 0
    ours = {name: found["iou_points"].get(name, 0.0) for name in by_name(by_class)}
    assert ours == pytest.approx(by_name(by_class), abs=1e-12)
    assert found["miou_points"] >= found["miou_official"] and found["points"] > found["rows"]


def by_name(by_class: dict[int, float]) -> dict[str, float]:
    return {MAP["labels"][MAP["learning_map_inv"][c]]: value for c, value in by_class.items()}


@pytest.mark.parametrize("student", ["sparse", "points"])
def test_the_official_numbers_are_those_of_the_files_that_segment_writes(
    tmp_path: Path, student: str, capsys: pytest.CaptureFixture[str]
) -> None:
    held_against_the_api(drive(tmp_path / "data", 4), student, 64, 2, tmp_path)


def test_a_real_scan_counts_as_the_official_program_counts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_against_the_api(shared("lidar_labelled") / "semantickitti", "sparse", 256, 1, tmp_path)


def test_a_point_without_an_answer_is_a_miss_and_an_absent_class_counts_0_officially() -> None:
    tally = PointTally(("road", "car", "person", "pole"))
    tally.add(np.array([0, -1, 0, 1, 3]), np.array([0, 0, 1, 1, -1]))
    found = tally.metrics()
    assert found["iou_points"] == {"road": pytest.approx(1 / 3), "car": pytest.approx(1 / 2)} and found["points"] == 4
    assert found["miou_points"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found["miou_official"] == pytest.approx((1 / 3 + 1 / 2) / 4)
