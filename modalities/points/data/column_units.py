"""In which units columns are: of intensities and coordinates no format says it, so their values tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmodal_kd.runtime.errors import UserError

#: Metres from the origin between which the typical point is none of a scan: no LiDAR reaches the first.
FAR, FARTHEST = 1000.0, 1e8
#: What intensities of 0 to 1, of 8 and of 16 bits are at most.
ONE, NARROW, WIDE = 1, 255, 65535
#: Share of the points that may lie beyond: retroreflectors do, and are clipped.
BEYOND = 0.05


def unit(intensity: npt.NDArray[np.float32], path: Path) -> npt.NDArray[np.float32]:
    """``(n,)`` 0 to 1 of what is that, 0 to 255 or 0 to 65535.

    A few values beyond a scale are clipped; whole numbers of which one is above 1 are never of the first.

    Raises:
        UserError: values below 0, which are decibels or another sensor's own.
    """
    if not len(intensity):
        return intensity
    low, high = float(intensity.min()), float(intensity.max())
    if low < 0:
        raise UserError(
            f"{path}: its intensities run from {low:.4g} to {high:.4g}: 0 to 1, 0 to {NARROW} or 0 to {WIDE} is "
            "expected: scale that column, or leave it out"
        )
    scale = WIDE
    if high <= ONE or (not _whole(intensity) and _beyond(intensity, ONE)):
        scale = ONE
    elif _beyond(intensity, NARROW):
        scale = NARROW
    found: npt.NDArray[np.float32] = np.clip(intensity / np.float32(scale), 0, 1)
    return found


def _whole(values: npt.NDArray[np.float32]) -> bool:
    return bool((values == np.rint(values)).all())


def _beyond(values: npt.NDArray[np.float32], scale: float) -> bool:
    """Whether no more than a few lie beyond a scale."""
    return bool((values > scale).mean() <= BEYOND)


def check_metres(xyz: npt.NDArray[Any], path: Path) -> None:
    """`UserError` for coordinates of a map, whose neighbours float32 would not tell apart, and for millimetres."""
    with np.errstate(invalid="ignore"):
        away = np.abs(np.asarray(xyz, np.float64)).max(axis=1, initial=0.0)
    away = away[np.isfinite(away)]
    if len(away) and FAR < (median := float(np.median(away))) < FARTHEST:
        raise UserError(
            f"{path}: its points lie {median / 1000:,.0f} km from the origin, where a scan has its sensor: these are "
            "coordinates of a map: subtract the sensor's place from them; or they are millimetres: divide by 1000"
        )


def intensity_at(columns: int) -> int | None:
    """Which of so many columns without names is the intensity; six and more may hold colours or normals."""
    return 3 if columns in (4, 5) else None


__all__ = ["check_metres", "intensity_at", "unit"]
