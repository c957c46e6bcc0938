from __future__ import annotations

import numpy as np
import pytest

from xmodal_kd.modalities.points.data.frame import Scan
from xmodal_kd.modalities.points.views.range_image import CHANNELS, SCALES, azimuths, column_of, range_image
from xmodal_kd.runtime.errors import UserError


def at(azimuth, elevation, distance):
    """``(n, 3)`` points from angles in radians and metres."""
    flat = distance * np.cos(elevation)
    xyz = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), distance * np.sin(elevation)], axis=-1)
    return xyz.astype(np.float32)


def scan_of(xyz, **parts):
    return Scan(xyz, np.zeros(len(xyz), np.float32), **parts)


def random_scan(seed, points=500, beams=8):
    rng = np.random.default_rng(seed)
    xyz = at(rng.uniform(-np.pi, np.pi, points), rng.uniform(-0.4, 0.1, points), rng.uniform(0.5, 40, points))
    return scan_of(xyz, ring=rng.integers(0, beams, points), beams=beams)


def test_every_ray_of_a_sensor_has_the_cell_it_was_fired_into():
    rows, columns = 4, 32
    azimuth, elevation = np.meshgrid(azimuths(columns), np.radians([2, -3, -8, -13]))
    xyz = at(azimuth.ravel(), elevation.ravel(), np.linspace(5, 30, rows * columns))
    image = range_image(
        scan_of(xyz, ring=np.repeat(np.arange(rows), columns), beams=rows), rows, columns, max_range=50.0
    )
    assert image.cell.tolist() == image.index.ravel().tolist() == list(range(rows * columns))
    assert image.channels.dtype == np.float32 and image.cell.dtype == image.index.dtype == np.int64
    np.testing.assert_allclose(image.channels[0].ravel() * 20, np.linspace(5, 30, rows * columns), rtol=1e-6)
    np.testing.assert_array_equal(image.channels[1:4].reshape(3, -1).T, xyz / SCALES[1:])
    assert (image.channels[CHANNELS.index("valid")] == 1).all()


def test_forward_is_the_middle_and_left_is_left():
    xyz = np.array([[9, -0.1, 0], [9, 0.1, 0], [0, 9, 0], [0, -9, 0], [-9, 0.1, 0], [-9, -0.1, 0]], np.float32)
    assert column_of(xyz, 8).tolist() == [4, 3, 2, 6, 0, 7]
    assert column_of(np.array([[-9, 0.0, 0], [-9, -0.0, 0]], np.float32), 8).tolist() == [0, 0]  # azimuth pi and -pi
    assert (np.diff(azimuths(8)) < 0).all() and azimuths(8)[0] == np.pi - np.pi / 8


@pytest.mark.parametrize("columns", [1, 7, 256, 2048])
def test_the_middle_of_a_column_lies_in_it(columns):
    xyz = at(azimuths(columns), np.zeros(columns), np.full(columns, 7.0))
    assert column_of(xyz, columns).tolist() == list(range(columns))


def test_the_nearest_point_is_shown_and_those_behind_it_are_hidden():
    x = np.array([12, 10, 10.3, 10, 11], np.float32)  # all in one cell
    xyz = np.stack([x, 0 * x - 0.01, 0 * x], axis=1)
    scan = scan_of(xyz, ring=np.zeros(5, int), beams=1)
    image = range_image(scan, 1, 4, max_range=50.0)
    assert image.index.tolist() == [[-1, -1, 1, -1]]  # of two as near the first
    assert image.cell.tolist() == [-1, 2, 2, 2, -1]
    assert range_image(scan, 1, 4, max_range=50.0, tolerance=1.5).cell.tolist() == [-1, 2, 2, 2, 2]
    assert range_image(scan, 1, 4, max_range=11.5, tolerance=5.0).cell.tolist() == [-1, 2, 2, 2, 2]


