"""A saved student labels scans from files: every point, by the model's own answer where it sees the point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from points_small import AHEAD, save, street, write_calibration
from torch import nn

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.modalities.points.data.calibration import read_camera, read_picture
from xmodal_kd.modalities.points.data.config import PointsData, View
from xmodal_kd.modalities.points.data.files import read_points
from xmodal_kd.modalities.points.data.frame import CLASSES, UNLABELLED, Frame, Picture, Scan
from xmodal_kd.modalities.points.data.ply_pcd import read_ply
from xmodal_kd.modalities.points.data.suffixes import IN_FOLDERS, SUFFIXES
from xmodal_kd.modalities.points.export.ply import write_ply
from xmodal_kd.modalities.points.models import MODELS
from xmodal_kd.modalities.points.show.palette import COLOURS
from xmodal_kd.modalities.points.use.output import shares, stem
from xmodal_kd.modalities.points.use.segment import Segmenter, uncalibrated
from xmodal_kd.modalities.points.views.views import see
from xmodal_kd.runtime.errors import UserError


class PerPoint(nn.Module):
    """A model of point sets: says where along x a point is, and remembers how many it was given."""

    view = "points"

    class Config(Strict):
        pass

    def __init__(self, config: Any, *, channels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.classes, self.given = classes, list[int]()

    def forward(self, points: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        assert points.shape == (int(lengths.sum()), 4)
        self.given.append(len(points))
        ahead = (points[:, 0] > 0).long()
        return nn.functional.one_hot(ahead, self.classes).float() + self.weight


# --- range images


def test_every_point_has_the_models_answer_or_its_nearest_neighbours(sparse: Path) -> None:
    scan, segmenter = street(), Segmenter(sparse)
    found = segmenter.segment(scan)
    seen = see([Frame("x", scan)], segmenter.view, PointsData(student=segmenter.view))
    with torch.no_grad():
        best = segmenter.model(seen.inputs[None]).softmax(1).max(1)
    own, hidden = np.flatnonzero(seen.element >= 0), np.flatnonzero(seen.element < 0)
    assert (found.seen == (seen.element >= 0)).all() and 0.1 < found.seen.mean() < 0.3
    assert (found.labels[own] == best.indices.flatten().numpy()[seen.element[own]]).all()
    np.testing.assert_allclose(found.confidence[own], best.values.flatten().numpy()[seen.element[own]], rtol=1e-6)
    for i in hidden[::97]:
        nearest = own[np.linalg.norm(scan.xyz[own] - scan.xyz[i], axis=1).argmin()]
        assert found.labels[i] == found.labels[nearest] and found.confidence[i] == found.confidence[nearest]
    assert len(np.unique(found.labels)) > 2
    assert found.notes == ("16 of 64 beams are shown to the model, other points take the nearest's class",)


def test_a_file_without_rings_gives_what_one_with_rings_gives(sparse: Path) -> None:
    scan, segmenter = street(), Segmenter(sparse)
    found = segmenter.segment(Scan(scan.xyz, scan.intensity))
    assert (found.labels == segmenter.segment(scan).labels).mean() > 0.99
    assert "64 were looked for" in found.notes[0]


@pytest.mark.parametrize(
    ("sensor", "beams", "note"),
    [("vlp16", None, None), ("nuscenes32", None, "16 of 32 beams"), ("vlp16", 16, "16 were looked for")],
)
def test_scans_of_other_sensors(sparse: Path, sensor: str, beams: int | None, note: str | None) -> None:
    scan = street(sensor)
    scan = scan if beams is None else Scan(scan.xyz, scan.intensity)
    found = Segmenter(sparse).segment(scan, beams=beams)
    assert found.labels.min() >= 0 and (note is None) == (found.notes == ())
    assert note is None or note in found.notes[0]


def test_beams_that_cannot_be_thinned_become_bands_of_elevation(tmp_path: Path) -> None:
    folder = save(tmp_path, "range_unet", View(columns=64), 5, width=4)
    found = Segmenter(folder).segment(street("nuscenes32"))
    assert "the scan has 32 beams, the model knows 64" in found.notes[0] and found.labels.min() >= 0
    assert found.seen.mean() > 0.5


def test_returns_from_the_vehicle_have_no_label_and_hide_nothing(sparse: Path) -> None:
    scan, segmenter = street(), Segmenter(sparse)
    near = Scan(scan.xyz[:40] * (0.5 / scan.distance[:40, None]), scan.intensity[:40], scan.ring[:40], 64)
    both = Scan(*(np.concatenate([getattr(near, k), getattr(scan, k)]) for k in ("xyz", "intensity", "ring")), 64)
    found, alone = segmenter.segment(both), segmenter.segment(scan)
    assert (found.labels[:40] == UNLABELLED).all() and not found.seen[:40].any() and (found.confidence[:40] == 0).all()
    assert (found.labels[40:] == alone.labels).all() and "40 points within 1 m" in found.notes[-1]
    with pytest.raises(UserError, match="all 40 points lie within 1 m"):
        segmenter.segment(near)


def test_points_beyond_the_sensors_reach(sparse: Path) -> None:
    scan = street()
    far = Scan(scan.xyz * (200 / scan.distance[:, None]), scan.intensity, scan.ring, 64)
    with pytest.raises(UserError, match="1 to 100 m are needed"):
        Segmenter(sparse).segment(far)


def test_a_model_of_fused_sweeps_is_given_one(tmp_path: Path) -> None:
    folder = save(tmp_path, "range_unet", View(columns=64, sweeps=3), 5, width=4)
    found = Segmenter(folder).segment(street())
    assert found.notes == ("the model was trained on 3 fused sweeps and is given one",) and found.labels.min() >= 0


# --- points and photographs


def test_sets_of_points_have_the_size_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS._items, "per_point", PerPoint)
    scan = street()
    segmenter = Segmenter(save(tmp_path, "per_point", View(sees="points", points=1000), 4))
    found = segmenter.segment(scan)
    given = segmenter.model.given
    assert sum(given) == len(scan) and 900 <= min(given) <= max(given) <= 1000
    assert (found.labels == (scan.xyz[:, 0] > 0)).all() and found.seen.all() and found.notes == ()


@pytest.mark.parametrize(
    ("model", "params"),
    [("point_transformer", {"width": 16, "blocks": 2, "heads": 2}), ("voxel_unet", {"width": 4, "cell": 0.5})],
)
def test_a_model_of_points_labels_every_point(tmp_path: Path, model: str, params: dict[str, float]) -> None:
    view = View(sees="points", beams=16, points=1024)
    folder = save(tmp_path, model, view, 4, **params)
    found = Segmenter(folder).segment(street())
    assert found.labels.min() >= 0 and ((found.confidence > 1 / 8) & (found.confidence <= 1)).all()
    assert 0.2 < found.seen.mean() < 0.3 and "16 of 64 beams" in found.notes[0]


def test_photographs_are_labelled_and_the_points_that_they_show(camera_student: Path, picture: Picture) -> None:
    scan, segmenter = street(), Segmenter(camera_student)
    found = segmenter.segment(scan, picture=picture)
    uv, depth = picture.camera.project(scan.xyz)
    assert found.pixels is not None and found.pixels.shape == (64, 128) and len(np.unique(found.pixels)) > 2
    assert (found.seen == (found.labels >= 0)).all() and 100 < found.seen.sum() < (depth > 0).sum()
    u, v = np.floor(uv[found.seen]).astype(int).T
    assert (depth[found.seen] >= 1).all()
    assert (found.labels[found.seen] == found.pixels[v, u]).all(), "a point has its pixel's class"


def test_a_photograph_without_calibration_labels_pixels_only(camera_student: Path, picture: Picture) -> None:
    scan, segmenter = street(), Segmenter(camera_student)
    found, known = segmenter.segment(scan, picture=uncalibrated(picture.rgb)), segmenter.segment(scan, picture=picture)
    assert not found.seen.any() and (found.labels == UNLABELLED).all()
    assert found.pixels is not None and known.pixels is not None and (found.pixels == known.pixels).all()
    with pytest.raises(UserError, match="--image"):
        segmenter.segment(scan)


# --- files


def test_a_written_ply_is_read_back(tmp_path: Path) -> None:
    scan, labels = street(), np.tile([2, -1], 10**5)[: len(street())]
    confidence = np.linspace(0, 1, len(scan))
    path = write_ply(tmp_path / "deep" / "a.ply", scan.xyz, labels, confidence, CLASSES)
    found = read_ply(path)
    assert (np.stack([found[k] for k in "xyz"], axis=1) == scan.xyz).all() and (found["label"] == labels).all()
    assert tuple(found[k][0] for k in ("red", "green", "blue")) == COLOURS[2]
    np.testing.assert_allclose(found["confidence"], confidence, rtol=1e-6)
    assert b"comment labels ground pavement car" in path.read_bytes()[:200]
    assert (read_points(path).xyz == scan.xyz).all(), "our own reader takes it as a scan"


def test_names_and_shares() -> None:
    assert [stem(Path(f"d/{name}")) for name in ("a.bin", "b.PCD.bin", "c.d.npz", "e")] == ["a", "b", "c.d", "e"]
    assert [stem(Path("a" + end)) for end in SUFFIXES] == ["a"] * len(SUFFIXES) and set(IN_FOLDERS) <= set(SUFFIXES)
    assert list(shares(np.array([2, 2, 0, 2]), CLASSES).items()) == [("car", 0.75), ("ground", 0.25)]


def test_calibration_as_json(tmp_path: Path, picture: Picture) -> None:
    intrinsics, moved = read_camera(write_calibration(tmp_path / "c.json"))
    assert (intrinsics == picture.camera.intrinsics).all() and (moved == AHEAD).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intrinsics": [[1, 2], [3, 4]]}, "'intrinsics' must be 3 rows of 3"),
        ({"lidar_to_camera": None}, "'lidar_to_camera' must be 4 rows of 4"),
        ({"intrinsics": [[0, 0, 64], [0, 64, 32], [0, 0, 1]]}, "no camera's projection"),
        ({"lidar_to_camera": (2 * AHEAD).tolist()}, "not a rotation"),
    ],
)
def test_impossible_calibrations(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write_calibration(tmp_path / "c.json", **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_camera(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_kitti_calibration_puts_the_camera_where_the_reader_puts_it(kitti: Path, kitti_raw: Path) -> None:
    from xmodal_kd.modalities.points.data.readers import READERS

    part = kitti / "training"
    frame = READERS["kitti"](part).frame(2)
    found = read_picture(part / "image_2/000002.png", part / "calib/000002.txt", frame.scan)
    assert (found.camera.lidar_to_camera == frame.pictures[0].camera.lidar_to_camera).all()
    drive = kitti_raw / "2011_09_26/2011_09_26_drive_0000_sync"
    frame = READERS["kitti_raw"](drive).frame(0)
    assert (read_camera(drive)[1] == frame.pictures[0].camera.lidar_to_camera).all()
