"""Which laser saw a point, where the file does not say, and scans of fewer lasers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from xmodal_kd.errors import UserError

from .frame import Scan

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: A file goes on to the next laser where the azimuth jumps back by more than this; noise goes back by 0.0004 at most.
JUMP = np.pi / 2
#: Heights above the origin from which the lasers may start, metres (an HDL-64E's start 0.12 to 0.21 m above it).
STARTS = np.arange(-0.1, 0.31, 0.01)
#: Bins of elevation for each laser that there would be with even spacing.
BINS = 16
#: Half the width of what a peak claims, in even spacings.
CLAIM = 0.2
#: Nearer points say little of a laser's angle: they come from the car itself, metres.
NEAR = 2.0
#: Rounds of fitting a line to each ring and giving each point to its nearest line.
ROUNDS = 10


def find_rings(scan: Scan, beams: int) -> Scan:
    """The scan with `ring` set, 0 the highest of `beams` lasers; as it is if it has that many already.

    Where the file lists one laser's turn after another, as KITTI's and our simulator's do, turns are told apart by
    the azimuth alone, and the result is exact. Otherwise rings are found by elevation (`rings_by_elevation`): good
    for most points, but a point from a near wall may be given to its neighbour.

    Raises:
        UserError: the scan has another number of beams, or fewer points than `beams`.
    """
    if scan.ring is not None:
        if scan.beams != beams:
            raise UserError(f"a scan of {scan.beams} beams is taken for one of {beams}: set beams to {scan.beams}")
        return scan
    if len(scan) < beams:
        raise UserError(f"a scan of {len(scan)} points has no {beams} rings: choose fewer beams")
    ring = rings_by_order(scan.xyz, beams)
    if ring is None:
        ring = rings_by_elevation(scan.xyz, beams)
    return replace(scan, ring=ring, beams=beams)


def rings_by_order(xyz: npt.NDArray[np.floating], beams: int) -> Ints | None:
    """``(n,)`` rings of points that lie laser by laser, or None if they do not come in `beams` turns.

    A turn may begin ahead (KITTI) or behind (our simulator), and go either way round.
    """
    azimuth = np.arctan2(xyz[:, 1].astype(np.float64), xyz[:, 0])
    for begin in (0.0, np.pi):
        for way in (1, -1):
            turned = (way * (azimuth - begin)) % (2 * np.pi)
            turn = np.concatenate([[0], np.cumsum(np.diff(turned) < -JUMP)])
            if turn[-1] + 1 == beams:
                return _downwards(xyz, turn, beams)
    return None


def rings_by_elevation(xyz: npt.NDArray[np.floating], beams: int) -> Ints:
    """``(n,)`` rings by the angle at which points are seen, whatever their order.

    A laser starts above or below the sensor's origin, so its points lie on a line height = start + slope * distance.
    The lines are found one after another as the highest peaks of a histogram over starts and slopes, each time without
    the points of those before (a Hough transform); then lines are fitted and points given to the nearest, in turn.
    """
    height = xyz[:, 2].astype(np.float64)
    distance = np.maximum(np.hypot(xyz[:, 0], xyz[:, 1]).astype(np.float64), 1e-3)
    clear = distance > NEAR if (distance > NEAR).sum() >= beams else np.ones(len(xyz), dtype=bool)
    slopes, starts = _peaks(height[clear], distance[clear], beams)
    ring = _nearest_line(height, distance, slopes, starts)
    for _ in range(ROUNDS):
        slopes, starts = _lines(height[clear], distance[clear], ring[clear], slopes, starts)
        nearest = _nearest_line(height, distance, slopes, starts)
        if (nearest == ring).all():
            break
        ring = nearest
    return _downwards(xyz, ring, beams)


def keep_beams(scan: Scan, beams: int) -> npt.NDArray[np.bool_]:
    """``(n,)`` points of every k-th ring, so that `beams` remain, the highest of all among them.

    So rows ``::k`` of the full range image are those of the thinned scan.

    Raises:
        UserError: the scan has no rings, or `beams` does not divide their number.
    """
    if scan.ring is None or scan.beams is None:
        raise UserError("a scan without rings cannot be thinned: find them first (find_rings)")
    if not 0 < beams <= scan.beams or scan.beams % beams:
        raise UserError(f"{beams} beams cannot be kept of {scan.beams}: choose a divisor")
    kept: npt.NDArray[np.bool_] = scan.ring % (scan.beams // beams) == 0
    return kept


def thin(scan: Scan, beams: int) -> Scan:
    """The scan that a sensor of fewer lasers would have seen: `keep_beams`, with rings renumbered 0 to `beams` - 1.

    Raises:
        UserError: as `keep_beams`, or no point is left.
    """
    left = scan[keep_beams(scan, beams)]
    if not len(left) or left.ring is None or scan.beams is None:
        raise UserError(f"no point of the scan is left of {scan.beams} beams thinned to {beams}")
    return replace(left, ring=left.ring // (scan.beams // beams), beams=beams)


def _downwards(xyz: npt.NDArray[np.floating], group: Ints, beams: int) -> Ints:
    """Groups renumbered so that 0 looks highest: by the median elevation, empty groups last."""
    elevation = np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1]))
    order = np.argsort(group, kind="stable")
    parts = np.split(elevation[order], np.searchsorted(group[order], np.arange(1, beams)))
    medians = np.array([np.median(part) if len(part) else -np.inf for part in parts])
    rank = np.empty(beams, dtype=np.int64)
    rank[np.argsort(-medians, kind="stable")] = np.arange(beams)
    return rank[group]


def _peaks(height: Floats, distance: Floats, beams: int) -> tuple[Floats, Floats]:
    """Slope and start of `beams` lines, in no order."""
    angles = np.arctan2(height - STARTS[:, None], distance)
    low, high = np.quantile(angles, (0.001, 0.999))
    width = max(high - low, 1e-6) / (beams * BINS)
    bins = np.clip(((angles - low) / width).astype(np.int64), 0, beams * BINS + BINS)
    size = beams * BINS + BINS + 1
    counts = np.stack([np.bincount(row, minlength=size) for row in bins]).astype(np.float64)
    left = np.ones(len(height), dtype=bool)
    slopes, starts = np.full(beams, np.inf), np.zeros(beams)
    for i in range(beams):
        window = counts[:, 1:-1] + counts[:, 2:] + counts[:, :-2]
        at, bin_ = np.unravel_index(window.argmax(), window.shape)
        if not window[at, bin_]:
            break
        angle = low + (bin_ + 1.5) * width
        slopes[i], starts[i] = np.tan(angle), STARTS[at]
        claimed = np.flatnonzero(left & (abs(angles[at] - angle) < CLAIM * BINS * width))
        left[claimed] = False
        for row, taken in zip(counts, bins[:, claimed], strict=True):
            row -= np.bincount(taken, minlength=size)
    return slopes, starts


def _lines(height: Floats, distance: Floats, ring: Ints, slopes: Floats, starts: Floats) -> tuple[Floats, Floats]:
    """Slope and start of each ring's line by least squares of angles; the old start where the fit is not to be trusted,
    because all points of the ring are about as far."""

    def total(values: Floats) -> Floats:
        return np.bincount(ring, values, len(starts)).astype(np.float64)

    weight = 1 / distance**2
    w = np.maximum(total(weight), 1e-12)
    x, y = total(weight * distance) / w, total(weight * height) / w
    spread = total(weight * (distance - x[ring]) ** 2) / w
    slope = total(weight * (distance - x[ring]) * (height - y[ring])) / w / np.maximum(spread, 1e-12)
    fitted = y - slope * x
    trusted = (abs(fitted - starts) < 0.1) & (spread > 0.01)
    kept = np.where(trusted, fitted, starts)
    return np.where(x > 0, (y - kept) / np.maximum(x, 1e-9), slopes), kept


def _nearest_line(height: Floats, distance: Floats, slopes: Floats, starts: Floats) -> Ints:
    best, ring = np.full(len(height), np.inf), np.zeros(len(height), dtype=np.int64)
    for i in np.flatnonzero(np.isfinite(slopes)):
        away = abs(height - starts[i] - slopes[i] * distance)
        better = away < best
        best[better], ring[better] = away[better], i
    return ring
