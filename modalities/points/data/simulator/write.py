"""Simulated drives as files, in the layout and with the numbers of SemanticKITTI."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from xmodal_kd.runtime.checkpoint import write_bytes
from xmodal_kd.runtime.errors import UserError

from ..frame import CLASSES, Camera, Frame, Picture, Scan
from .camera import CameraSpec
from .cast import PERIOD

#: SemanticKITTI's numbers of our classes, and of those that move; 0 is its "unlabelled".
IDS = {"ground": 40, "pavement": 48, "car": 10, "truck": 18, "building": 50, "pole": 80, "tree": 70, "person": 30}
MOVING = {"car": 252, "truck": 258, "person": 254}
#: KITTI's colour camera is this many metres left of camera 0, in whose frame poses and ``Tr`` are given.
BASELINE = 0.06


def write_semantickitti(folder: Path, sequence: int, frames: Sequence[Frame]) -> Path:
    """Write one drive as ``folder/sequences/NN``.

    Writes ``velodyne/*.bin`` (float32: x, y, z, intensity), ``labels/*.label`` (uint32), ``poses.txt`` (of camera 0,
    the first is the identity), ``calib.txt``, ``times.txt`` and, where frames have a picture, ``image_2/*.png``.

    Args:
        folder: of the data set; made if missing.
        sequence: 0 to 99.
        frames: oldest first, a tenth of a second apart, with labels and poses; one camera or none.

    Returns:
        The sequence's folder.

    Raises:
        UserError: the sequence exists.
        ValueError: no frames, or one without labels or pose.
    """
    target = sequence_folder(folder, sequence)
    if not frames:
        raise ValueError("no frames to write")
    camera = frames[0].pictures[0].camera if frames[0].pictures else CameraSpec().camera()
    to_camera = _lidar_to_camera_0(camera)
    poses = []
    for number, frame in enumerate(frames):
        if frame.scan.labels is None or frame.pose is None:
            raise ValueError(f"{frame.key}: labels and a pose are needed")
        name = f"{number:06d}"
        points = np.concatenate([frame.scan.xyz, frame.scan.intensity[:, None]], axis=1)
        write_bytes(target / "velodyne" / f"{name}.bin", points.astype("<f4").tobytes())
        write_bytes(target / "labels" / f"{name}.label", label_ids(frame.scan).astype("<u4").tobytes())
        if frame.pictures:
            write_bytes(target / "image_2" / f"{name}.png", _png(frame.pictures[0]))
        poses.append(frame.pose)
    start, from_camera = np.linalg.inv(poses[0]), np.linalg.inv(to_camera)
    rows = [_row(to_camera @ start @ pose @ from_camera) for pose in poses]
    write_bytes(target / "poses.txt", _lines(rows))
    write_bytes(target / "times.txt", _lines([f"{PERIOD * number:.6e}" for number in range(len(frames))]))
    write_bytes(target / "calib.txt", _lines(_calibration(camera, to_camera)))
    return target


def sequence_folder(folder: Path, sequence: int) -> Path:
    """Where a sequence goes.

    Raises:
        UserError: it is there already.
    """
    target = folder / "sequences" / f"{sequence:02d}"
    if target.exists():
        raise UserError(f"{target}: exists already; name another folder, or remove it")
    return target


def label_ids(scan: Scan) -> Int[np.ndarray, " n"]:
    """SemanticKITTI's number of each point's class, of its moving kind where it moves."""
    if scan.labels is None:
        raise ValueError("a scan without labels")
    still = np.array([*(IDS[name] for name in CLASSES), 0])  # label -1 is the last
    ids: np.ndarray = still[scan.labels]
    if scan.moving is None:
        return ids
    moving = np.array([*(MOVING.get(name, IDS[name]) for name in CLASSES), 0])
    found: np.ndarray = np.where(scan.moving, moving[scan.labels], ids)
    return found


def _lidar_to_camera_0(camera: Camera) -> Float[np.ndarray, "4 4"]:
    """Camera 2 sees a point `BASELINE` further right than camera 0 does."""
    to_camera = camera.lidar_to_camera.copy()
    to_camera[0, 3] -= BASELINE
    return to_camera


def _calibration(camera: Camera, to_camera: Float[np.ndarray, "4 4"]) -> list[str]:
    """``P0`` to ``P3``, of which 2 is the camera, and ``Tr`` from the LiDAR to camera 0."""
    grey = np.concatenate([camera.intrinsics, np.zeros((3, 1))], axis=1)
    colour = grey.copy()
    colour[:, 3] = camera.intrinsics @ [BASELINE, 0, 0]
    projections = {"P0": grey, "P1": grey, "P2": colour, "P3": colour}
    return [f"{name}: {_row(matrix)}" for name, matrix in {**projections, "Tr": to_camera}.items()]


def _row(matrix: np.ndarray) -> str:
    """The first three rows of a matrix on one line, to twelve digits after the point."""
    return " ".join(f"{value:.12e}" for value in matrix[:3].ravel())


def _lines(rows: Sequence[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.rgb).save(buffer, format="PNG")
    return buffer.getvalue()
