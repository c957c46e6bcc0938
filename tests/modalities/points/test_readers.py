from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reader_files import photo, put, refused, scan

from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.modalities.points.data.readers import READERS, Kitti, KittiRaw, SemanticKitti
from xmodal_kd.modalities.points.data.readers.base import in_view

#: Real calibration, rounded: P2, R0_rect and Tr_velo_to_cam of KITTI object 000001.
P2 = "721.5377 0 609.5593 44.85728 0 721.5377 172.854 0.2163791 0 0 1 0.002745884"
R0 = "0.9999239 0.00983776 -0.007445048 -0.009869795 0.9999421 -0.004278459 0.007402527 0.004351614 0.9999631"
TR = (
    "0.007533745 -0.9999714 -0.000616602 -0.004069766 0.01480249 0.0007280733 -0.9998902 -0.07631618 "
    "0.9998621 0.00752379 0.01480755 -0.2717806"
)
ROTATION = np.array(TR.split(), float).reshape(3, 4)[:, :3]
TRANSLATION = np.array(TR.split(), float).reshape(3, 4)[:, 3]
CAR = "Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.5 1.8 4.0 2.0 1.7 20.0 0.3"
NOWHERE = Path("no/such/folder")
SHARES = [0.1758, 0.1549, 0.1593, 0.1672, 0.1644, 0.1596, 0.1635, 0.1584]


# KITTI object


@pytest.fixture
def object_folder(tmp_path):
    for name in ("000000", "000007"):
        scan(tmp_path / f"velodyne/{name}.bin")
        photo(tmp_path / f"image_2/{name}.png")
        put(tmp_path / f"calib/{name}.txt", f"P0: 1 2\nP2: {P2}\nR0_rect: {R0}\nTr_velo_to_cam: {TR}\n\n")
        dont_care = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"
        put(tmp_path / f"label_2/{name}.txt", f"{CAR}\n{dont_care}\n{CAR} 0.7\n")
    return tmp_path


def test_real_kitti_frames(kitti):
    """Image sizes, points in view and points in boxes as measured by other code (reference, 7.2)."""
    reader = Kitti(kitti)
    assert reader.keys[0] == "training/000000" and reader.keys[-1] == "testing/000001" and len(reader) == 8
    assert not reader.warnings and reader.classes == ()
    names, counts, seen = [], [], []
    for i in range(8):
        frame = reader.frame(i)
        (picture,) = frame.pictures
        assert picture.rgb.shape == ((370, 1224, 3) if i == 0 else (375, 1242, 3)) and picture.rgb.dtype == np.uint8
        assert picture.camera.intrinsics[0, 0] == pytest.approx(707.05 if i == 0 else 721.54, abs=0.01)
        seen.append(in_view(picture.camera, frame.scan))
        assert (frame.boxes is None) == (i >= 6)
        names += [box.name for box in frame.boxes or ()]
        counts += [int(box.inside(frame.scan.xyz).sum()) for box in frame.boxes or ()]
    assert np.allclose([mask.mean() for mask in seen], SHARES, atol=1e-4)
    assert min(mask.sum() for mask in seen[:6]) == 18630 and max(mask.sum() for mask in seen[:6]) == 20285
    assert {name: names.count(name) for name in names} == {
        "Car": 5, "Pedestrian": 2, "Truck": 1, "Cyclist": 1, "Misc": 1,
    }  # fmt: skip
    assert min(counts) == 9 and 1340 < max(counts) < 1355


def test_labelled_boxes_stand_on_the_ground_of_real_frames(kitti):
    for i in range(6):
        for box in Kitti(kitti).frame(i, pictures=False).boxes:
            assert 5 < box.centre[0] < 75 and abs(box.centre[2] - box.size[2] / 2 + 1.7) < 1.2
            assert box.centre[2] > -1.7, "the centre, not the bottom"


