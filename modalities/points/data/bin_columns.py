"""Whether a ``.bin`` is what KITTI means by it: the format names neither its columns nor how many there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from xmodal_kd.runtime.errors import UserError

COLUMNS = 4
#: Other numbers of columns that scans are written with, and what they then are.
OTHERS = {
    3: "x, y, z", 5: "x, y, z, intensity, ring or time", 6: "x, y, z and three more", 7: "x, y, z and four more",
}  # fmt: skip
#: Metres within which the coordinates of a scan lie.
REACH = 1000.0
#: Records that are looked at.
SAMPLE = 20_000
NEXT = "write it as .npz with the arrays xyz and intensity, or as .ply"


def check_columns(path: Path) -> None:
    """`UserError` for a file whose fourth column is no intensity: its records have another number of columns.

    Values below 0 show it: where the columns are counted wrongly, each in turn becomes the fourth. How many there
    are is told from neighbours in the file, which lie near each other when the columns are counted rightly.
    """
    size = path.stat().st_size
    fitting = [count for count in OTHERS if size and size % (4 * count) == 0]
    values = np.fromfile(path, "<f4", SAMPLE * 60)
    if size % (4 * COLUMNS):
        if fitting:
            count = min(fitting, key=lambda count: _step(values, count))
            raise UserError(
                f"{path}: {size} bytes are no multiple of a record of {4 * COLUMNS} (float32 x {COLUMNS}), but of "
                f"{count} columns ({OTHERS[count]}): {NEXT}"
            )
        return
    table = values[: len(values) // COLUMNS * COLUMNS].reshape(-1, COLUMNS)
    if not np.isfinite(values).all() or not len(table) or table[:, 3].min() >= 0:
        return
    if _doubles(path, size):
        raise UserError(f"{path}: its numbers are float64, of 8 bytes, where KITTI's are float32: {NEXT}")
    steps = {count: _step(values, count) for count in fitting}
    best = min(steps, key=steps.__getitem__, default=COLUMNS)
    looks = ""
    if best != COLUMNS and steps[best] < _step(values, COLUMNS):
        looks = f"; it looks like {best} columns ({OTHERS[best]})"
    low, high = table[:, 3].min(), table[:, 3].max()
    raise UserError(
        f"{path}: no KITTI scan: its fourth column, from {low:.3g} to {high:.3g}, is no intensity{looks}: {NEXT}"
    )


def _doubles(path: Path, size: int) -> bool:
    """Whether the file is one of float64: of what is float32, such numbers are next to nothing or beyond all bounds."""
    if not size or size % (8 * COLUMNS):
        return False
    values = np.abs(np.fromfile(path, "<f8", SAMPLE * COLUMNS).reshape(-1, COLUMNS)[:, :3])
    return bool(np.isfinite(values).all() and values.max(initial=0) < REACH and np.median(values.max(axis=1)) > 1e-3)


def _step(values: npt.NDArray[np.float32], columns: int) -> float:
    """Typical distance between neighbours, of x, y, z in records of so many columns."""
    table = values[: len(values) // columns * columns].reshape(-1, columns)[:SAMPLE, :3]
    return (
        float(np.median(np.linalg.norm(np.diff(table.astype(np.float64), axis=0), axis=1))) if len(table) > 1 else 0.0
    )
