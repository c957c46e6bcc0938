"""Labelled range images as arrays: a row a laser, a cell a shot; nothing came back where all coordinates are 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xmodal_kd.runtime.bounded_arrays import read_npz
from xmodal_kd.runtime.errors import UserError

from ..classes import EIGHT, Classes
from ..column_units import unit
from ..frame import Frame, Scan
from ..ring_numbers import downwards

#: What an array is called, its axes behind rows and columns, and which kinds of numbers it may hold.
ARRAYS = {"xyz": ((3,), "f"), "intensity": ((), "fiu"), "label": ((), "iu")}


class RangeImages:
    """``NAME.npz`` in the folder, or in folders below it, one for each sequence.

    Arrays ``xyz`` (h, w, 3: metres, x forward, y left, z up), ``intensity`` (h, w; 0 to 1, or to 255) and ``label``
    (h, w; ids of the recipe's classes). Row 0 is the highest laser; where it is the lowest, rows are counted from the
    last. Without classes in the recipe, and of frames without ``label``, points have none: the ids of the eight are
    not those of any range images.
    """

    def __init__(self, folder: Path, classes: Classes = EIGHT) -> None:
        self._paths = sorted(folder.glob("*.npz")) or sorted(folder.glob("*/*.npz"))
        if not self._paths:
            raise UserError(f"{folder}: no range images: NAME.npz is expected there or in its folders")
        self.keys = [path.relative_to(folder).with_suffix("").as_posix() for path in self._paths]
        self.warnings: list[str] = []
        self._classes = classes
        self.classes: tuple[str, ...] = () if classes is EIGHT else classes.names

    def __len__(self) -> int:
        return len(self.keys)

    def frame(self, i: int, pictures: bool = True) -> Frame:
        """Frame `i`: the cells from which something came back, row by row; without a pose or pictures."""
        path = self._paths[i]
        arrays = read_npz(path)
        _check(path, arrays)
        xyz = arrays["xyz"].astype(np.float32)
        there = np.isfinite(xyz).all(axis=2) & (xyz != 0).any(axis=2)
        if not there.any():
            raise UserError(f"{path}: all {there.size} cells are empty (xyz 0): the scan has no points")
        intensity = unit(arrays["intensity"][there].astype(np.float32), path)
        ring = downwards(np.nonzero(there)[0], xyz[there], len(xyz))
        labels = None
        if self.classes and "label" in arrays:
            labels = self._classes.labels(arrays["label"][there].astype(np.int64), path)
        return Frame(self.keys[i], Scan(xyz[there], intensity, ring, len(xyz), labels))

    def files(self, i: int, pictures: bool = True) -> list[Path]:
        return [self._paths[i]]

    def labelled(self, i: int) -> bool:
        return bool(self.classes)

    def boxed(self, i: int) -> bool:
        return False


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


__all__ = ["RangeImages"]