def test_kitti_projects_as_the_whole_matrix_does(object_folder):
    frame = Kitti(object_folder).frame(1)
    assert frame.key == "000007" and frame.pose is None
    camera = frame.pictures[0].camera
    uv, depth = camera.project(frame.scan.xyz)
    points = np.column_stack([frame.scan.xyz.astype(float), np.ones(len(frame.scan))])
    rectified = np.array(R0.split(), float).reshape(3, 3) @ np.array(TR.split(), float).reshape(3, 4) @ points.T
    u, v, w = np.array(P2.split(), float).reshape(3, 4) @ np.vstack([rectified, np.ones(len(points))])
    assert np.allclose(uv[:, 0], u / w, atol=1e-6) and np.allclose(uv[:, 1], v / w, atol=1e-6)
    assert np.allclose(depth, w, atol=1e-9)


def test_kitti_boxes_come_into_the_lidar_frame(object_folder):
    boxes = Kitti(object_folder).frame(0, pictures=False).boxes
    assert [box.name for box in boxes] == ["Car", "Car"] and boxes[0].size == (4.0, 1.8, 1.5)
    centre = np.array(R0.split(), float).reshape(3, 3) @ (ROTATION @ boxes[0].centre + TRANSLATION)
    assert np.allclose(centre, (2.0, 1.7 - 0.75, 20.0), atol=1e-4)
    assert boxes[0].yaw == pytest.approx(-0.3 - np.pi / 2, abs=0.02)


def test_kitti_parts_may_be_missing_as_a_whole(tmp_path):
    table = scan(tmp_path / "velodyne/000003.bin")
    frame = Kitti(tmp_path).frame(0)
    assert frame.pictures == () and frame.boxes is None and np.array_equal(frame.scan.xyz, table[:, :3])


def test_kitti_without_pictures_reads_none(object_folder):
    (object_folder / "image_2/000000.png").unlink()
    assert Kitti(object_folder).frame(0, pictures=False).pictures == ()
    refused(lambda: Kitti(object_folder).frame(0), "000000.png", "no such photograph")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (f"P2: {P2}\n", "", "'P2'"),
        (f"R0_rect: {R0}", "R0_rect: 1 2 3", "3 x 3"),
        (f"Tr_velo_to_cam: {TR}", "Tr_velo_to_cam: nan" + " 0" * 11, "finite"),
        (f"Tr_velo_to_cam: {TR}", "Tr_velo_to_cam: a b", "must be numbers"),
        (f"Tr_velo_to_cam: {TR}", "Tr_velo_to_cam: " + TR.replace("0.9999714", "0.5"), "not a rotation"),
        (f"R0_rect: {R0}", "R0_rect: 1 0 0 0 1 0 0 0 -1", "not a rotation"),
        ("P2: 721.5377", "P2: -721.5377", "no camera's projection"),
    ],
)
def test_impossible_calibrations_are_refused(object_folder, old, new, word):
    path = object_folder / "calib/000000.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    refused(lambda: Kitti(object_folder), str(path), word)


def test_kitti_folders_that_are_odd(object_folder, tmp_path_factory):
    refused(lambda: Kitti(object_folder / "calib"), "velodyne")
    empty = tmp_path_factory.mktemp("empty")
    (empty / "velodyne").mkdir()
    refused(lambda: Kitti(empty), "no .bin files")
    (object_folder / "calib/000007.txt").unlink()
    refused(lambda: Kitti(object_folder).frame(1), "000007.txt", "no such file")
    (object_folder / "image_2/000000.png").write_bytes(b"no image")
    refused(lambda: Kitti(object_folder).frame(0), "000000.png", "not a photograph")
    put(object_folder / "velodyne/000000.bin", b"\0" * 15)
    refused(lambda: Kitti(object_folder).frame(0), "000000.bin", "no multiple")


@pytest.mark.parametrize(
    ("line", "word"),
    [("Car 0 0", "15 words"), (CAR.replace("4.0", "-4"), "impossible"), (CAR.replace("0.3", "x"), "numbers")],
)
def test_labels_that_are_odd(object_folder, line, word):
    put(object_folder / "label_2/000000.txt", f"{CAR}\n{line}\n")
    refused(lambda: Kitti(object_folder).frame(0, pictures=False), "000000.txt, line 2", word)


