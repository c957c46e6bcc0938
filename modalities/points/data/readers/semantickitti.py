"""SemanticKITTI: sequences of labelled scans with poses, in KITTI odometry's layout. Our simulator writes it too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xmodal_kd.runtime.errors import UserError

from ..classes import EIGHT, Classes
from ..files import read_points
from ..frame import Frame, Picture, Scan
from . import base
from .base import Matrix

#: What moves has an id of its own, from here on.
MOVES = 252


@dataclass(frozen=True)
class Sequence:
    """One folder of scans: what is read once for all of them; None where the file is not there."""

    folder: Path
    labelled: bool
    poses: Matrix | None
    camera: tuple[Matrix, Matrix] | None


class SemanticKitti:
    """``sequences/NN/velodyne/*.bin`` with ``labels/*.label``, ``poses.txt``, ``calib.txt``, ``image_2/*.png``.

    The folder is the data set's, its ``sequences``, or one sequence. Labels (test sequences have none), poses and
    photographs may be missing as a whole; ``calib.txt`` is needed with poses or photographs. The pose of a frame is
    the LiDAR's, in the frame of the sequence's first.
    """

    def __init__(self, folder: Path, classes: Classes = EIGHT) -> None:
        self._classes = classes
        places = [folder, *sorted(folder.glob("sequences/*")), *sorted(folder.glob("*"))]
        found = [place for place in places if (place / "velodyne").is_dir()]
        if not found:
            raise UserError(f"{folder}: no SemanticKITTI data: sequences/NN/velodyne is expected there")
        self.warnings: list[str] = []
        self._frames = []
        for place in found:
            sequence = self._open(place)
            self._frames += [(sequence, path.stem) for path in base.files(place / "velodyne", ".bin")]
        self.keys = [f"{sequence.folder.resolve().name}/{name}" for sequence, name in self._frames]
        self.classes: tuple[str, ...] = classes.names if any(sequence.labelled for sequence, _ in self._frames) else ()

    def __len__(self) -> int:
        return len(self.keys)

    def frame(self, i: int, pictures: bool = True) -> Frame:
        """Frame `i`. The scan has no rings: `rings.find_rings` finds them."""
        sequence, name = self._frames[i]
        scan = read_points(sequence.folder / "velodyne" / f"{name}.bin")
        if sequence.labelled:
            scan = with_labels(scan, sequence.folder / "labels" / f"{name}.label", self._classes)
        taken: tuple[Picture, ...] = ()
        if pictures and sequence.camera:
            taken = (base.photograph(sequence.folder / "image_2" / f"{name}.png", *sequence.camera, scan),)
        return Frame(self.keys[i], scan, self._pose(sequence, name), taken)

    def files(self, i: int, pictures: bool = True) -> list[Path]:
        sequence, name = self._frames[i]
        found = [sequence.folder / "velodyne" / f"{name}.bin"]
        found += [sequence.folder / "labels" / f"{name}.label"] if sequence.labelled else []
        return found + ([sequence.folder / "image_2" / f"{name}.png"] if pictures and sequence.camera else [])

    def labelled(self, i: int) -> bool:
        return self._frames[i][0].labelled

    def boxed(self, i: int) -> bool:
        return False

    def _open(self, folder: Path) -> Sequence:
        posed, photographed = (folder / "poses.txt").is_file(), (folder / "image_2").is_dir()
        labelled = (folder / "labels").is_dir()
        if not posed:
            self.warnings.append(f"{folder}: no poses.txt: its sweeps cannot be fused")
        if not (posed or photographed):
            return Sequence(folder, labelled, None, None)
        path = folder / "calib.txt"
        velodyne = base.read_calibration(path, {"Tr": (3, 4)})["Tr"]
        lidar_to_rectified = base.rigid(velodyne[:, :3], velodyne[:, 3], f"{path}: 'Tr'")
        poses = read_poses(folder / "poses.txt", lidar_to_rectified) if posed else None
        return Sequence(folder, labelled, poses, self._camera(path, lidar_to_rectified) if photographed else None)

    def _camera(self, path: Path, lidar_to_rectified: Matrix) -> tuple[Matrix, Matrix]:
        projection = base.read_calibration(path, {"P2": (3, 4)})["P2"]
        warning = base.no_baseline(projection, f"{path}: 'P2'")
        self.warnings += [warning] if warning else []
        return base.fold_projection(projection, lidar_to_rectified, f"{path}: 'P2'")

    @staticmethod
    def _pose(sequence: Sequence, name: str) -> Matrix | None:
        """The pose of the scan by its number, which is its line."""
        if sequence.poses is None:
            return None
        if not name.isdigit() or int(name) >= len(sequence.poses):
            raise UserError(f"{sequence.folder / 'poses.txt'}: {len(sequence.poses)} poses, none for scan {name}")
        pose: Matrix = sequence.poses[int(name)]
        return pose


def read_poses(path: Path, lidar_to_rectified: Matrix) -> Matrix:
    """``(n, 4, 4)`` LiDAR to the frame of the first LiDAR, from lines of 12 numbers, which are camera 0's poses.

    Raises:
        UserError: a line that is none, or whose rotation is none, with its number.
    """
    to_lidar = np.linalg.inv(lidar_to_rectified)
    poses = []
    for number, line in enumerate(base.read_text(path).splitlines(), 1):
        if line.strip():
            where = f"{path}, line {number}:"
            rows = base.numbers(line, (3, 4), where)
            poses.append(to_lidar @ base.rigid(rows[:, :3], rows[:, 3], where) @ lidar_to_rectified)
    return np.array(poses).reshape(-1, 4, 4)


def with_labels(scan: Scan, path: Path, classes: Classes = EIGHT) -> Scan:
    """The scan with the labels of its file: uint32 a point, the id in the lower 16 bits, an instance above them.

    Raises:
        UserError: the file is missing, is for another number of points, or has an id that the data set does not know.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}"
        ) from error
    if len(content) != 4 * len(scan):
        raise UserError(f"{path}: {len(scan)} labels of 4 bytes are expected, one a point; it has {len(content)} bytes")
    ids = np.frombuffer(content, "<u4") & 0xFFFF
    return replace(scan, labels=classes.labels(ids, path), moving=ids >= MOVES)
