"""What the readers of recordings share: the contract, calibration files, photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from xmodal_kd.runtime import bounded_files
from xmodal_kd.runtime.errors import UserError

from ..classes import EIGHT, Classes
from ..frame import Box, Camera, Frame, Picture, Scan

#: Bytes of a record, by the end of a file's name; the longer names first.
RECORDS = {".pcd.bin": 20, ".bin": 16, ".label": 4}
#: What a photograph ends with; a camera may leave some bytes behind it.
ENDS = {".png": b"IEND", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}
TAIL = 4096

Matrix = npt.NDArray[np.float64]

#: How far from orthonormal a rotation may be: files carry seven digits.
RIGID = 1e-3
#: Pixels of a photograph by its header, above which it is not decoded.
PIXELS = 1 << 27
#: Bytes of a table of a data set: nuScenes' longest has 600 MB.
MOST_TEXT = 1 << 31


class Reader(Protocol):
    """Frames of one folder, in order.

    The constructor takes the folder and checks its layout (`UserError`); files are read in `frame`. Labels are
    those of the `Classes` that it is given.

    Attributes:
        keys: names the frames, in order of time where there is one.
        classes: names of what the source labels points with; empty if it labels none.
        warnings: what is odd but readable, found so far; one line each.
    """

    classes: tuple[str, ...]
    warnings: list[str]

    def __init__(self, folder: Path, classes: Classes = EIGHT) -> None: ...

    @property
    def keys(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def frame(self, i: int, pictures: bool = True) -> Frame:
        """Frame `i`; without its photographs, which take most of the time, if not `pictures`.

        Raises:
            UserError: a file that is missing, broken or impossible; it names it.
        """
        ...

    def files(self, i: int, pictures: bool = True) -> Sequence[Path]:
        """What `frame` will read."""
        ...

    def labelled(self, i: int) -> bool:
        """Whether the points of frame `i` have labels."""
        ...

    def boxed(self, i: int) -> bool:
        """Whether the things in frame `i` have boxes."""
        ...


def read_text(path: Path) -> str:
    if not path.exists():
        raise UserError(f"{path}: no such file")
    return bounded_files.read_text(path, MOST_TEXT)


def read_calibration(path: Path, shapes: dict[str, tuple[int, int]]) -> dict[str, Matrix]:
    """The matrices of a KITTI calibration file (lines ``name: numbers``); other lines are passed over.

    Raises:
        UserError: a matrix of `shapes` is missing, is of another size or not finite.
    """
    lines = dict(line.split(":", 1) for line in read_text(path).splitlines() if ":" in line)
    found = {}
    for name, shape in shapes.items():
        if name not in lines:
            raise UserError(f"{path}: no {name!r}: the calibration is not whole")
        found[name] = numbers(lines[name], shape, f"{path}: {name!r}")
    return found


def numbers(text: str, shape: tuple[int, int], where: str) -> Matrix:
    """Finite numbers of a line, as a matrix."""
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise UserError(f"{where} must be numbers, got {text.strip()[:60]!r}") from error
    if values.size != shape[0] * shape[1] or not np.isfinite(values).all():
        raise UserError(f"{where} must be {shape[0]} x {shape[1]} finite numbers, got {values.size}")
    return values.reshape(shape)


def rigid(rotation: Matrix, translation: Matrix, where: str) -> Matrix:
    """``(4, 4)`` of a rotation and a translation. Raises `UserError` if the first is none."""
    if abs(rotation @ rotation.T - np.eye(3)).max() > RIGID or np.linalg.det(rotation) < 0:
        raise UserError(f"{where} is not a rotation: the calibration is impossible")
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = rotation, translation
    return whole


def check_intrinsics(intrinsics: Matrix, where: str) -> None:
    """`UserError` unless they could be a camera's: focal lengths above 0, last row 0 0 1."""
    if intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0 or abs(intrinsics[2] - (0, 0, 1)).max() > 1e-9:
        raise UserError(f"{where} is no camera's projection: the calibration is impossible")


