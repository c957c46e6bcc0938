"""The KITTI object benchmark: single frames with calibration, one photograph and labelled boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xmodal_kd.runtime.errors import UserError

from ..classes import EIGHT, Classes
from ..files import read_points
from ..frame import Box, Frame, Picture
from . import base
from .base import Matrix

SPLITS = ("training", "testing")
#: A label's words: type, truncation, occlusion, alpha, image box (4), height, width, length, x, y, z, yaw.
WORDS = 15
#: Of easy, moderate and hard: pixels of height that a box must be above, the most occlusion and truncation.
LEVELS = ((40, 0, 0.15), (25, 1, 0.3), (25, 2, 0.5))


@dataclass(frozen=True)
class Calibration:
    """Of one frame: camera 2, and the rectified frame of camera 0, in which boxes are given."""

    intrinsics: Matrix
    lidar_to_camera: Matrix
    lidar_to_rectified: Matrix
    warning: str | None


class Kitti:
    """``velodyne/*.bin`` with ``calib``, ``image_2`` and ``label_2``, or a folder of such (``training``, ``testing``).

    The photographs or the labels may be missing as a whole, and then a frame has none; calibrations are needed with
    either. Points are not labelled; boxes are, in camera 2's view only.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, classes: Classes = EIGHT) -> None:
        splits = [name for name in SPLITS if (folder / name / "velodyne").is_dir()]
        if not (folder / "velodyne").is_dir() and not splits:
            raise UserError(f"{folder}: no KITTI object data: a folder 'velodyne' is expected there (or in training/)")
        parts = [folder] if (folder / "velodyne").is_dir() else [folder / name for name in splits]
        self._frames = [(part, path.stem) for part in parts for path in base.files(part / "velodyne", ".bin")]
        single = len(parts) == 1 and parts[0] == folder
        self.keys = [name if single else f"{part.name}/{name}" for part, name in self._frames]
        self.warnings: list[str] = []
        part, name = self._frames[0]
        if self._has(part, "image_2") or self._has(part, "label_2"):
            self._calibration(part, name)

    def __len__(self) -> int:
        return len(self.keys)

    def frame(self, i: int, pictures: bool = True) -> Frame:
        """Frame `i`. The scan has no rings: `rings.find_rings(scan, 64)` finds them."""
        part, name = self._frames[i]
        scan = read_points(part / "velodyne" / f"{name}.bin")
        photographed, labelled = pictures and self._has(part, "image_2"), self._has(part, "label_2")
        if not (photographed or labelled):
            return Frame(self.keys[i], scan)
        calibration = self._calibration(part, name)
        taken: tuple[Picture, ...] = ()
        if photographed:
            path = part / "image_2" / f"{name}.png"
            taken = (base.photograph(path, calibration.intrinsics, calibration.lidar_to_camera, scan),)
        labels = part / "label_2" / f"{name}.txt"
        boxes = read_boxes(labels, calibration.lidar_to_rectified) if labelled else None
        return Frame(self.keys[i], scan, pictures=taken, boxes=base.counted(boxes, scan))

    def files(self, i: int, pictures: bool = True) -> list[Path]:
        part, name = self._frames[i]
        photographed, labelled = pictures and self._has(part, "image_2"), self._has(part, "label_2")
        found = [part / "velodyne" / f"{name}.bin"]
        found += [part / "calib" / f"{name}.txt"] if photographed or labelled else []
        found += [part / "image_2" / f"{name}.png"] if photographed else []
        return found + ([part / "label_2" / f"{name}.txt"] if labelled else [])

    def labelled(self, i: int) -> bool:
        return False

    def boxed(self, i: int) -> bool:
        part, name = self._frames[i]
        return (part / "label_2" / f"{name}.txt").is_file()

    @staticmethod
    def _has(part: Path, kind: str) -> bool:
        return (part / kind).is_dir()

    def _calibration(self, part: Path, name: str) -> Calibration:
        found = read_object_calibration(part / "calib" / f"{name}.txt")
        if found.warning and found.warning not in self.warnings:
            self.warnings.append(found.warning)
        return found


def read_object_calibration(path: Path) -> Calibration:
    """Of P2, R0_rect and Tr_velo_to_cam. Raises `UserError` if one is missing or impossible."""
    shapes = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
    found = base.read_calibration(path, shapes)
    rectify = base.rigid(found["R0_rect"], np.zeros(3), f"{path}: 'R0_rect'")
    velodyne = found["Tr_velo_to_cam"]
    rectified = rectify @ base.rigid(velodyne[:, :3], velodyne[:, 3], f"{path}: 'Tr_velo_to_cam'")
    intrinsics, moved = base.fold_projection(found["P2"], rectified, f"{path}: 'P2'")
    return Calibration(intrinsics, moved, rectified, base.no_baseline(found["P2"], f"{path}: 'P2'"))


def read_boxes(path: Path, lidar_to_rectified: Matrix) -> tuple[Box, ...]:
    """The boxes of a label file in the LiDAR's frame; DontCare regions, which have no place in space, are left out.

    The file has height, width and length, and the centre of the bottom in the rectified frame (y down), turned about
    y by ``rotation_y``, 0 along x. The camera is tilted against the LiDAR by half a degree, and a `Box` turns about z
    only: on the benchmark's first frames that moves 6 points at most (of 680) over the edge of a box.

    Raises:
        UserError: it is missing, or a line is not as above, with its number.
    """
    to_lidar = np.linalg.inv(lidar_to_rectified)
    boxes = []
    for number, line in enumerate(base.read_text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0] == "DontCare":
            continue
        where = f"{path}, line {number}:"
        if len(words) not in (WORDS, WORDS + 1):
            raise UserError(f"{where} a label has {WORDS} words (a score may follow), got {len(words)}")
        height, width, length, x, y, z, turn = base.numbers(" ".join(words[8:WORDS]), (1, 7), where)[0]
        if min(height, width, length) <= 0:
            raise UserError(f"{where} a box of {length:g} x {width:g} x {height:g} m is impossible")
        centre = (to_lidar @ (x, y - height / 2, z, 1))[:3]
        ahead = to_lidar[:3, :3] @ (np.cos(turn), 0, -np.sin(turn))
        yaw = float(np.arctan2(ahead[1], ahead[0]))
        place = (float(centre[0]), float(centre[1]), float(centre[2]))
        level = _level(*base.numbers(" ".join(words[1:8]), (1, 7), where)[0])
        boxes.append(Box(words[0], place, (length, width, height), yaw, level=level))
    return tuple(boxes)


def _level(truncation: float, occlusion: float, _: float, left: float, top: float, right: float, bottom: float) -> int:
    """The first level that asks for a box: each asks for those of the one before."""
    missed = [bottom - top <= h or occlusion > o or truncation > t for h, o, t in LEVELS]
    return sum(missed)
