"""Range images, visibility and correspondence on real frames of KITTI and nuScenes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal_kd.modalities.points.data.augment_config import Augment
from xmodal_kd.modalities.points.data.frame import Camera, Scan
from xmodal_kd.modalities.points.views.augment import apply_range
from xmodal_kd.modalities.points.views.correspondence import from_elements
from xmodal_kd.modalities.points.views.range_image import azimuths, range_image
from xmodal_kd.modalities.points.views.visibility import visible

ROOT = Path(__file__).parents[3]
FRAMES = [f"{i:06d}" for i in range(6)]
#: Edges of the HDL-64E's field of view.
FIELD = (np.radians(-24.9), np.radians(2.1))


def real(name):
    given = os.environ.get("XMODAL_KD_DATA")
    folder = (Path(given) if given else ROOT.parent / "shared/data") / name
    if not folder.is_dir():
        pytest.skip(f"no frames at {folder}; set XMODAL_KD_DATA to the folder that holds {name}")
    return folder


@pytest.fixture(scope="module")
def kitti():
    return real("kitti/training")


@pytest.fixture(scope="module")
def nuscenes():
    """The sweep without the car itself, axes turned to x forward, and the six cameras."""
    folder = real("nuscenes_frame")
    values = np.fromfile(folder / "lidar_top.pcd.bin", np.float32).reshape(-1, 5)
    turn = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])  # the file: x right, y forward
    ring = 31 - values[:, 4].astype(np.int64)
    scan = Scan((values[:, :3] @ turn[:3, :3].T).astype(np.float32), values[:, 3] / 255, ring=ring, beams=32)
    images = json.loads((folder / "frame.json").read_text())["images"].values()
    cameras = [Camera(np.array(i["cam2img"]), np.array(i["lidar2cam"]) @ turn.T, 900, 1600) for i in images]
    return scan[scan.distance > 1], cameras


def read(kitti, name):
    values = np.fromfile(kitti / f"velodyne/{name}.bin", np.float32).reshape(-1, 4)
    return Scan(values[:, :3], values[:, 3])


def camera(kitti, name):
    lines = (kitti / f"calib/{name}.txt").read_text().split("\n")
    values = {line.split(":")[0]: np.array(line.split()[1:], float) for line in lines if ":" in line}
    projection, rectify, mount, baseline = values["P2"].reshape(3, 4), np.eye(4), np.eye(4), np.eye(4)
    rectify[:3, :3], mount[:3] = values["R0_rect"].reshape(3, 3), values["Tr_velo_to_cam"].reshape(3, 4)
    baseline[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    height, width = (370, 1224) if name == "000000" else (375, 1242)
    return Camera(projection[:, :3], baseline @ rectify @ mount, height, width)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("columns", [256, 2048])
def test_range_images_of_real_sweeps(kitti, name, columns):
    scan = read(kitti, name)
    image = range_image(scan, 64, columns, elevations=FIELD, max_range=80.0)
    assert (image.index >= 0).mean() > 0.6
    assert (image.cell >= 0).mean() > (0.85 if columns == 2048 else 0.7)  # few are hidden
    x, y = image.channels[1], image.channels[2]
    off = np.abs(np.angle(np.exp(1j * (np.arctan2(y, x) - azimuths(columns)))))[image.index >= 0]
    assert off.max() <= np.pi / columns + 1e-6  # within half a column of its middle
    up = np.arcsin(image.channels[3] * 2 / np.maximum(image.channels[0] * 20, 1e-6))[image.index >= 0]
    row = (image.index >= 0).nonzero()[0]
    assert (
        np.abs(up - (FIELD[1] - (row + 0.5) * (FIELD[1] - FIELD[0]) / 64)).max() <= (FIELD[1] - FIELD[0]) / 128 + 1e-5
    )
    shown = scan.distance[image.index.ravel()[image.cell[image.cell >= 0]]]
    assert (scan.distance[image.cell >= 0] - shown <= 0.5 + 1e-3).all()


@pytest.mark.parametrize("name", FRAMES)
def test_azimuth_stays_true_after_augmentation(kitti, name):
    image = range_image(read(kitti, name), 64, 512, elevations=FIELD, max_range=80.0)
    settings = Augment(rotate=True, flip=True, scale=(0.9, 1.1), jitter=0.02, drop=0.1)
    found = apply_range(torch.from_numpy(image.channels), settings, np.random.default_rng(1)).inputs.numpy()
    off = np.angle(np.exp(1j * (np.arctan2(found[2], found[1]) - azimuths(512))))[found[4] == 1]
    assert np.abs(off).max() <= np.pi / 512 + 1e-5


@pytest.mark.parametrize("name", FRAMES)
def test_the_share_of_points_in_the_photograph(kitti, name):
    scan, cam = read(kitti, name), camera(kitti, name)
    uv, depth = cam.project(scan.xyz)
    inside = (visible(uv, depth, cam, tolerance=1e9) >= 0).mean()
    assert 0.154 <= inside <= 0.177
    seen = [(visible(uv, depth, cam, radius=radius) >= 0).mean() / inside for radius in (0, 1, 2, 3)]
    assert seen == sorted(seen, reverse=True) and seen[3] > 0.85 and 0.9 < seen[2] < 1
    small = cam.resized(96, 320)
    assert 0.8 < (visible(*small.project(scan.xyz), small, radius=1) >= 0).mean() / inside < 1


@pytest.mark.parametrize("name", FRAMES[:2])
def test_range_image_to_photograph_and_back(kitti, name):
    """Depth carried from the cells to the pixels is the depth of the points that the pixels show."""
    scan, cam = read(kitti, name), camera(kitti, name).resized(96, 320)
    uv, depth = cam.project(scan.xyz)
    image, pixel = range_image(scan, 64, 1024, elevations=FIELD, max_range=80.0), visible(uv, depth, cam)
    match = from_elements(image.cell, pixel, image.index.size, cam.height * cam.width)
    assert len(match) == ((image.cell >= 0) & (pixel >= 0)).sum() > 10_000
    metres = torch.from_numpy(20 * image.channels[0]).reshape(-1, 1)
    mean, mask = match.gather(metres)
    own = from_elements(np.arange(len(scan)), pixel, len(scan), cam.height * cam.width)
    points, reached = own.gather(torch.from_numpy(scan.distance)[:, None])
    assert not (mask & ~reached).any()
    assert (mean - points)[mask].abs().median() < 0.1


def test_a_ring_is_a_row_where_the_file_names_it(nuscenes):
    scan, _ = nuscenes
    image = range_image(scan, 32, 1024, max_range=80.0)
    known = image.cell >= 0
    np.testing.assert_array_equal(image.cell[known] // 1024, scan.ring[known])
    up = np.arcsin(scan.xyz[:, 2] / scan.distance)
    middles = [np.median(up[(scan.ring == row) & known]) for row in range(32)]
    assert (np.diff(middles) < 0).all()  # row 0 the highest
    assert known.mean() > 0.9


def test_points_that_two_cameras_see(nuscenes):
    """Six pictures as one row of pixels: what a point gathers is the mean over its pixels."""
    scan, cameras = nuscenes
    pixels = np.stack([visible(*cam.project(scan.xyz), cam, tolerance=1e9) for cam in cameras], axis=1)
    assert 1500 < ((pixels >= 0).sum(axis=1) == 2).sum() < 2500 and (pixels >= 0).sum(axis=1).max() == 2
    size = 900 * 1600
    own = np.where(pixels >= 0, pixels + size * np.arange(6), -1)
    match = from_elements(own, np.arange(len(scan)), 6 * size, len(scan))
    assert len(match) == (pixels >= 0).sum()
    camera_of = torch.arange(6.0).repeat_interleave(size)[:, None]
    mean, mask = match.gather(camera_of)
    expected = [np.flatnonzero(row >= 0).mean() if (row >= 0).any() else 0 for row in pixels]
    torch.testing.assert_close(mean[:, 0], torch.tensor(expected, dtype=torch.float32))
    np.testing.assert_array_equal(mask.numpy(), (pixels >= 0).any(axis=1))
