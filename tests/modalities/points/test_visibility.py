from __future__ import annotations

import numpy as np
import pytest

from xmodal_kd.modalities.points.data.frame import Camera
from xmodal_kd.modalities.points.views.visibility import point_index, visible

#: LiDAR axes (x forward, y left, z up) to the camera's (x right, y down, z forward).
AXES = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])


def camera(height=96, width=320, focal=187.0, offset=(0.0, 0.0, 0.0)):
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    shift = np.eye(4)
    shift[:3, 3] = -np.asarray(offset)
    return Camera(intrinsics, AXES @ shift, height, width)


def street(eye, directions, *, wall=20.0, box=(10.0, -1.0, 1.0, 1.0), ground=-1.7):
    """Distances along rays ``(..., 3)`` from `eye` to the ground, a wall across the road and a board before it."""
    x, y, z = np.moveaxis(directions, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        down = np.where(z < 0, (ground - eye[2]) / z, np.inf)
        far = np.where(x > 0, (wall - eye[0]) / x, np.inf)
        near = np.where(x > 0, (box[0] - eye[0]) / x, np.inf)
        across, up = eye[1] + near * y, eye[2] + near * z
        near = np.where((across > box[1]) & (across < box[2]) & (up < box[3]), near, np.inf)
    return np.minimum(np.minimum(down, far), near)


def rendered(cam, eye):
    """``(h, w)`` depth along the axis through the middles of the pixels."""
    v, u = np.mgrid[: cam.height, : cam.width] + 0.5
    across, down = (u - cam.width / 2) / cam.intrinsics[0, 0], (v - cam.height / 2) / cam.intrinsics[1, 1]
    return street(eye, np.stack([np.ones_like(u), -across, -down], axis=-1))  # x = 1: distance is depth


def swept(beams=64, columns=1024):
    """Points that a LiDAR at the origin sees of the street, forward of it."""
    up, round_ = np.meshgrid(np.radians(np.linspace(8, -24, beams)), np.radians(np.linspace(40, -40, columns)))
    rays = np.stack([np.cos(up) * np.cos(round_), np.cos(up) * np.sin(round_), np.sin(up)], axis=-1).reshape(-1, 3)
    distance = street(np.zeros(3), rays)
    return (rays * distance[:, None])[np.isfinite(distance)]


def truly_seen(xyz, eye):
    """Whether nothing lies between the eye and a point."""
    ray = xyz - eye
    return street(eye, ray) > 1 - 1e-6


def test_only_points_before_the_camera_and_in_its_picture():
    cam = camera(4, 6, 2.0)
    xyz = np.array([[5, 0, 0], [-5, 0, 0], [0.9, 0, 0], [5, 20, 0], [5, 0, -20], [5, 7.4, 4.9], [1.0, 0, 0]])
    pixel = visible(*cam.project(xyz), cam, tolerance=10.0)
    assert pixel.dtype == np.int64 and pixel.tolist() == [2 * 6 + 3, -1, -1, -1, -1, 0, 2 * 6 + 3]
    assert visible(*cam.project(xyz[:0]), cam).shape == (0,)
    assert visible(*cam.project(xyz[:0]), cam, np.ones((4, 6))).shape == (0,)
    turned = camera(4, 6, 2.0)
    behind = Camera(turned.intrinsics, np.diag([-1.0, 1, -1, 1]) @ AXES, 4, 6)
    assert (visible(*behind.project(xyz[[0, 3, 5]]), behind) == -1).all()  # a camera that sees nothing


def test_edges_belong_to_the_picture_by_half():
    cam = camera(4, 6, 2.0)
    uv = np.array([[0.0, 0], [6, 0], [5.999, 3.999], [0, 4], [-1e-9, 0]])
    assert visible(uv, np.full(5, 3.0), cam, radius=0).tolist() == [0, -1, 23, -1, -1]


@pytest.mark.parametrize("offset", [(0.27, 0.0, -0.08), (0.0, 0.8, 0.0), (0.0, -0.8, 0.4)])
@pytest.mark.parametrize("size", [(96, 320, 187.0), (375, 1242, 721.5)])
def test_a_depth_map_tells_what_is_hidden(offset, size):
    cam, eye, xyz = camera(*size, offset), np.asarray(offset), swept()
    uv, depth = cam.project(xyz)
    found = visible(uv, depth, cam, rendered(cam, eye)) >= 0
    inside = visible(uv, depth, cam, tolerance=1e9) >= 0
    truth = truly_seen(xyz, eye)
    hidden = inside & ~truth
    assert found[inside & truth].mean() > 0.985  # slanted ground too; the rest lies where a pixel shows two surfaces
    assert not found[~inside].any()
    assert (found & hidden).sum() < 2e-3 * found.sum()
    if offset[1]:
        assert hidden.sum() > 100 and found[hidden].mean() < 0.05


@pytest.mark.parametrize("offset", [(0.0, 0.8, 0.0), (0.0, -0.8, 0.4)])
@pytest.mark.parametrize("size, radius", [((96, 320, 187.0), 1), ((375, 1242, 721.5), 3)])
def test_points_hide_one_another(offset, size, radius):
    cam, eye, xyz = camera(*size, offset), np.asarray(offset), swept()
    uv, depth = cam.project(xyz)
    found = visible(uv, depth, cam, radius=radius) >= 0
    inside = visible(uv, depth, cam, tolerance=1e9) >= 0
    truth = truly_seen(xyz, eye)
    assert found[inside & truth].mean() > 0.95
    assert found[inside & ~truth].mean() < 0.15
    assert (inside & ~truth).sum() > 100


def test_points_before_or_behind_what_their_pixel_shows_are_not_in_it():
    cam = camera(8, 8, 8.0)
    depth_map = np.full((8, 8), 10.0)
    depth_map[:, :4] = np.inf  # sky
    uv = np.array([[6.5, 4.5]] * 4 + [[1.5, 4.5]])
    depth = np.array([10.0, 10.2, 12, 8, 10])
    assert (visible(uv, depth, cam, depth_map, tolerance=0.3) >= 0).tolist() == [True, True, False, False, False]


def test_nearer_points_hide_within_the_radius_only():
    cam = camera(32, 32, 200.0)
    uv = np.array([[10.5, 10.5], [12.5, 10.5], [10.5, 13.5], [11.5, 11.5]])
    depth = np.array([5.0, 20, 20, 5.2])
    assert (visible(uv, depth, cam, radius=1) >= 0).tolist() == [
        True,
        False,
        True,
        True,
    ]  # (12, 10) is next to (11, 11)
    assert (visible(uv[:3], depth[:3], cam, radius=1) >= 0).all()
    assert (visible(uv, depth, cam, radius=2) >= 0).tolist() == [True, False, False, True]
    assert (visible(uv, depth, cam, radius=2, tolerance=16.0) >= 0).all()


def test_a_depth_map_of_another_size_is_refused():
    cam = camera(8, 8, 8.0)
    with pytest.raises(ValueError, match="a depth map of"):
        visible(np.zeros((1, 2)), np.ones(1), cam, np.ones((4, 8)))


def test_the_point_of_a_pixel_is_the_nearest_of_those_that_it_shows() -> None:
    pixel, depth = np.array([4, -1, 4, 0, 4]), np.array([5.0, 1.0, 3.0, 2.0, 4.0])
    index = point_index(pixel, depth, 2, 3)
    assert index.tolist() == [[3, -1, -1], [-1, 2, -1]]
