"""Rings from the numbers that files give their lasers, whatever they count from and in whatever order.

Velodyne's drivers count rings upwards from 0, Hesai's from 1, and a `laser_id` often follows the order of firing, in
which neighbours in number look far apart. Only where a laser looks says which ring it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmodal_kd.runtime.errors import UserError

from .rings import NEAR, SORTED, medians, ranked

Ints = npt.NDArray[np.int64]

#: Numbers of lasers that sensors have: a file that names ring 60 as its last comes from 64.
BEAMS = (4, 8, 16, 32, 40, 64, 80, 128)
#: More than any sensor has; a larger number is a time or an identity.
MOST = 1024
#: Share of the numbers up to the last that must occur before numbers without a 0 are taken to count from 1.
WHOLE = 0.9


def rings_by_number(
    numbers: npt.NDArray[Any], xyz: npt.NDArray[np.float32], there: npt.NDArray[np.bool_], path: Path
) -> tuple[Ints, int] | None:
    """``(n,)`` rings, 0 the highest, and how many lasers there are; None if all points have one number, which says
    nothing.

    Numbers that follow the elevation, upwards or downwards, keep their places, so that a laser without any return keeps
    its row. Others are put in the order of the elevations at which their points are seen; lasers that never occur
    are then the highest, which see the sky.

    Args:
        there: ``(n,)`` points with a place; the others' numbers count, but show nothing of where their lasers look.

    Raises:
        UserError: numbers that are none of lasers.
    """
    known = np.isfinite(numbers)
    if without := int((there & ~known).sum()):
        raise UserError(f"{path}: {without} of its points have no ring (NaN): leave them out, or the column")
    if not known.any():
        return None
    numbers = np.where(known, numbers, numbers[known].min())  # of points without a place any will do
    whole = numbers.astype(np.int64)
    if (whole != numbers).any() or whole.min() < 0:
        raise UserError(f"{path}: its rings must be whole numbers from 0")
    if whole.max() > MOST:
        raise UserError(f"{path}: ring {whole.max()} is none of a laser (at most {MOST}): leave the column out")
    used = np.unique(whole)
    if len(used) == 1 and len(whole) > 1:
        return None
    if used[0] >= 1 and used[-1] in BEAMS and len(used) >= WHOLE * used[-1]:
        whole, used = whole - 1, used - 1
    beams = next((count for count in BEAMS if used[-1] < count), int(used[-1]) + 1)
    return _downwards(whole, xyz, there, beams), beams


def downwards(rows: Ints, xyz: npt.NDArray[np.float32], beams: int) -> Ints:
    """``(n,)`` rows of a range image, counted from the highest laser whichever end its file begins with."""
    elevation = medians(np.arctan2(xyz[:, 2].astype(np.float64), np.hypot(xyz[:, 0], xyz[:, 1])), rows, beams)
    present = np.flatnonzero(np.isfinite(elevation))
    upwards = len(present) > 1 and np.corrcoef(ranked(-elevation[present]), present)[0, 1] < -SORTED
    return beams - 1 - rows if upwards else rows


def _downwards(numbers: Ints, xyz: npt.NDArray[np.float32], there: npt.NDArray[np.bool_], beams: int) -> Ints:
    """Numbers 0 to `beams` - 1 made rings, 0 the highest."""
    height, distance = xyz[:, 2].astype(np.float64), np.hypot(xyz[:, 0], xyz[:, 1]).astype(np.float64)
    far = there & (distance > NEAR)  # from the car itself points come at any angle
    clear = far if len(np.unique(numbers[far])) == len(np.unique(numbers[there])) else there
    elevation = medians(np.arctan2(height[clear], distance[clear]), numbers[clear], beams)
    present = np.flatnonzero(np.isfinite(elevation))
    rank = ranked(-elevation[present])
    trend = np.corrcoef(rank, present)[0, 1] if len(present) > 1 else 1.0
    if abs(trend) > SORTED:
        return numbers if trend > 0 else beams - 1 - numbers
    ring = np.full(beams, -1, dtype=np.int64)
    ring[present] = rank + beams - len(present)
    ring[ring < 0] = np.arange(beams - len(present))
    return ring[numbers]
