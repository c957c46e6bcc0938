from __future__ import annotations

import numpy as np
import pytest

from xmodal_kd.modalities.points.data.files import read_points
from xmodal_kd.modalities.points.data.frame import Scan
from xmodal_kd.modalities.points.data.readers import Kitti, KittiRaw
from xmodal_kd.modalities.points.data.rings import find_rings, keep_beams, rings_by_elevation, rings_by_order, thin
from xmodal_kd.runtime.errors import UserError

EVEN = np.radians(np.linspace(15, -15, 16))
#: Two blocks of lasers with spacings of their own, as an HDL-64E has.
UNEVEN = np.radians(np.concatenate([np.linspace(2, -8, 16), np.linspace(-9, -24, 16)]))


def turn(elevations, way=-1, begin=np.pi, columns=400, seed=0, starts=0.0):
    """A scan laser by laser, and which laser saw each point: ground 1.7 m below, walls, a few returns lost."""
    rng = np.random.default_rng(seed)
    beams = len(elevations)
    azimuth = np.broadcast_to(begin + way * 2 * np.pi * (np.arange(columns) + 0.5) / columns, (beams, columns))
    elevation = np.broadcast_to(elevations[:, None], (beams, columns))
    wall = 8 + 12 * rng.random(columns)
    ground = np.where(elevation < -0.02, 1.7 / np.maximum(-np.sin(elevation), 1e-3), np.inf)
    distance = np.minimum(wall, ground) + rng.normal(0, 0.02, (beams, columns))
    flat = np.cos(elevation) * distance
    xyz = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation) * distance + starts], axis=-1)
    seen = rng.random((beams, columns)) > 0.05
    ring = np.broadcast_to(np.arange(beams)[:, None], (beams, columns))[seen]
    xyz = xyz[seen].astype(np.float32)
    return Scan(xyz, np.zeros(len(xyz), np.float32)), ring


@pytest.mark.parametrize("begin", [0.0, np.pi])
@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("upwards", [False, True])
def test_turns_one_after_another_are_told_apart_exactly(begin, way, upwards):
    scan, ring = turn(EVEN[::-1] if upwards else EVEN, way, begin)
    found = find_rings(scan, 16)
    assert found.beams == 16 and np.array_equal(found.ring, 15 - ring if upwards else ring)
    assert np.array_equal(found.xyz, scan.xyz), "the order must stay"


@pytest.mark.parametrize("elevations", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_points_in_any_order_are_told_apart_by_elevation(elevations):
    scan, ring = turn(elevations, starts=0.15 if elevations is UNEVEN else 0.0)
    order = np.random.default_rng(1).permutation(len(scan))
    found = find_rings(scan[order], len(elevations))
    assert (found.ring == ring[order]).mean() > 0.98


def test_real_kitti_scans_fall_into_64_rings_of_one_line_each(kitti, kitti_raw):
    """A laser's points lie on a line height = start + slope * distance: what is left of that is 0.005 degrees."""
    for reader in (Kitti(kitti), KittiRaw(kitti_raw)):
        for i in range(0, len(reader), 3):
            scan = find_rings(reader.frame(i, pictures=False).scan, 64)
            assert scan.ring is not None and (np.diff(scan.ring) >= 0).all()
            assert np.bincount(scan.ring, minlength=64).min() > 500
            x, y = np.hypot(scan.xyz[:, 0], scan.xyz[:, 1]).astype(float), scan.xyz[:, 2].astype(float)
            lines = [np.polyfit(x[scan.ring == ring], y[scan.ring == ring], 1) for ring in range(64)]
            slopes, starts = np.array(lines).T
            assert (np.diff(slopes) < 0).all()
            left = np.degrees((y - starts[scan.ring] - slopes[scan.ring] * x) / x)
            assert left.std() < 0.006, reader.keys[i]


@pytest.mark.parametrize("number", [1, 3])
def test_real_scans_in_random_order(kitti, number):
    """Measured on the 6 labelled frames and 3 of the raw ones: 99.2 to 100 % of the points get their laser."""
    scan = read_points(kitti / f"training/velodyne/{number:06d}.bin")
    truth = find_rings(scan, 64).ring
    order = np.random.default_rng(0).permutation(len(scan))
    assert truth is not None and (rings_by_elevation(scan.xyz[order], 64) == truth[order]).mean() > 0.99


def test_the_real_nuscenes_scan_without_its_rings(nuscenes_frame):
    """Measured: 88 % of the points beyond 2 m (the motion of the car is taken out of it, which bends the rings)."""
    scan = read_points(nuscenes_frame / "lidar_top.pcd.bin")
    far = scan.distance > 2
    assert scan.ring is not None and (rings_by_elevation(scan.xyz, 32) == scan.ring)[far].mean() > 0.85


def test_given_rings_stay():
    scan, ring = turn(EVEN)
    given = Scan(scan.xyz, scan.intensity, 15 - ring, 16)
    assert find_rings(given, 16) is given
    with pytest.raises(UserError, match="16 beams is taken for one of 64"):
        find_rings(given, 64)
    with pytest.raises(UserError, match="3 points has no 16 rings"):
        find_rings(scan[np.arange(3)], 16)


def test_another_number_of_beams_is_found_out():
    scan, _ = turn(EVEN)
    with pytest.raises(UserError, match="a scan of 16 turns is taken for one of 64 beams: say --beams 16"):
        find_rings(scan, 64)


def test_turns_of_points_in_random_order_are_not_lasers():
    scan, ring = turn(EVEN, columns=4)
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(len(scan))
        found = rings_by_order(scan.xyz[order], 16)
        assert found is None or np.array_equal(found, ring[order])


def test_a_thinned_scan_has_every_kth_row_of_the_full_one():
    scan, ring = turn(EVEN)
    full = find_rings(scan, 16)
    assert np.array_equal(keep_beams(full, 4), ring % 4 == 0)
    few = thin(full, 4)
    assert few.beams == 4 and np.array_equal(few.ring, ring[ring % 4 == 0] // 4)
    assert np.array_equal(few.xyz, scan.xyz[ring % 4 == 0])
    assert np.array_equal(thin(thin(full, 8), 4).xyz, few.xyz)
    assert len(thin(full, 16)) == len(full)


def test_beams_that_cannot_be_kept():
    scan, _ = turn(EVEN)
    with pytest.raises(UserError, match="without rings"):
        keep_beams(scan, 4)
    full = find_rings(scan, 16)
    for beams in (3, 0, -4, 32):
        with pytest.raises(UserError, match=f"{beams} beams cannot be kept of 16"):
            keep_beams(full, beams)
    with pytest.raises(UserError, match="no point"):
        thin(full[full.ring == 1], 4)
