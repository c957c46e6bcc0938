"""Labelled range images as arrays: a row a laser, a cell a shot; nothing came back where all coordinates are 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xmodal_kd.runtime.bounded_arrays import read_npz
from xmodal_kd.runtime.errors import UserError

from ..classes import EIGHT, Classes
from ..frame import Frame, Scan
from ..image_arrays import scan_of_image


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
        scan, there = scan_of_image(arrays, path)
        if self.classes and "label" in arrays:
            labels = self._classes.labels(arrays["label"][there].astype(np.int64), path)
            scan = Scan(scan.xyz, scan.intensity, scan.ring, scan.beams, labels)
        return Frame(self.keys[i], scan)

    def files(self, i: int, pictures: bool = True) -> list[Path]:
        return [self._paths[i]]

    def labelled(self, i: int) -> bool:
        return bool(self.classes)

    def boxed(self, i: int) -> bool:
        return False


__all__ = ["RangeImages"]