def fold_projection(projection: Matrix, lidar_to_rectified: Matrix, where: str) -> tuple[Matrix, Matrix]:
    """Intrinsics and ``(4, 4)`` LiDAR to camera of a rectified ``(3, 4)`` projection ``K [I | b]``.

    The fourth column ``K b`` is the camera's place beside camera 0; moving the points by b is exact, its third row
    (some millimetres of depth in KITTI) included.
    """
    intrinsics = projection[:, :3]
    check_intrinsics(intrinsics, where)
    moved = lidar_to_rectified.copy()
    moved[:3, 3] += np.linalg.solve(intrinsics, projection[:, 3])
    return intrinsics, moved


def no_baseline(projection: Matrix, where: str) -> str | None:
    """A warning for a camera 2 that is said to stand where camera 0 does."""
    if projection[0, 3] != 0:
        return None
    return f"{where} has no baseline term: it is camera 0's, and points will lie some 45 / depth pixels too far left"


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """``(h, w, 3)``; grey photographs are repeated. Raises `UserError` if it is missing or broken."""
    if not path.is_file():
        raise UserError(f"{path}: no such photograph")
    try:
        with Image.open(path) as image:
            if image.width * image.height > PIXELS:
                raise UserError(f"{path}: {image.width}x{image.height} pixels by its header, more than {PIXELS:,}")
            return np.asarray(image.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        raise UserError(f"{path}: not a photograph that Pillow can read ({type(error).__name__})") from error


def look(path: Path) -> None:
    """Raises `UserError` for a file that is there and cannot be a scan, labels or a photograph, by what it begins with
    or how long it is."""
    name, size = path.name.lower(), path.stat().st_size
    record = next((length for end, length in RECORDS.items() if name.endswith(end)), None)
    if record is not None and size % record:
        raise UserError(f"{path}: {size} bytes are no multiple of a record of {record}: is it cut?")
    if name.endswith(".label"):
        _check_labels(path, size // RECORDS[".label"])
    if path.suffix.lower() in ENDS:
        try:
            with Image.open(path):
                pass
        except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
            raise UserError(f"{path}: not a photograph that Pillow can read ({type(error).__name__})") from error
        with path.open("rb") as file:
            file.seek(-min(size, TAIL), 2)
            whole = ENDS[path.suffix.lower()] in file.read()
        if not whole:
            raise UserError(f"{path}: the photograph is cut: it has no end")


def _check_labels(path: Path, labels: int) -> None:
    scan = path.parents[1] / "velodyne" / f"{path.stem}.bin"
    points = scan.stat().st_size // RECORDS[".bin"] if scan.is_file() else labels
    if labels != points:
        raise UserError(f"{path}: {labels} labels, its scan has {points} points")


def photograph(path: Path, intrinsics: Matrix, lidar_to_camera: Matrix, scan: Scan) -> Picture:
    """A picture with its camera.

    Raises:
        UserError: it cannot be read, or none of the scan's points lie in it, so that the calibration is another's.
    """
    rgb = read_rgb(path)
    camera = Camera(intrinsics, lidar_to_camera, rgb.shape[0], rgb.shape[1])
    if not in_view(camera, scan).any():
        raise UserError(f"{path}: the camera sees none of the scan's {len(scan)} points: is this its calibration?")
    return Picture(camera, rgb)


def in_view(camera: Camera, scan: Scan) -> npt.NDArray[np.bool_]:
    """``(n,)`` which points lie before the camera and inside its image, hidden or not."""
    uv, depth = camera.project(scan.xyz)
    inside: npt.NDArray[np.bool_] = (
        (depth > 0) & (uv >= 0).all(axis=1) & (uv < (camera.width, camera.height)).all(axis=1)
    )
    return inside


def counted(boxes: tuple[Box, ...] | None, scan: Scan) -> tuple[Box, ...] | None:
    """Boxes with the number of points in each."""
    if boxes is None:
        return None
    return tuple(replace(box, points=int(box.inside(scan.xyz).sum())) for box in boxes)


def files(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder by the end of their name, sorted. Raises `UserError` if there are none."""
    found = sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))
    if not found:
        raise UserError(f"{folder}: no {suffix} files")
    return found
