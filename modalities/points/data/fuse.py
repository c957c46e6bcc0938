"""Several sweeps in the frame of the newest: a denser scan for a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xmodal_kd.runtime.errors import UserError

from .frame import UNLABELLED, Frame, Scan

#: Boxes of what stands where it was put, by nuScenes' names.
STATIC = ("barrier", "traffic_cone")
#: How much larger than labelled a box is taken to be, metres.
MARGIN = 0.1


def fuse(frames: Sequence[Frame], drop_moving: bool = True) -> Scan:
    """The points of `frames`, newest first, in the newest sensor's frame, `sweep` saying whose they are.

    The newest sweep's points come first, all of them, as they were. What moves would leave a trail: `drop_moving`
    leaves it out of the older sweeps, by whatever `knows_moving` says is known; a sweep that knows nothing keeps all.

    Rings are given up (None): an older sweep's laser is no row of the newest one's range image. Take rows by elevation.
    Labels of a sweep without any are `UNLABELLED`; `moving` is kept only if every sweep has it.

    Raises:
        UserError: no frames, or one of several without a pose.
    """
    if not frames:
        raise UserError("no sweeps to fuse")
    if len(frames) > 1 and (lost := next((frame.key for frame in frames if frame.pose is None), None)):
        raise UserError(f"frame {lost} has no pose: sweeps cannot be fused without (set one sweep, or bring poses)")
    scans = [_moved(frame, frames[0], drop_moving) if i else frame.scan for i, frame in enumerate(frames)]
    labelled = any(scan.labels is not None for scan in scans)
    known = all(scan.moving is not None for scan in scans)
    return Scan(
        np.concatenate([scan.xyz for scan in scans]),
        np.concatenate([scan.intensity for scan in scans]),
        labels=np.concatenate([_labels(scan) for scan in scans]) if labelled else None,
        moving=np.concatenate([scan.moving for scan in scans if scan.moving is not None]) if known else None,
        sweep=np.repeat(np.arange(len(scans)), [len(scan) for scan in scans]),
    )


def knows_moving(frame: Frame) -> Literal["points", "boxes"] | None:
    """By what a frame's moving points can be told: its points, or its boxes, where all that could move is taken to.

    None: neither, and a fused scan keeps the trails.
    """
    if frame.scan.moving is not None:
        return "points"
    return "boxes" if frame.boxes is not None else None


def moving_points(frame: Frame) -> npt.NDArray[np.bool_]:
    """``(n,)`` points on what moves, or, told by boxes, on what could; all False where nothing is known."""
    if frame.scan.moving is not None:
        return frame.scan.moving
    found = np.zeros(len(frame.scan), dtype=bool)
    for box in frame.boxes or ():
        if box.name not in STATIC:
            found |= box.inside(frame.scan.xyz, MARGIN)
    return found


def _moved(frame: Frame, newest: Frame, drop_moving: bool) -> Scan:
    """The frame's scan as the newest sensor would place it."""
    assert frame.pose is not None and newest.pose is not None
    scan = frame.scan[~moving_points(frame)] if drop_moving else frame.scan
    motion = np.linalg.inv(newest.pose) @ frame.pose
    xyz = scan.xyz.astype(np.float64) @ motion[:3, :3].T + motion[:3, 3]
    return replace(scan, xyz=xyz.astype(newest.scan.xyz.dtype))


def _labels(scan: Scan) -> npt.NDArray[Any]:
    return np.full(len(scan), UNLABELLED, dtype=np.int64) if scan.labels is None else scan.labels
