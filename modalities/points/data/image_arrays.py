"""The scan of a range image that is kept as arrays of rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xmodal_kd.runtime.errors import UserError

from .column_units import unit
from .frame import Scan
from .ring_numbers import downwards

#: What an array is called, its axes behind rows and columns, and which kinds of numbers it may hold.
ARRAYS = {"xyz": ((3,), "f"), "intensity": ((), "fiu"), "label": ((), "iu")}


def scan_of_image(arrays: Mapping[str, npt.NDArray[np.generic]], path: Path) -> tuple[Scan, npt.NDArray[np.bool_]]:
    """The cells from which something came back, row by row, and which cells these are ``(h, w)``.

    Args:
        arrays: ``xyz`` (h, w, 3: metres), ``intensity`` (h, w; 0 to 1, or to 255) and perhaps ``label`` (h, w), which
            is left to whoever knows its ids. A cell is empty whose xyz is 0 or not finite. Row 0 is the highest laser;
            where it is the lowest, rows are counted from the last.

    Raises:
        UserError: an array is missing or another, or all cells are empty.
    """
    _check(path, arrays)
    xyz = arrays["xyz"].astype(np.float32)
    there = np.isfinite(xyz).all(axis=2) & (xyz != 0).any(axis=2)
    if not there.any():
        raise UserError(f"{path}: all {there.size} cells are empty (xyz 0): the scan has no points")
    intensity = unit(arrays["intensity"][there].astype(np.float32), path)
    ring = downwards(np.nonzero(there)[0], xyz[there], len(xyz))
    return Scan(xyz[there], intensity, ring, len(xyz)), there


def _check(path: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """`UserError` for an array that is missing, of another shape or kind; ``label`` may be missing."""
    shape = arrays["xyz"].shape[:2] if "xyz" in arrays and arrays["xyz"].ndim == 3 else None
    for name, (axes, kinds) in ARRAYS.items():
        if name not in arrays:
            if name == "label":
                continue
            raise UserError(f"{path}: it has no array {name!r} (it has {', '.join(arrays) or 'none'})")
        found = arrays[name]
        if shape is None or found.shape != (*shape, *axes) or found.dtype.kind not in kinds:
            wanted = "x".join(["rows", "columns", *map(str, axes)] if shape is None else map(str, (*shape, *axes)))
            raise UserError(f"{path}: {name!r} must be numbers {wanted}, got {found.dtype} {found.shape}")


__all__ = ["ARRAYS", "scan_of_image"]
