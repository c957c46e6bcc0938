"""What takes all roles to see: the sweep over beams, recorded frames, boxes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from points_small import COLUMNS, adapter, smallest
from torch import Tensor, nn

from xmodal_kd.modalities.points.data.config import Folder
from xmodal_kd.modalities.points.data.frame import CLASSES, Frame
from xmodal_kd.modalities.points.data.simulator.cast import simulate
from xmodal_kd.modalities.points.data.simulator.sensors import SENSORS
from xmodal_kd.modalities.points.show.overview import _names, answers, density, recorded


class Always(nn.Module):
    """Says one class of every cell."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label, self.nothing = label, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        said = torch.zeros(len(x), len(CLASSES), *x.shape[2:])
        said[:, self.label] = 1
        return said


class Few:
    """Recorded frames that lie in memory."""

    def __init__(self, sources: str, frames: list[Frame]) -> None:
        self.folder = Folder(sources=sources, path=Path("nowhere"))  # type: ignore[arg-type]
        self.frames, self.reader = frames, SimpleNamespace(warnings=["odd"])

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> list[Frame]:
        return [self.frames[i]]


def street(index: int) -> Frame:
    [frame] = simulate("test", index, SENSORS["hdl64e"].with_columns(COLUMNS))
    return frame


def test_a_role_is_measured_on_scans_of_fewer_and_fewer_beams(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    at = {(p["role"], p["beams"]): p["metrics"] for p in report["curve"]}
    assert sorted(at) == sorted((r, b) for r in report["roles"] for b in (64, 32, 16, 8))
    own = report["roles"]["student"]["metrics"]
    assert at["student", 16]["miou"] == pytest.approx(own["miou_own"]), "its own number of beams"
    assert at["teacher", 64]["rows"] > 3 * at["teacher", 16]["rows"] > 0
    assert at["student", 32]["rows"] == at["teacher", 32]["rows"], "on the same rows"


def test_only_those_who_see_single_scans_are_swept() -> None:
    made = adapter("image", "points")
    assert list(density(made, {"teacher": smallest(made, "teacher"), "student": smallest(made, "student")})) == []


def test_every_role_answers_for_the_points_that_it_sees() -> None:
    made, frame = adapter(), street(0)
    said = answers(made, {"teacher": Always(2), "student": Always(5)}, [frame])
    ring = frame.scan.ring
    assert ring is not None and (said["student"][ring % 4 == 0] == 5).mean() > 0.95
    assert (said["student"][ring % 4 > 0] == -1).all() and (said["teacher"] == 2).mean() > 0.95


def test_boxes_and_agreement_are_counted_over_frames(tmp_path: Path) -> None:
    made = adapter()
    frames = [street(i) for i in range(4)]
    inside = counted = 0
    for frame in frames:
        assert frame.boxes is not None and frame.scan.ring is not None
        seen = frame.scan.ring % 4 == 0
        cars = np.zeros(len(frame.scan), bool)
        for box in frame.boxes:
            cars |= (box.name == "car") & box.inside(frame.scan.xyz, 0.1)
        inside, counted = inside + int((cars & seen).sum()), counted + int(seen.sum())
    assert inside > 20
    found: dict[str, Path] = {}
    car = CLASSES.index("car")
    models = {"teacher": Always(car), "student": Always(car), "control": Always(0)}
    facts = recorded(made, models, Few("semantickitti", frames), tmp_path, found, "drive")  # type: ignore[arg-type]
    roles = facts["roles"]
    assert roles["student"]["car_recall"] == 1 and roles["control"]["car_recall"] == 0
    assert roles["student"]["car_precision"] == pytest.approx(inside / counted, rel=0.05)
    assert roles["student"]["points_in_cars"] == pytest.approx(inside, rel=0.05)
    assert (roles["student"]["agreement"], roles["control"]["agreement"], facts["majority_agreement"]) == (1, 0, 1)
    assert roles["teacher_direct"]["agreement"] == 1 and facts["frames"] == 4 and facts["warnings"] == ["odd"]
    assert found and all(path.parent == tmp_path / "drive" and path.stat().st_size > 1000 for path in found.values())


def test_folders_of_one_layout_are_told_apart() -> None:
    folders = [Few(name, []) for name in ("kitti_raw", "kitti", "kitti_raw")]
    assert _names(folders) == ["kitti_raw 1", "kitti", "kitti_raw 2"]  # type: ignore[arg-type]
