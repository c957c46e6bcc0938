"""One scan from one file: KITTI and nuScenes records, PLY, PCD, LAS, arrays, text.

Labels are kept only from NPZ, which holds indexes of our own classes; what a PLY calls a label is somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmodal_kd.runtime.bounded_arrays import read_npy, read_npz
from xmodal_kd.runtime.errors import UserError

from .bin_columns import check_columns
from .classes import EIGHT
from .column_units import check_metres, intensity_at, unit
from .frame import UNLABELLED, Scan
from .image_arrays import scan_of_image
from .las import read_las
from .ply_pcd import read_pcd, read_ply
from .ring_numbers import rings_by_number
from .text_columns import read_text

NUSCENES_BEAMS = 32
#: nuScenes' LiDAR has x right and y ahead; ours x ahead and y left.
NUSCENES_TURN = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
#: An array of more columns than this, and more than rows, lies on its side.
WIDEST = 16
#: What columns are called by the programs that write them, lower case.
NAMES = {
    "intensity": ("intensity", "scalar_intensity", "reflectance", "reflectivity", "remission", "i"),
    "ring": ("ring", "scalar_ring", "laser_id", "laserid", "laser_number", "laser", "channel", "beam"),
    **{axis: (axis, f"points_m_xyz:{at}", f"points:{at}") for at, axis in enumerate("xyz")},  # VeloView's
}


def read_points(path: Path | str, classes: int = len(EIGHT)) -> Scan:
    """The scan of a file, by the end of its name, with intensities 0 to 1 and ring 0 the highest.

    ==============  ================================================================================================
    ``.bin``        KITTI: float32 records x, y, z, intensity (0 to 1); no rings (see `rings.find_rings`)
    ``.pcd.bin``    nuScenes: float32 records x, y, z, intensity (0 to 255), ring (0 lowest of 32), turned to our axes
    ``.ply .pcd``   columns x, y, z, and where there are any an intensity and a ring
    ``.las .laz``   the same; an intensity of 16 bits, a ring where an extra dimension is called one
    ``.npz``        arrays ``xyz`` or ``points`` (n, 3 or more: x, y, z, intensity), ``intensity``, ``ring``, ``labels``
                    or a range image, ``xyz`` (h, w, 3) and ``intensity`` (h, w), see `image_arrays`
    ``.npy``        one array as ``points``; or of fields, named as columns are
    ``.csv .txt``   lines of numbers, by comma, semicolon, tab or blank; the first may name columns, else they are
    ``.xyz .asc``   x, y, z, intensity
    ``.pts``        the same behind a line that counts them; an intensity of -2048 to 2047, as Leica's
    ==============  ================================================================================================

    In all but ``.pcd.bin`` intensities are those that `column_units.unit` tells apart, and rings are numbered by where
    their lasers look, whatever the file numbers them (`ring_numbers`). Of 6 and more columns without names none is an
    intensity: they may be colours or normals.

    Organised clouds and range images have a place for every shot, and NaN where nothing came back. But for the two
    kinds of ``.bin``, such points stay in the scan, with NaN in `xyz`, so that results are aligned with the file
    (`Scan.there`).

    Args:
        classes: how many there are; the labels of an ``.npz`` are their indexes.

    Raises:
        UserError: a file that is missing, not of these, cut or empty, ``.bin`` with NaN or infinite values or with what
            is no intensity in its fourth column, other files without any finite point; it names the file.
    """
    path = Path(path)
    suffix = ".pcd.bin" if path.name.lower().endswith(".pcd.bin") else path.suffix.lower()
    if suffix not in READERS:
        known = " ".join(READERS)
        raise UserError(f"{path}: unknown kind of point cloud {suffix!r} (known: {known}): convert it to one of these")
    if not path.is_file():
        raise UserError(f"{path}: {'it is a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        return check_labels(path, READERS[suffix](path), classes)
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror or error})") from error


def records(path: Path, fields: int) -> npt.NDArray[np.float32]:
    """``(n, fields)`` little-endian float32, x, y and z first.

    Raises:
        UserError: the length is no multiple of the record, no record, NaN or infinite values.
    """
    size = path.stat().st_size
    if size % (4 * fields):
        raise UserError(f"{path}: {size} bytes are no multiple of a record of {4 * fields} (float32 x {fields})")
    table = np.fromfile(path, "<f4").reshape(-1, fields)
    check_finite(table, path)
    return table


def check_finite(table: npt.NDArray[Any], path: Path) -> None:
    """`UserError` for no points, or for some that are not finite."""
    if not len(table):
        raise UserError(f"{path}: the scan is empty")
    if bad := int((~np.isfinite(table)).any(axis=1).sum()):
        raise UserError(f"{path}: {bad} of {len(table)} points are NaN or infinite: remove them first")


def _kitti(path: Path) -> Scan:
    check_columns(path)
    table = records(path, 4)
    check_metres(table[:, :3], path)
    return Scan(table[:, :3].copy(), unit(table[:, 3], path))


def _nuscenes(path: Path) -> Scan:
    table = records(path, 5)
    ring = table[:, 4].astype(np.int64)
    if (ring != table[:, 4]).any() or ring.min() < 0 or ring.max() >= NUSCENES_BEAMS:
        raise UserError(f"{path}: its fifth column is no ring of 0 to {NUSCENES_BEAMS - 1}: not a nuScenes scan")
    intensity = np.clip(table[:, 3] / 255, 0, 1)
    xyz = table[:, :3] @ NUSCENES_TURN.T.astype(np.float32)
    return Scan(xyz, intensity, NUSCENES_BEAMS - 1 - ring, NUSCENES_BEAMS)


def _columns(read: Callable[[Path], Mapping[str, npt.NDArray[Any]]]) -> Callable[[Path], Scan]:
    def scan(path: Path) -> Scan:
        columns = {name.lower(): column for name, column in read(path).items()}
        chosen = {key: next((columns[n] for n in names if n in columns), None) for key, names in NAMES.items()}
        if missing := [name for name in "xyz" if chosen[name] is None]:
            held = ", ".join(columns) or "none"
            raise UserError(f"{path}: it has no column {missing[0]!r} (it has {held}): name its columns x, y and z")
        xyz = np.stack([np.asarray(chosen[name]) for name in "xyz"], axis=1)
        return _scan(path, xyz, chosen["intensity"], chosen["ring"])

    return scan


def _npz(path: Path) -> Scan:
    arrays = read_npz(path)
    name = next((key for key in ("xyz", "points") if key in arrays), None)
    if name is None:
        held = ", ".join(arrays) or "none"
        raise UserError(f"{path}: it has no array 'xyz' or 'points' (it has {held}): name the coordinates xyz")
    if name == "xyz" and arrays[name].ndim == 3:
        return _every_cell(*scan_of_image(arrays, path))
    points = _upright(arrays[name], path)
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: {name!r} must be numbers (n, 3 or more), got {points.dtype} {points.shape}: a row a point"
        )
    for key in ("intensity", "ring", "labels"):
        if key in arrays and (arrays[key].shape != (len(points),) or arrays[key].dtype.kind not in "fiu"):
            raise UserError(
                f"{path}: {key!r} must be {len(points)} numbers, got {arrays[key].dtype} {arrays[key].shape}"
            )
    scan = _scan(path, points[:, :3], arrays.get("intensity", _fourth(points)), arrays.get("ring"))
    if "labels" not in arrays:
        return scan
    labels = arrays["labels"]
    if not (labels == np.rint(labels)).all():
        raise UserError(f"{path}: its labels must be whole numbers, classes of points: {UNLABELLED} for none")
    return Scan(scan.xyz, scan.intensity, scan.ring, scan.beams, labels.astype(np.int64))


def _every_cell(scan: Scan, there: npt.NDArray[np.bool_]) -> Scan:
    """The scan of a range image with a point for each cell, row by row: NaN in those that are empty."""
    assert scan.ring is not None
    cells = np.flatnonzero(there)
    xyz, intensity = np.full((there.size, 3), np.nan, np.float32), np.zeros(there.size, np.float32)
    ring = np.zeros(there.size, np.int64)
    xyz[cells], intensity[cells], ring[cells] = scan.xyz, scan.intensity, scan.ring
    return Scan(xyz, intensity, ring, scan.beams)


def _npy(path: Path) -> Scan:
    points = read_npy(path)
    if names := points.dtype.names:
        return _columns(lambda _: {str(name): points[name].reshape(-1) for name in names})(path)
    if points.ndim == 3:  # an organised cloud
        points = points.reshape(-1, points.shape[-1])
    points = _upright(points, path)
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise UserError(f"{path}: an array of numbers (n, 3 or more) is expected, got {points.dtype} {points.shape}")
    return _scan(path, points[:, :3], _fourth(points), None)


def _upright(points: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """The array. Raises `UserError` for one whose points are columns."""
    if points.ndim == 2 and points.shape[0] < points.shape[1] > WIDEST:
        raise UserError(
            f"{path}: its array is {points.shape}, a point a column: a row a point is expected: save its .T"
        )
    return points


def _fourth(points: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """The intensity of unnamed columns, if there is one."""
    at = intensity_at(points.shape[1])
    return None if at is None else points[:, at]


def check_labels(path: Path, scan: Scan, classes: int) -> Scan:
    """The scan. Raises `UserError` for a label that is none of `classes`."""
    labels = np.zeros(0, np.int64) if scan.labels is None else scan.labels
    if len(wrong := np.unique(labels[(labels < UNLABELLED) | (labels >= classes)])):
        raise UserError(f"{path}: label {wrong[0]} is out of range ({UNLABELLED} for none, 0 to {classes - 1})")
    return scan


def _scan(path: Path, xyz: npt.NDArray[Any], intensity: npt.NDArray[Any] | None, ring: npt.NDArray[Any] | None) -> Scan:
    """A scan of columns that may be of any type. Raises `UserError` for coordinates that are none of a scan."""
    check_metres(xyz, path)
    with np.errstate(over="ignore", invalid="ignore"):
        xyz = np.array(xyz, dtype=np.float32, order="C")
        intensity = np.zeros(len(xyz), np.float32) if intensity is None else intensity.astype(np.float32)
    there = np.isfinite(xyz).all(axis=1)
    if not there.any():
        check_finite(xyz, path)
    xyz[~there] = np.nan
    strength = unit(np.where(np.isfinite(intensity) & there, intensity, 0), path)
    found = None if ring is None else rings_by_number(ring, xyz, there, path)
    return Scan(xyz, strength) if found is None else Scan(xyz, strength, *found)


READERS: dict[str, Callable[[Path], Scan]] = {
    ".bin": _kitti,
    ".pcd.bin": _nuscenes,
    ".ply": _columns(read_ply),
    ".pcd": _columns(read_pcd),
    **dict.fromkeys((".las", ".laz"), _columns(read_las)),
    ".npz": _npz,
    ".npy": _npy,
    **dict.fromkeys((".csv", ".txt", ".xyz", ".asc", ".pts"), _columns(read_text)),
}
