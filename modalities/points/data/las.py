"""LAS and LAZ files as columns, by laspy (and lazrs for LAZ)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from xmodal_kd.runtime.allocation import room
from xmodal_kd.runtime.binary_packages import load
from xmodal_kd.runtime.bounded_files import regular
from xmodal_kd.runtime.errors import UserError

#: The extra that brings both packages.
EXTRA = "las"
#: Bytes that a point takes in memory at most, beside its record: coordinates and columns of 8 bytes.
UNPACKED = 64
#: What an intensity of 16 bits is at most, and one of those who write 8 bits into the same field.
WIDE, NARROW = 65535, 255


def read_las(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """``x``, ``y``, ``z`` in metres, ``intensity`` 0 to 1 and the extra dimensions, by name in lower case.

    Intensities are of 16 bits, as the format says, unless none is above 255. Classifications are somebody else's, and
    not read.

    Raises:
        UserError: laspy or lazrs is missing, or the file is none of theirs, is cut or larger than the memory.
    """
    regular(path)
    laspy = load("laspy", EXTRA)
    if path.suffix.lower() == ".laz":
        load("lazrs", EXTRA)
    try:
        with laspy.open(path) as file:
            count, extra = file.header.point_count, [str(x) for x in file.header.point_format.extra_dimension_names]
            if count * (UNPACKED + file.header.point_format.size) > room() // 2:
                raise UserError(f"{path}: {count:,} points by its header are more than the memory holds: cut it")
            points = file.read()
        columns = {name: np.asarray(getattr(points, name), np.float64) for name in "xyz"}
        raw = np.asarray(points.intensity, np.float64)
        columns |= {name.lower(): np.asarray(points[name]) for name in extra}
    except UserError:
        raise
    except Exception as error:  # laspy, lazrs and NumPy raise whatever a broken file leads them to
        told = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path}: not a LAS or LAZ file, or a broken one ({told}): write it again") from error
    if len(raw) != count:
        raise UserError(f"{path}: it is cut: {len(raw)} of the {count} points that its header says: copy it again")
    if not count:
        raise UserError(f"{path}: the scan is empty")
    return columns | {"intensity": raw / (WIDE if raw.max() > NARROW else NARROW)}


__all__ = ["read_las"]