def test_a_camera_that_sees_nothing(object_folder):
    path = object_folder / "velodyne/000000.bin"
    table = np.fromfile(path, "<f4").reshape(-1, 4)
    table[:, 0] *= -1  # everything lies behind
    put(path, table.tobytes())
    refused(lambda: Kitti(object_folder).frame(0), "000000.png", "sees none of the scan's 400 points")


# KITTI raw


@pytest.fixture
def date_folder(tmp_path):
    drive = tmp_path / "2011_09_26/2011_09_26_drive_0001_sync"
    for i in (0, 1):
        scan(drive / f"velodyne_points/data/{i:010d}.bin")
        photo(drive / f"image_02/data/{i:010d}.png")
    rotation, translation = (" ".join(map(str, part.ravel())) for part in (ROTATION, TRANSLATION))
    put(drive.parent / "calib_velo_to_cam.txt", f"calib_time: 15-Mar-2012 11:37:16\nR: {rotation}\nT: {translation}\n")
    put(drive.parent / "calib_cam_to_cam.txt", f"calib_time: x\nR_rect_00: {R0}\nP_rect_02: {P2}\n")
    return drive.parent


def test_real_raw_drive(kitti_raw):
    reader = KittiRaw(kitti_raw)
    assert len(reader) == 12 and reader.keys[0] == "2011_09_26_drive_0000_sync/0000000001" and not reader.warnings
    assert reader.keys == sorted(reader.keys)
    shares = []
    for i in (0, 6, 11):
        frame = reader.frame(i)
        assert 112_733 <= len(frame.scan) <= 114_217 and frame.boxes is None
        shares.append(in_view(frame.pictures[0].camera, frame.scan).mean())
    assert np.allclose(shares, [0.1427, 0.1340, 0.1385], atol=1e-4)


def test_raw_is_found_from_every_level(date_folder):
    drive = next(date_folder.glob("*_sync"))
    found = [KittiRaw(place) for place in (drive, date_folder, date_folder.parent)]
    assert all(reader.keys == found[0].keys and len(reader) == 2 and not reader.warnings for reader in found)
    one, other = (reader.frame(1) for reader in found[1:])
    assert np.array_equal(one.pictures[0].camera.lidar_to_camera, other.pictures[0].camera.lidar_to_camera)


def test_raw_projects_as_the_object_set_does(date_folder, object_folder):
    raw = KittiRaw(date_folder).frame(0).pictures[0].camera
    same = Kitti(object_folder).frame(0).pictures[0].camera
    assert np.allclose(raw.lidar_to_camera, same.lidar_to_camera) and np.allclose(raw.intrinsics, same.intrinsics)


def test_a_missing_baseline_is_warned_of(date_folder, object_folder):
    zero = P2.replace("44.85728", "0")
    for path in (date_folder / "calib_cam_to_cam.txt", object_folder / "calib/000000.txt"):
        path.write_text(path.read_text().replace(P2, zero))
    for reader in (KittiRaw(date_folder), Kitti(object_folder)):
        reader.frame(0)
        (warning,) = reader.warnings
        assert "baseline" in warning and "\n" not in warning


def test_raw_folders_that_are_odd(date_folder):
    refused(lambda: KittiRaw(date_folder / "nothing"), "no KITTI raw drive")
    (date_folder / "calib_velo_to_cam.txt").rename(date_folder / "kept")
    refused(lambda: KittiRaw(date_folder), "no calib_velo_to_cam.txt")
    (date_folder / "kept").rename(date_folder / "calib_velo_to_cam.txt")
    put(date_folder / "calib_cam_to_cam.txt", f"P_rect_02: {P2}\n")
    refused(lambda: KittiRaw(date_folder), "calib_cam_to_cam.txt", "'R_rect_00'")


# SemanticKITTI

IDS = {0: -1, 10: 2, 252: 2, 40: 0, 48: 1, 258: 3, 50: 4, 80: 5, 70: 6, 254: 7, 30: 7, 99: -1, 259: -1}


