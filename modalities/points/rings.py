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
#: Heights above the origin from which the lasers may start (an HDL-64E's start 0.12 to 0.21 m above it).
HEIGHTS = np.arange(-0.3, 0.31, 0.02)
#: Bins of the histograms of elevation that rings are looked for in.
BINS = 2000
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

    Lasers start above the sensor's origin, so a laser's points lie on a line height = start + slope * distance. First
    one start for all, the one that makes the histogram of slopes sharpest, and the best cut of it into `beams` parts
    (least squares, by dynamic programming); then lines are fitted and points given to the nearest, in turn.
    """
    height = xyz[:, 2].astype(np.float64)
    distance = np.maximum(np.hypot(xyz[:, 0], xyz[:, 1]).astype(np.float64), 1e-3)
    start = max(HEIGHTS, key=lambda start: _sharpness(np.arctan2(height - start, distance)))
    ring = _cut(np.arctan2(height - start, distance), beams)
    starts = np.full(beams, start)
    for _ in range(ROUNDS):
        slopes, starts = _lines(height, distance, ring, starts, beams)
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


def _histogram(elevation: Floats) -> tuple[Floats, Floats]:
    """Counts and centres; the outermost points, which are few and far out, fall into the last bins."""
    low, high = np.quantile(elevation, (0.001, 0.999))
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    counts = np.histogram(np.clip(elevation, low, high), edges)[0].astype(np.float64)
    return counts, (edges[1:] + edges[:-1]) / 2


def _sharpness(elevation: Floats) -> float:
    return float((_histogram(elevation)[0] ** 2).sum())


def _cut(elevation: Floats, beams: int) -> Ints:
    """``(n,)`` the part of each point, of the cut of their histogram into `beams` parts of least squares."""
    counts, centres = _histogram(elevation)
    filled = counts > 0
    counts, centres = counts[filled], centres[filled]
    n, first, second = (np.concatenate([[0], np.cumsum(counts * centres**power)]) for power in (0, 1, 2))
    # cost[i, j] of one part from bin i up to and without j
    many = np.maximum(n[None] - n[:, None], 1e-9)
    cost = second[None] - second[:, None] - (first[None] - first[:, None]) ** 2 / many
    cost[np.tril_indices(len(n))] = np.inf
    best, back = cost[0], []
    for _ in range(min(beams, len(centres)) - 1):
        total = best[:, None] + cost
        back.append(total.argmin(axis=0))
        best = total.min(axis=0)
    bounds, at = [], len(centres)
    for step in reversed(back):
        at = int(step[at])
        bounds.append((centres[at - 1] + centres[at]) / 2)
    return np.searchsorted(np.array(bounds[::-1]), elevation).astype(np.int64)


def _lines(height: Floats, distance: Floats, ring: Ints, starts: Floats, beams: int) -> tuple[Floats, Floats]:
    """Slope and start of each ring's line; the old start where its points are all as far, and cannot tell.

    Weights 1 / distance: errors are of angles.
    """

    def total(values: Floats) -> Floats:
        return np.bincount(ring, values, beams).astype(np.float64)

    weight = 1 / distance**2
    w = np.maximum(total(weight), 1e-12)
    x, y = total(weight * distance) / w, total(weight * height) / w
    spread = total(weight * (distance - x[ring]) ** 2) / w
    slope = total(weight * (distance - x[ring]) * (height - y[ring])) / w / np.maximum(spread, 1e-12)
    fitted = y - slope * x
    trusted = (abs(fitted - starts) < 0.15) & (spread > 0.01)
    kept = np.where(trusted, fitted, starts)
    return np.where(x > 0, (y - kept) / np.maximum(x, 1e-9), np.inf), kept


def _nearest_line(height: Floats, distance: Floats, slopes: Floats, starts: Floats) -> Ints:
    best, ring = np.full(len(height), np.inf), np.zeros(len(height), dtype=np.int64)
    for i in np.flatnonzero(np.isfinite(slopes)):
        away = abs(height - starts[i] - slopes[i] * distance) / distance
        better = away < best
        best[better], ring[better] = away[better], i
    return ring
