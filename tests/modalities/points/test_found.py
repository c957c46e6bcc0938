"""What a folder of scans tells of itself, and what is done with it: sensor, labels, splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xmodal_kd.adapter.sketch import SIZES, Given
from xmodal_kd.modalities.points.data.config import Folder
from xmodal_kd.modalities.points.data.found import scans
from xmodal_kd.modalities.points.data.frames import Recorded
from xmodal_kd.modalities.points.data.simulator.sensors import SENSORS, OwnSensor, Sensor, sensor
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


FORTY = OwnSensor(beams=40, top=10, bottom=-20)


def test_a_sensor_of_ones_own_is_measured(tmp_path: Path) -> None:
    sequence(tmp_path, 3, FORTY.made)
    assert scans(tmp_path).sensor == FORTY
    made = sketch(Given(None, tmp_path, SIZES["small"]))
    data = made.sections["data"]
    assert data["sensor"].value == {"beams": 40, "top": 10.0, "bottom": -20.0} and data["student"]["beams"].value == 10
    assert any("put its data sheet's numbers into data.sensor" in note for note in made.notes)
    with pytest.raises(UserError, match=r"is one of 64: say what it is: data\.sensor=\{beams: 40, "):
        Recorded(Folder(sources="semantickitti", path=tmp_path), SENSORS["hdl64e"])[0]


def test_what_is_said_of_a_sensor() -> None:
    made = sensor("{beams: 40, top: 7, bottom: -16, height: 2}", 96)
    assert (made.beams, made.columns, made.height) == (40, 96, 2.0)
    np.testing.assert_allclose(np.degrees(made.elevations[[0, -1]]), [7, -16])
    for said, wrong in (("{beams: 40}", "top"), ("{beams: 2, top: 1, bottom: 3}", "above bottom"), ("{a: [", "YAML")):
        with pytest.raises(UserError, match=wrong):
            sensor(said)


def test_sensors_that_do_not_fit(tmp_path: Path) -> None:
    sequence(tmp_path / "sixteen", 1, SENSORS["vlp16"])
    with pytest.raises(UserError, match=r"a scan of 16 beams, and data\.sensor is one of 64: set data.sensor to vlp16"):
        Recorded(Folder(sources="semantickitti", path=tmp_path / "sixteen"), SENSORS["hdl64e"])[0]
    with pytest.raises(UserError, match=r"is one of 40: set data\.sensor to vlp16"):
        Recorded(Folder(sources="semantickitti", path=tmp_path / "sixteen"), FORTY.made)[0]


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
