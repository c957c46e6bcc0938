from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal_kd.modalities.points.data.classes import classes_of
from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.modalities.points.data.readers import READERS, Kitti, KittiRaw, NuScenes, SemanticKitti
from xmodal_kd.modalities.points.data.readers.base import in_view
from xmodal_kd.runtime.errors import UserError

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


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def scan(path, count=400, seed=0):
    """Points ahead, 5 to 45 m."""
    rng = np.random.default_rng(seed)
    table = np.column_stack([rng.uniform(5, 45, count), rng.uniform(-4, 4, (count, 1)), rng.uniform(-1, 1, (count, 2))])
    table[:, 3] = abs(table[:, 3])
    put(path, table.astype("<f4").tobytes())
    return table.astype(np.float32)


def photo(path, height=375, width=1242):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (10, 20, 30)).save(path)


def refused(action, *words):
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


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


# nuScenes


@pytest.fixture
def key_frame(tmp_path):
    """A car 10 m ahead (nuScenes: along y), seen by a camera in the LiDAR's place, and two returns from the roof."""
    rng = np.random.default_rng(0)
    ahead = np.column_stack([rng.uniform(-0.8, 0.8, 60), rng.uniform(8.2, 11.8, 60), rng.uniform(-0.4, 0.4, 60)])
    xyz = np.vstack([ahead, [[0.1, 0.2, 0], [0.5, 0, 0.2]]])
    table = np.column_stack([xyz, np.full(62, 51), np.arange(62) % 32])
    put(tmp_path / "lidar.pcd.bin", table.astype("<f4").tobytes())
    photo(tmp_path / "front.jpg", 90, 160)
    content = {
        "metainfo": {"categories": {"car": 0, "pedestrian": 1}},
        "lidar": {"file": "lidar.pcd.bin"},
        "images": {
            "CAM_FRONT": {
                "file": "front.jpg",
                "cam2img": [[100, 0, 80], [0, 100, 45], [0, 0, 1]],
                "lidar2cam": [[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]],
            }
        },
        "instances": [
            {"bbox_3d": [0, 10, 0, 4, 2, 1.5, np.pi / 2], "bbox_label_3d": 0},
            {"bbox_3d": [5, 5, 0, 1, 1, 1, 0], "bbox_label_3d": -1},
        ],
    }
    return tmp_path, content


def written(key_frame, **changes):
    folder, content = key_frame
    put(folder / "frame.json", json.dumps(content | changes))
    return NuScenes(folder)


def test_the_real_nuscenes_frame(nuscenes_frame):
    """Points in view and in boxes as measured by other code (reference, 7.2)."""
    frame = NuScenes(nuscenes_frame).frame(0)
    assert len(frame.scan) == 34688 - 8029 and len(frame.pictures) == 6 and frame.scan.beams == 32
    seen = np.array([in_view(picture.camera, frame.scan) for picture in frame.pictures])
    assert sorted(seen.sum(axis=1)) == [3067, 3079, 3379, 3704, 4097, 4826]
    assert (seen.sum(axis=0) == 2).sum() == 1946 and seen.any(axis=0).sum() / 34688 == pytest.approx(0.583, abs=5e-4)
    instances = json.loads((nuscenes_frame / "frame.json").read_text())["instances"]
    listed = [instance["num_lidar_pts"] for instance in instances if instance["bbox_label_3d"] >= 0]
    found = [int(box.inside(frame.scan.xyz).sum()) for box in frame.boxes]
    assert sum(a == b for a, b in zip(listed, found, strict=True)) == 60 and len(found) == 68
    assert [box.name for box in frame.boxes].count("pedestrian") == 30


def test_nuscenes_looks_along_x(key_frame):
    frame = written(key_frame).frame(0)
    assert len(frame.scan) == 60 and (frame.scan.xyz[:, 0] > 8).all() and np.allclose(frame.scan.intensity, 0.2)
    (box,) = frame.boxes
    assert box.name == "car" and np.allclose(box.centre, (10, 0, 0)) and box.yaw == pytest.approx(0)
    assert box.inside(frame.scan.xyz).all()
    uv, depth = frame.pictures[0].camera.project(np.array([[10.0, 1.0, 2.0]]))  # ahead, to the left, above
    assert np.allclose(uv, [[70, 25]]) and np.allclose(depth, 10)


def test_nuscenes_points_are_labelled_where_the_recipe_names_classes(key_frame):
    folder, _ = key_frame
    named, mask = {"pts_semantic_mask_path": "lidarseg.bin"}, np.full(62, 24, np.uint8)
    mask[:3] = 17, 0, 3
    put(folder / "lidarseg.bin", mask.tobytes())
    assert written(key_frame, **named).frame(0).scan.labels is None, "the eight have no ids there"
    reader, classes = NuScenes(folder, classes_of("nuscenes")), classes_of("nuscenes")
    assert reader.labelled(0) and reader.classes == classes.names and folder / "lidarseg.bin" in reader.files(0)
    labels = reader.frame(0).scan.labels
    assert [classes.names[i] for i in labels[[0, 2, 3]]] == ["car", "pedestrian", "driveable_surface"]
    assert labels[1] == -1 and len(labels) == 60, "without those on the car itself"
    put(folder / "lidarseg.bin", mask[:61].tobytes())
    refused(lambda: reader.frame(0), "lidarseg.bin: 62 labels of a byte are expected", "61 bytes")
    put(folder / "lidarseg.bin", bytes([99] * 62))
    refused(lambda: reader.frame(0), "label id 99 is out of range: nuscenes has no such class")


def test_nuscenes_that_is_odd(key_frame):
    folder, content = key_frame
    refused(lambda: NuScenes(folder), "frame.json")
    assert written(key_frame, instances=[]).frame(0).boxes == ()
    cases = [
        ({"lidar": {}}, "'lidar.file' is missing"),
        ({"lidar": {"file": "none.pcd.bin"}}, "no such file"),
        ({"instances": [{"bbox_3d": [0] * 7, "bbox_label_3d": 5}]}, "label 5 is out of range (0 to 1"),
        ({"instances": [{"bbox_3d": [0] * 7, "bbox_label_3d": 1}]}, "impossible"),
        ({"instances": [{"bbox_3d": [0] * 6, "bbox_label_3d": 1}]}, "1 x 7"),
        ({"instances": [{"bbox_label_3d": 1}]}, "'bbox_3d' is missing"),
    ]
    front = content["images"]["CAM_FRONT"]
    for change, word in [
        ({"cam2img": [[0, 0, 80], [0, 100, 45], [0, 0, 1]]}, "no camera's projection"),
        ({"lidar2cam": np.zeros((4, 4)).tolist()}, "not a rotation"),
        ({"lidar2cam": [[1, 2], [3]]}, "must be numbers"),
        ({"lidar2cam": [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]}, "sees none of the scan's 60"),
    ]:
        cases.append(({"images": {"CAM_FRONT": front | change}}, word))
    for change, word in cases:
        refused(lambda change=change: written(key_frame, **change).frame(0), word)
    put(folder / "frame.json", "{")
    refused(lambda: NuScenes(folder).frame(0), "frame.json", "not JSON")


def test_all_readers_are_registered_and_know_their_classes():
    assert set(READERS) == {"kitti", "kitti_raw", "nuscenes", "range_images", "semantickitti"}
    for reader in READERS.values():
        refused(lambda reader=reader: reader(NOWHERE), str(NOWHERE))