@pytest.fixture
def sequences(tmp_path):
    """One sequence of three sweeps, the car 1 m further ahead each time; what is seen stands still in the world."""
    folder = tmp_path / "sequences/08"
    poses = []
    for i in range(3):
        scan(folder / f"velodyne/{i:06d}.bin", 130)
        ids = np.tile(np.array(list(IDS), "<u4"), 10) | (np.arange(130, dtype="<u4") << 16)
        put(folder / f"labels/{i:06d}.label", ids.tobytes())
        photo(folder / f"image_2/{i:06d}.png")
        motion = np.eye(4)[:3]
        motion[2, 3] = i  # camera 0 looks along z
        poses.append(" ".join(map(str, motion.ravel())))
    put(folder / "poses.txt", "\n".join(poses) + "\n")
    put(folder / "calib.txt", f"P2: {P2}\nTr: {TR}\n")
    return tmp_path


def test_semantickitti_labels_motion_poses_and_pictures(sequences):
    for place in (sequences, sequences / "sequences", sequences / "sequences/08"):
        reader = SemanticKitti(place)
        assert reader.keys == ["08/000000", "08/000001", "08/000002"] and reader.classes == CLASSES
    frame = reader.frame(2)
    assert np.array_equal(frame.scan.labels, list(IDS.values()) * 10)
    assert np.array_equal(frame.scan.moving, [key >= 252 for key in IDS] * 10)
    # two metres along the camera's axis, in the LiDAR's frame: Tr is a rotation, so its transpose turns it back
    assert np.allclose(frame.pose[:3, 3], ROTATION.T @ (0, 0, 2), atol=1e-5)
    assert np.allclose(frame.pose[:3, :3], np.eye(3), atol=1e-6)
    assert np.allclose(reader.frame(0).pose, np.eye(4), atol=1e-6)
    assert in_view(frame.pictures[0].camera, frame.scan).any()
    assert reader.frame(2, pictures=False).pictures == ()


def test_semantickitti_without_labels_or_poses(sequences):
    folder = sequences / "sequences/08"
    for name in ("labels", "image_2"):
        (folder / name).rename(sequences / name)
    (folder / "poses.txt").unlink()
    (folder / "calib.txt").unlink()
    reader = SemanticKitti(sequences)
    frame = reader.frame(0)
    assert reader.classes == () and frame.scan.labels is None and frame.scan.moving is None and frame.pose is None
    assert len(reader.warnings) == 1 and "poses.txt" in reader.warnings[0]


def test_semantickitti_that_is_odd(sequences):
    folder = sequences / "sequences/08"
    label = folder / "labels/000000.label"
    ids = np.fromfile(label, "<u4")
    put(label, np.where(np.arange(130) == 7, 7 | (3 << 16), ids).astype("<u4").tobytes())
    refused(lambda: SemanticKitti(sequences).frame(0), str(label), "id 7 is out of range")
    put(label, ids[:-1].tobytes())
    refused(lambda: SemanticKitti(sequences).frame(0), str(label), "130 labels", "516 bytes")
    label.unlink()
    refused(lambda: SemanticKitti(sequences).frame(0), str(label), "no such file")
    poses = (folder / "poses.txt").read_text()
    put(folder / "poses.txt", poses.splitlines()[0])
    refused(lambda: SemanticKitti(sequences).frame(1), "poses.txt", "1 poses, none for scan 000001")
    put(folder / "poses.txt", poses + "1 2 3\n")
    refused(lambda: SemanticKitti(sequences), "poses.txt, line 4", "3 x 4")
    put(folder / "poses.txt", poses + "9 0 0 0 0 1 0 0 0 0 1 0\n")
    refused(lambda: SemanticKitti(sequences), "line 4", "not a rotation")
    put(folder / "calib.txt", f"P2: {P2}\n")
    refused(lambda: SemanticKitti(sequences), "calib.txt", "'Tr'")
    refused(lambda: SemanticKitti(folder / "labels"), "no SemanticKITTI data")


def test_all_readers_are_registered_and_know_their_classes():
    assert set(READERS) == {"kitti", "kitti_raw", "nuscenes", "range_images", "semantickitti"}
    for reader in READERS.values():
        refused(lambda reader=reader: reader(NOWHERE), str(NOWHERE))
