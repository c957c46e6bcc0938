"""KITTI raw drives: consecutive scans with the photographs of the left colour camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xmodal_kd.runtime.errors import UserError

from ..classes import EIGHT, Classes
from ..files import read_points
from ..frame import Frame
from . import base
from .base import Matrix

SCANS = Path("velodyne_points/data")
PHOTOGRAPHS = Path("image_02/data")


class KittiRaw:
    """Drives ``<date>_drive_<number>_sync/{velodyne_points,image_02}/data``: one of them, a date's, or several dates'.

    The calibration (``calib_velo_to_cam.txt``, ``calib_cam_to_cam.txt``) lies in the drive's folder or above it. Of
    its matrices only R, T, R_rect_00 and P_rect_02 are read. Frames of a drive are in order of time; there are no
    labels and no poses.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, classes: Classes = EIGHT) -> None:
        places = [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))]
        drives = [path for path in places if (path / SCANS).is_dir()]
        if not drives:
            raise UserError(f"{folder}: no KITTI raw drive: a folder with {SCANS} is expected there or below it")
        self.warnings: list[str] = []
        self._frames: list[tuple[Path, str]] = []
        self._calibrations: dict[Path, tuple[Matrix, Matrix]] = {}
        for drive in drives:
            self._frames += [(drive, path.stem) for path in base.files(drive / SCANS, ".bin")]
            if (drive / PHOTOGRAPHS).is_dir():
                intrinsics, lidar_to_camera, warning = read_raw_calibration(drive)
                self._calibrations[drive] = intrinsics, lidar_to_camera
                self.warnings += [warning] if warning else []
        self.keys = [f"{drive.resolve().name}/{name}" for drive, name in self._frames]

    def __len__(self) -> int:
        return len(self.keys)

    def frame(self, i: int, pictures: bool = True) -> Frame:
        """Frame `i`. The scan has no rings: `rings.find_rings(scan, 64)` finds them."""
        drive, name = self._frames[i]
        scan = read_points(drive / SCANS / f"{name}.bin")
        if not pictures or drive not in self._calibrations:
            return Frame(self.keys[i], scan)
        path = drive / PHOTOGRAPHS / f"{name}.png"
        return Frame(self.keys[i], scan, pictures=(base.photograph(path, *self._calibrations[drive], scan),))

    def files(self, i: int, pictures: bool = True) -> list[Path]:
        drive, name = self._frames[i]
        photographed = pictures and drive in self._calibrations
        return [drive / SCANS / f"{name}.bin", *([drive / PHOTOGRAPHS / f"{name}.png"] if photographed else [])]

    def labelled(self, i: int) -> bool:
        return False

    def boxed(self, i: int) -> bool:
        return False


def read_raw_calibration(drive: Path) -> tuple[Matrix, Matrix, str | None]:
    """Intrinsics and LiDAR to camera 2, and a warning if the projection lacks camera 2's baseline.

    Raises:
        UserError: a file or a matrix is missing or impossible.
    """
    velodyne_path, cameras_path = _beside(drive, "calib_velo_to_cam.txt"), _beside(drive, "calib_cam_to_cam.txt")
    velodyne = base.read_calibration(velodyne_path, {"R": (3, 3), "T": (3, 1)})
    cameras = base.read_calibration(cameras_path, {"R_rect_00": (3, 3), "P_rect_02": (3, 4)})
    rectify = base.rigid(cameras["R_rect_00"], np.zeros(3), f"{cameras_path}: 'R_rect_00'")
    rectified = rectify @ base.rigid(velodyne["R"], velodyne["T"][:, 0], f"{velodyne_path}: 'R'")
    where = f"{cameras_path}: 'P_rect_02'"
    intrinsics, moved = base.fold_projection(cameras["P_rect_02"], rectified, where)
    return intrinsics, moved, base.no_baseline(cameras["P_rect_02"], where)


def _beside(drive: Path, name: str) -> Path:
    """The file in the drive's folder or in one of the two above it."""
    places = [drive.resolve(), *drive.resolve().parents[:2]]
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        raise UserError(f"{drive}: no {name} in it or beside it: its photographs need a calibration")
    return found
