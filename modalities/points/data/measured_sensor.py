"""The sensor of a scan that no preset describes: where its lasers point, or what it sees, and how high it stands."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from .frame import Scan
from .ground import ground
from .rings import NEAR, find_rings, medians
from .simulator.sensors import Sensor, SensorSpec

#: Share of the mean spacing by which lasers may miss an even one and still be said by their field of view.
UNEVEN = 0.25
#: Degrees by which lasers differ, root mean square, from those of a sensor that they may still be. A first scan in a
#: narrow street shows an HDL-64E's wrong by 0.5 to 1.4 (KITTI), another sensor's of as many lasers by 3 or more.
APART = 2.0
#: A scan that covers more degrees is of a sensor that turns; shares of its points at the ends of what it covers;
#: degrees by which it may look aside and still be taken to look ahead; a number that divides its rows.
WIDEST, ENDS, SLANT, ROWS = 270.0, (0.002, 0.998), 8.0, 16
#: Digits of a laser's degrees.
DIGITS = 2
#: Share of the returns that may lie beyond the reach, which is told in steps of so many metres where it is unusual.
FAR, STEP = 0.001, 10


def measured(scan: Scan, beams: int) -> SensorSpec:
    """Elevations by the median of each ring's points; rings that saw nothing lie evenly between or beyond the others.

    Args:
        beams: of the sensor; a scan that does not name its rings must show them.

    Raises:
        UserError: rings cannot be found.
    """
    scan = find_rings(scan, beams)
    assert scan.ring is not None
    distance = np.linalg.norm(scan.xyz.astype(np.float64), axis=1)
    clear = distance > NEAR
    up = np.degrees(np.arcsin(scan.xyz[clear, 2] / distance[clear]))
    degrees = _filled(medians(up, scan.ring[clear].astype(np.int64), beams))
    told: dict[str, float] = {}
    far = STEP * float(np.ceil(np.quantile(distance, 1 - FAR) / STEP))
    if far > SensorSpec.model_fields["max_range"].default:
        told["max_range"] = far
    if (low := ground(scan.xyz.astype(np.float64))) is not None and low < 0:
        told["height"] = round(-low, 2)
    even = np.linspace(degrees[0], degrees[-1], beams)
    if abs(degrees - even).max() < UNEVEN * abs(even[1] - even[0]) or (np.diff(degrees) > -(10.0**-DIGITS)).any():
        return SensorSpec(beams=beams, fov=(float(degrees.min()), float(degrees.max())), **told)
    return SensorSpec(elevations=tuple(float(x) for x in degrees), **told)


def grid(scan: Scan) -> SensorSpec | None:
    """Of a scan of a sensor that looks one way: where it looks, and about as many rows as its points are dense.

    None for one that looks all around, or further back than ahead.
    """
    xyz = scan.xyz[scan.there].astype(np.float64)
    azimuth = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0]))
    right, left = np.quantile(azimuth, ENDS)
    if left - right > WIDEST or not right < 0 < left:
        return None
    if abs(left + right) < SLANT:  # it looks ahead
        left = max(left, -right)
        right = -left
    low, high = np.quantile(np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1]))), ENDS)
    step = np.sqrt((left - right) * (high - low) / len(xyz))
    rows = int(np.clip(ROWS * round((high - low) / step / ROWS), ROWS, 8 * ROWS))
    told: dict[str, float] = {}
    if (ground_at := ground(xyz)) is not None and ground_at < 0:
        told["height"] = round(-ground_at, 2)
    fov, across = ((round(float(a), DIGITS), round(float(b), DIGITS)) for a, b in ((low, high), (right, left)))
    return SensorSpec(beams=rows, fov=fov, azimuth=across, columns=4 * rows, **told)


def _filled(degrees: Float[np.ndarray, " beams"]) -> Float[np.ndarray, " beams"]:
    """Rings that saw nothing, -inf, on a line through their two nearest neighbours; rounded."""
    known: Int[np.ndarray, " k"] = np.flatnonzero(np.isfinite(degrees))
    filled = np.interp(np.arange(len(degrees)), known, degrees[known])
    if len(known) > 1:
        for at in range(known[0]):
            step = (filled[known[1]] - filled[known[0]]) / (known[1] - known[0])
            filled[at] = filled[known[0]] + step * (at - known[0])
        for at in range(known[-1] + 1, len(degrees)):
            step = (filled[known[-1]] - filled[known[-2]]) / (known[-1] - known[-2])
            filled[at] = filled[known[-1]] + step * (at - known[-1])
    rounded: np.ndarray = np.clip(filled, -90, 90).round(DIGITS)
    return rounded


def alike(a: Sensor, b: Sensor) -> bool:
    """Whether two sensors have as many lasers, which look the same ways but for `APART`."""
    if a.beams != b.beams or a.azimuth != b.azimuth:
        return False
    apart = np.degrees(np.sort(a.elevations) - np.sort(b.elevations))
    return bool(np.sqrt((apart**2).mean()) <= APART)


__all__ = ["alike", "grid", "measured"]
