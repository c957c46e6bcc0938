"""What a folder of scans tells of itself, and what is done with it: sensor, labels, splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal_kd.adapter.sketch import SIZES, Given, Noted
from xmodal_kd.modalities.points.data.config import Folder, PointsData
from xmodal_kd.modalities.points.data.found import scans
from xmodal_kd.modalities.points.data.frame import Scan
from xmodal_kd.modalities.points.data.frames import Recorded
from xmodal_kd.modalities.points.data.measured_sensor import alike, measured
from xmodal_kd.modalities.points.data.simulator.sensors import SENSORS, Sensor, SensorSpec, sensor
from xmodal_kd.modalities.points.use.sketch import sketch
from xmodal_kd.runtime.errors import UserError

ROAD = 40


def sequence(folder: Path, frames: int, sensor: Sensor, labelled: bool = True) -> Path:
    """Frames of a round wall, laser by laser as KITTI has them."""
    rays = sensor.with_columns(64).rays().reshape(-1, 3) * 10
    for kind in ("velodyne", *(["labels"] if labelled else [])):
        (folder / kind).mkdir(parents=True)
    for i in range(frames):
        points = np.concatenate([rays, np.full((len(rays), 1), 0.5, np.float32)], axis=1).astype(np.float32)
        points.tofile(folder / f"velodyne/{i:06d}.bin")
        if labelled:
            np.full(len(points), ROAD, np.uint32).tofile(folder / f"labels/{i:06d}.label")
    return folder


def test_labelled_frames_are_split_by_time(tmp_path: Path) -> None:
    sequence(tmp_path / "sequences/00", 5, SENSORS["hdl64e"])
    found = scans(tmp_path)
    assert (found.sources, found.sensor, found.frames, found.train) == ("semantickitti", "hdl64e", 5, 3)
    assert found.splits is not None
    assert [found.splits[name].value for name in ("train", "dev", "test")] == [
        {"first": 0, "last": 3}, {"first": 3, "last": 4}, {"first": 4, "last": 5},
    ]  # fmt: skip


def test_sequences_stay_whole_and_those_without_labels_join(tmp_path: Path) -> None:
    for name in ("00", "01", "02", "03"):
        sequence(tmp_path / "sequences" / name, 2, SENSORS["vlp16"], labelled=name != "01")
    made = sketch(Given(None, tmp_path, SIZES["small"]))
    data = made.sections["data"]
    assert [data[name].value for name in ("train", "dev", "test")] == [["00"], ["02"], ["03"]]
    assert data["unlabelled"].value["frames"] == {"sequences": ["01"]} and data["sensor"].value == "vlp16"
    assert data["student"]["beams"].value == 4


def test_frames_without_labels_join_simulated_streets(tmp_path: Path) -> None:
    sequence(tmp_path, 3, SENSORS["nuscenes32"], labelled=False)
    made = sketch(Given(None, tmp_path, SIZES["small"]))
    data = made.sections["data"]
    assert data["sources"].value == "simulator" and data["sensor"].value == "nuscenes32"
    assert data["unlabelled"].value["frames"] == {"first": 0, "last": 2} and data["unlabelled"].value["repeat"] == 40
    assert data["real"][0].value["frames"] == {"first": 2, "last": 3}
    assert any("no labels by point" in note for note in made.notes)


def test_sensors_that_do_not_fit(tmp_path: Path) -> None:
    sequence(tmp_path / "sixteen", 1, SENSORS["vlp16"])
    with pytest.raises(UserError, match=r"of 16 beams, and data\.sensor is one of 64: set data.sensor to vlp16, or to"):
        Recorded(Folder(sources="semantickitti", path=tmp_path / "sixteen"), SENSORS["hdl64e"])[0]


@pytest.mark.parametrize(
    "degrees", [np.linspace(10, -20, 40), np.degrees(SENSORS["vlp32c"].elevations) * 1.5], ids=["even", "uneven"]
)
def test_a_sensor_of_no_preset_is_measured(tmp_path: Path, degrees: np.ndarray) -> None:
    sequence(tmp_path, 5, Sensor("own", np.radians(degrees), 64, 100.0, 1.7))
    found = scans(tmp_path)
    assert isinstance(found.sensor, SensorSpec) and (found.sensor.elevations is None) == (len(degrees) == 40)
    np.testing.assert_allclose(np.degrees(sensor(found.sensor).elevations), degrees, atol=0.02)
    made = sketch(Given(None, tmp_path, SIZES["small"]))
    written = PointsData.model_validate(plain(made.sections["data"]))
    assert written.sensor == found.sensor and written.lidar.beams == len(degrees) == 4 * (written.student.beams or 0)


def test_sensors_are_alike_by_where_their_lasers_look() -> None:
    even = sensor(SensorSpec(beams=40, fov=(-25, 15)))  # the ends of a Pandar40P, not its lasers
    assert alike(even, even) and not alike(sensor("pandar40p"), even) and not alike(sensor("hdl64e"), even)
    lower = sensor(SensorSpec(beams=40, fov=(-26, 14)))
    assert alike(even, lower)


def test_rings_that_saw_nothing_are_filled_in() -> None:
    lidar = Sensor("own", np.radians(np.linspace(10, -20, 16)), 64, 100.0, 1.7)
    xyz = (lidar.rays() * 10).astype(np.float32)
    ring = np.repeat(np.arange(16), 64)
    seen = ~np.isin(ring, (0, 1, 7, 15))  # the sky, a gap, the car
    scan = Scan(xyz.reshape(-1, 3)[seen], np.zeros(int(seen.sum()), np.float32), ring=ring[seen], beams=16)
    spec = measured(scan, 16)
    assert (spec.beams, spec.fov, spec.max_range) == (16, (-20.0, 10.0), 100.0)
    assert measured(replace(scan, xyz=scan.xyz * 17), 16).max_range == 180.0


def plain(value: Any) -> Any:
    if isinstance(value, Noted):
        return plain(value.value)
    return {key: plain(part) for key, part in value.items()} if isinstance(value, dict) else value


def test_too_little_to_split_and_no_layout(tmp_path: Path) -> None:
    sequence(tmp_path / "few", 2, SENSORS["vlp16"])
    with pytest.raises(UserError, match="at least 3 are needed"):
        scans(tmp_path / "few")
    sequence(tmp_path / "set/sequences/00", 3, SENSORS["vlp16"])
    (tmp_path / "few/velodyne").rename(tmp_path / "few/scans")
    with pytest.raises(UserError, match="in no layout that is read here"):
        scans(tmp_path / "few")
    with pytest.raises(UserError, match=f"--data {tmp_path / 'set'}"):
        scans(tmp_path)


def answers(folder: Path, keys: list[str], points: int, classes: int = 8) -> Path:
    """Logits of scans by a segmenter elsewhere."""
    for key in keys:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{key}.npy", np.zeros((points, classes), np.float16))
    return folder


def test_logits_from_elsewhere_teach_what_they_are_of(tmp_path: Path) -> None:
    points = len(SENSORS["hdl64e"].with_columns(64).rays().reshape(-1, 3))
    sequence(tmp_path / "scans/sequences/00", 5, SENSORS["hdl64e"])
    keys = [f"00/{i:06d}" for i in range(5)]
    data = Given(answers(tmp_path / "all", keys, points), tmp_path / "scans", SIZES["small"])
    made = sketch(data)
    assert not made.problems and "teacher" not in made.sections["data"] and "classes" not in made.sections["data"]
    assert set(made.sections["teacher"]) == {"signals"}
    few = sketch(replace(data, teacher=answers(tmp_path / "few", keys[:2], points, classes=19)))
    assert few.sections["teacher"]["on_missing"].value == "skip" and "no logits of 3 of 5 scans" in " ".join(few.notes)
    assert few.sections["data"]["classes"].value == "semantickitti"


def test_logits_of_scans_without_labels_teach_beside_simulated_ones(tmp_path: Path) -> None:
    sequence(tmp_path / "scans", 3, SENSORS["nuscenes32"], labelled=False)
    points = len(SENSORS["nuscenes32"].with_columns(64).rays().reshape(-1, 3))
    folder = answers(tmp_path / "said", [f"scans/{i:06d}" for i in range(3)], points)
    (folder / "vocab.json").write_text('["ground", "building", "tree", "pole", "car"]')
    made = sketch(Given(folder, tmp_path / "scans", SIZES["small"]))
    assert not made.problems and made.sections["data"]["sources"].value == "simulator"
    assert made.sections["teacher"]["on_missing"].value == "skip"


@pytest.mark.parametrize(("names", "keys", "classes", "says"), [
    (None, ["01/000000"], 8, "holds logits of none of the 3 scans, whose keys are as in 'scans/000000'"),
    (None, ["scans/000000"], 3, "logits of 3 classes, which no map that comes along has: name the columns"),
    ('["cat", "dog"]', ["scans/000000"], 2, "names cat, dog, and no map that comes along"),
])  # fmt: skip
def test_logits_that_cannot_teach_are_refused(
    tmp_path: Path, names: str | None, keys: list[str], classes: int, says: str
) -> None:
    sequence(tmp_path / "scans", 3, SENSORS["vlp16"], labelled=False)
    folder = answers(tmp_path / "said", keys, 16, classes)
    if names is not None:
        (folder / "vocab.json").write_text(names)
    assert says in sketch(Given(folder, tmp_path / "scans", SIZES["small"])).problems[0]
