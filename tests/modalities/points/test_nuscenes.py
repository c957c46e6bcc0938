"""A key frame of nuScenes, real and made here: what is read of it, and what refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from reader_files import photo, put, refused

from xmodal_kd.modalities.points.data.classes import classes_of
from xmodal_kd.modalities.points.data.readers import NuScenes
from xmodal_kd.modalities.points.data.readers.base import in_view

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
