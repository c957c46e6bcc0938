"""Where the camera of one photograph stands: KITTI's files, or JSON of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

from .frame import Picture, Scan
from .readers.base import check_intrinsics, photograph, rigid
from .readers.kitti import read_object_calibration
from .readers.kitti_raw import read_raw_calibration

#: Matrices of a JSON calibration and their sides.
MATRICES = {"intrinsics": 3, "lidar_to_camera": 4}


def read_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics ``(3, 3)`` and LiDAR to camera ``(4, 4)``.

    ==========  =======================================================================================
    ``*.json``  ``intrinsics`` (3 rows of 3, pixels) and ``lidar_to_camera`` (4 rows of 4, rigid, metres)
    other file  of the KITTI object benchmark: P2, R0_rect, Tr_velo_to_cam
    a folder    a KITTI raw drive with calib_velo_to_cam.txt and calib_cam_to_cam.txt in it or above it
    ==========  =======================================================================================

    Raises:
        UserError: it is missing, lacks a matrix, or is no camera's.
    """
    if path.is_dir():
        intrinsics, lidar_to_camera, _ = read_raw_calibration(path)
        return intrinsics, lidar_to_camera
    if path.suffix.lower() != ".json":
        found = read_object_calibration(path)
        return found.intrinsics, found.lidar_to_camera
    content = read_json(path)
    intrinsics, moved = (_matrix(content, name, path) for name in MATRICES)
    check_intrinsics(intrinsics, f"{path}: 'intrinsics'")
    return intrinsics, rigid(moved[:3, :3], moved[:3, 3], f"{path}: 'lidar_to_camera'")


def _matrix(content: Any, name: str, path: Path) -> np.ndarray:
    side = MATRICES[name]
    try:
        found = np.array(content[name], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (side, side) or not np.isfinite(found).all():
        raise UserError(f"{path}: {name!r} must be {side} rows of {side} finite numbers")
    return found


def read_picture(image: Path, calibration: Path, scan: Scan) -> Picture:
    """A photograph taken with a scan.

    Raises:
        UserError: photograph or calibration are missing or broken, or the camera sees none of the scan's points.
    """
    return photograph(image, *read_camera(calibration), scan)


__all__ = ["read_camera", "read_picture"]