def test_rows_are_bands_of_elevation_where_rings_are_unknown_or_other():
    elevation = np.radians([10.5, 9.5, 0.5, -0.5, -9.5, -10.5])
    xyz = at(np.zeros(6), elevation, np.full(6, 10.0))
    limits = (np.radians(-10), np.radians(10))
    image = range_image(scan_of(xyz), 4, 1, elevations=limits, max_range=50.0)
    assert image.cell.tolist() == [-1, 0, 1, 2, 3, -1]
    beams = scan_of(xyz, ring=np.arange(6), beams=6)
    assert range_image(beams, 4, 1, elevations=limits, max_range=50.0).cell.tolist() == [-1, 0, 1, 2, 3, -1]
    assert range_image(beams, 6, 1, elevations=limits, max_range=50.0).cell.tolist() == [0, 1, 2, 3, 4, 5]  # its rings


def test_a_point_at_the_origin_has_no_direction():
    xyz = np.array([[0, 0, 0], [5, 0, 0]], np.float32)
    image = range_image(scan_of(xyz, ring=np.zeros(2, int), beams=1), 1, 1, max_range=50.0)
    assert image.cell.tolist() == [-1, 0] and image.index.tolist() == [[1]]


def test_an_empty_scan_gives_an_empty_image():
    image = range_image(scan_of(np.zeros((0, 3), np.float32)), 2, 4, elevations=(-0.4, 0.1), max_range=50.0)
    assert not image.channels.any() and (image.index == -1).all() and image.cell.shape == (0,)
    assert (image.show(np.zeros(0, np.int64), -1) == -1).all()


@pytest.mark.parametrize("rings", [True, False])
def test_rows_that_nothing_tells_are_refused(rings):
    scan = random_scan(0) if rings else scan_of(random_scan(0).xyz)
    with pytest.raises(UserError, match="has 8 beams" if rings else "does not say which beam"):
        range_image(scan, 16, 32, max_range=50.0)


@pytest.mark.parametrize("elevations", [(0.1, -0.4), (0.1, 0.1), (-25.0, 2.0)])
def test_limits_that_are_no_angles_are_refused(elevations):
    with pytest.raises(UserError, match="elevations are"):
        range_image(random_scan(0), 16, 32, elevations=elevations, max_range=50.0)


@pytest.mark.parametrize("seed", range(8))
def test_it_equals_the_slow_way(seed):
    scan, rows, columns, tolerance = random_scan(seed), 8, 16, 2.0
    image = range_image(scan, rows, columns, max_range=30.0, tolerance=tolerance)
    distance = np.linalg.norm(scan.xyz, axis=1)
    cells = {}
    for i, (x, y, _) in enumerate(scan.xyz.astype(np.float64)):
        column = int((np.pi - np.arctan2(y, x)) / (2 * np.pi) * columns)
        if distance[i] <= 30:
            cells.setdefault(int(scan.ring[i]) * columns + column, []).append(i)
    expected = np.full(len(scan), -1)
    for cell, points in cells.items():
        shown = min(points, key=lambda i: distance[i])
        assert image.index.flat[cell] == shown
        expected[[i for i in points if distance[i] <= distance[shown] + tolerance]] = cell
    assert (image.index >= 0).sum() == len(cells)
    np.testing.assert_array_equal(image.cell, expected)


@pytest.mark.parametrize("seed", range(3))
def test_what_points_know_is_shown_in_their_cells(seed):
    scan = random_scan(seed)
    image = range_image(scan, 8, 64, max_range=50.0)
    labels = np.random.default_rng(seed).integers(0, 8, len(scan))
    shown = image.show(labels, -1)
    assert shown.dtype == labels.dtype
    there = image.index >= 0
    np.testing.assert_array_equal(shown[there], labels[image.index[there]])
    assert (shown[~there] == -1).all() and not image.channels[:, ~there].any()
    np.testing.assert_array_equal(image.cell[image.index[there]], np.flatnonzero(there))
    lengths = np.linalg.norm(image.channels[1:4] * np.array([1, 1, 0.1])[:, None, None], axis=0)
    np.testing.assert_allclose(image.channels[0], lengths, rtol=1e-6)
