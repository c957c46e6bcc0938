from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from xmodal_kd.modalities.points.data.frame import UNLABELLED, Box, Frame, Scan
from xmodal_kd.modalities.points.data.fuse import fuse, knows_moving, moving_points
from xmodal_kd.runtime.errors import UserError


def pose(x, yaw):
    found = np.eye(4)
    found[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    found[:3, 3] = (x, 0.5 * x, 0.1)
    return found


def drive(sweeps=3, count=80):
    """Sweeps of one still world from poses that turn and advance, newest first, and the world's points."""
    rng = np.random.default_rng(0)
    world = rng.uniform(-30, 30, (count, 3))
    frames = []
    for i in range(sweeps):
        here = pose(10 - 2 * i, 0.3 - 0.1 * i)
        xyz = ((world - here[:3, 3]) @ here[:3, :3]).astype(np.float32)
        scan = Scan(xyz, np.full(count, i / 10, np.float32), np.arange(count) % 4, 4, np.arange(count) % 8)
        frames.append(Frame(f"f{i}", replace(scan, moving=np.zeros(count, bool)), here))
    return frames


def test_a_still_world_coincides_in_the_newest_frame():
    frames = drive()
    fused = fuse(frames)
    assert np.array_equal(fused.sweep, np.repeat([0, 1, 2], 80)) and fused.xyz.dtype == np.float32
    assert np.array_equal(fused.xyz[:80], frames[0].scan.xyz), "the newest sweep is as it was"
    for i in (1, 2):
        part = fused[fused.sweep == i]
        assert np.allclose(part.xyz, frames[0].scan.xyz, atol=1e-4)
        assert np.array_equal(part.labels, frames[0].scan.labels) and np.allclose(part.intensity, i / 10)
    assert fused.ring is None and fused.beams is None


def test_moving_points_leave_no_trail_but_stay_in_the_newest_sweep():
    frames = [
        replace(frame, scan=replace(frame.scan, moving=np.arange(80) < 10 + i)) for i, frame in enumerate(drive())
    ]
    fused = fuse(frames)
    assert np.array_equal(np.bincount(fused.sweep), [80, 69, 68])
    assert fused.moving[:80].sum() == 10 and not fused.moving[80:].any()
    kept = fuse(frames, drop_moving=False)
    assert len(kept) == 240 and kept.moving.sum() == 10 + 11 + 12


def test_boxes_tell_where_points_do_not():
    frames = [replace(frame, scan=replace(frame.scan, moving=None)) for frame in drive(2)]
    at = frames[1].scan.xyz[5].astype(float)
    car = Box("car", (at[0] + 0.5, at[1], at[2]), (2.0, 2.0, 2.0), 0.4)
    boxed = replace(
        frames[1], boxes=(car, replace(car, name="barrier", centre=tuple(frames[1].scan.xyz[9].astype(float))))
    )
    assert knows_moving(frames[1]) is None and knows_moving(boxed) == "boxes" and knows_moving(drive(1)[0]) == "points"
    assert not moving_points(frames[1]).any()
    inside = car.inside(frames[1].scan.xyz, 0.1)
    assert inside[5] and np.array_equal(moving_points(boxed), inside)
    fused = fuse([frames[0], boxed])
    assert len(fused) == 160 - inside.sum() and fused.moving is None
    assert len(fuse(frames)) == 160, "what nobody knows is kept"


def test_a_sweep_without_labels_is_unlabelled():
    frames = drive(2)
    bare = replace(frames[1], scan=replace(frames[1].scan, labels=None))
    labels = fuse([frames[0], bare]).labels
    assert np.array_equal(labels[:80], frames[0].scan.labels) and (labels[80:] == UNLABELLED).all()
    assert fuse([replace(bare, pose=frames[0].pose)]).labels is None


def test_one_sweep_needs_no_pose():
    frame = replace(drive(1)[0], pose=None)
    fused = fuse([frame])
    assert np.array_equal(fused.xyz, frame.scan.xyz) and not fused.sweep.any()


def test_sweeps_that_cannot_be_fused():
    with pytest.raises(UserError, match="no sweeps"):
        fuse([])
    frames = drive(2)
    with pytest.raises(UserError, match="f1 has no pose"):
        fuse([frames[0], replace(frames[1], pose=None)])
