"""Simulated drives as SemanticKITTI sequences: read back by hand, and by the command's user."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.points.data.frame import CLASSES, Scan
from xmodal_kd.modalities.points.data.simulator.camera import CameraSpec
from xmodal_kd.modalities.points.data.simulator.cast import simulate
from xmodal_kd.modalities.points.data.simulator.sensors import sensor
from xmodal_kd.modalities.points.data.simulator.write import label_ids, write_semantickitti
from xmodal_kd.runtime.errors import UserError


def table(path: Path) -> np.ndarray:
    return np.array([[float(x) for x in line.split()] for line in path.read_text().splitlines()])


def square(row: np.ndarray) -> np.ndarray:
    return np.concatenate([row.reshape(3, 4), [[0, 0, 0, 1]]])


def test_a_sequence_holds_scans_labels_poses_calibration_times_and_pictures(tmp_path: Path) -> None:
    index = 3
    frames = simulate("train", index, sensor("hdl64e", 64), camera=CameraSpec(24, 80), sweeps=3)[::-1]
    folder = write_semantickitti(tmp_path, 7, frames)
    assert folder == tmp_path / "sequences/07"
    calibration = {
        name: square(np.array([float(x) for x in rest.split()]))
        for name, rest in (line.split(":") for line in (folder / "calib.txt").read_text().splitlines())
    }
    assert calibration.keys() == {"P0", "P1", "P2", "P3", "Tr"}
    poses = [square(row) for row in table(folder / "poses.txt")]
    assert table(folder / "times.txt").ravel().tolist() == pytest.approx([0, 0.1, 0.2]) and len(poses) == 3
    to_camera = calibration["Tr"]
    for number, frame in enumerate(frames):
        points = np.fromfile(folder / f"velodyne/{number:06d}.bin", "<f4").reshape(-1, 4)
        np.testing.assert_array_equal(points[:, :3], frame.scan.xyz)
        np.testing.assert_array_equal(points[:, 3], frame.scan.intensity)
        ids = np.fromfile(folder / f"labels/{number:06d}.label", "<u4")
        np.testing.assert_array_equal(ids, label_ids(frame.scan))
        rgb = np.asarray(Image.open(folder / f"image_2/{number:06d}.png"))
        np.testing.assert_array_equal(rgb, frame.pictures[0].rgb)
        lidar = np.linalg.inv(to_camera) @ poses[number] @ to_camera
        assert frame.pose is not None and frames[0].pose is not None
        np.testing.assert_allclose(lidar, np.linalg.inv(frames[0].pose) @ frame.pose, atol=1e-9)
        seen = np.c_[points[:, :3], np.ones(len(points))] @ (calibration["P2"] @ to_camera)[:3].T
        uv, depth = frame.pictures[0].camera.project(frame.scan.xyz)
        ahead = depth > 1
        np.testing.assert_allclose((seen[:, :2] / seen[:, 2:])[ahead], uv[ahead], rtol=1e-6, atol=1e-4)
    assert calibration["P2"][0, 3] != 0, "camera 2 has its baseline"
    with pytest.raises(UserError, match="07: exists already"):
        write_semantickitti(tmp_path, 7, frames)


def test_labels_become_the_numbers_of_semantickitti() -> None:
    n = len(CLASSES)
    labels = np.array([*range(n), -1, CLASSES.index("car"), CLASSES.index("truck"), CLASSES.index("person")])
    moving = np.arange(n + 4) > n
    scan = Scan(np.zeros((n + 4, 3)), np.zeros(n + 4), labels=labels, moving=moving)
    assert label_ids(scan).tolist() == [40, 48, 10, 18, 50, 80, 70, 30, 0, 252, 258, 254]
    assert label_ids(Scan(scan.xyz, scan.intensity, labels=labels)).tolist()[-3:] == [10, 18, 30]


def test_frames_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_semantickitti(tmp_path, 0, [])
    frame = simulate("train", 0, sensor("vlp16", 32))[0]
    assert write_semantickitti(tmp_path, 1, [frame]).is_dir(), "without pictures"
    assert not (tmp_path / "sequences/01/image_2").exists()


def test_the_command_writes_drives_and_says_where(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = ["simulate", str(tmp_path), "--frames", "2", "--drives", "2", "--sensor", "vlp16", "--columns", "64"]
    assert call([*made, "--family", "dev", "--json"]) == 0
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [Path(drive["folder"]) for drive in told] == [tmp_path / "sequences/00", tmp_path / "sequences/01"]
    sizes = [sum(p.stat().st_size for p in Path(drive["folder"]).glob("velodyne/*.bin")) for drive in told]
    assert sizes == [16 * drive["points"] for drive in told] and sizes[0] != sizes[1]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--family", "trian"], "family 'trian' of worlds is unknown (nearest: train)"),
        (["--sensor", "x"], "sensor 'x' is unknown (known: hdl32e, hdl64e, "),
        (["--frames", "41"], "--frames"),
        (["--drives", "3"], "sequences/02: exists already"),
    ],
)
def test_the_command_refuses_in_one_line_before_it_writes(
    options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sequences/02").mkdir(parents=True)
    assert call(["simulate", str(tmp_path), *options]) == 2
    told = capfd.readouterr()
    [line] = told.err.splitlines()
    assert line.startswith("error: ") and message in line and told.out == ""
    assert [path.name for path in (tmp_path / "sequences").iterdir()] == ["02"]
