"""Whether a scan is unlike what a student learned: its answers are then guesses, however sure it is of them.

What it learned is its sensor's, by the card: height above the ground, reach, lasers, columns, axes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from ..data.config import View
from ..data.frame import Scan
from ..data.ground import FEWEST, fullest, ground
from ..data.simulator.sensors import Sensor

#: Points to look at.
SAMPLE = 20_000
#: Metres by which the ground may lie higher or lower than learned.
HEIGHT = 0.5
#: Share of the points beyond the sensor's reach, and distance of the farthest points, metres.
BEYOND, NEAR = 0.05, 5.0
#: Share of the directions round the sensor that must hold points.
TURN, SECTORS = 0.7, 72
#: How much flatter than the height another axis must be to be taken for it.
FLATTER = 0.6


def unlike(scan: Scan, view: View, sensor: Sensor) -> tuple[str, ...]:
    """One line for each way in which the scan differs, with what to do; empty if it is as learned or has few points.

    Args:
        scan: points with a place, without the vehicle's own; ring numbers as in the file, if there are any.
    """
    if len(scan) < FEWEST:
        return ()
    some = scan.xyz[:: -(-len(scan) // SAMPLE)].astype(np.float64)
    return (*_axes(some), *_height(some, sensor), *_range(some, sensor), *_turn(some, sensor), *_columns(scan, view))


def _axes(xyz: Float[np.ndarray, "n 3"]) -> Iterator[str]:
    low, high = np.quantile(xyz, (0.02, 0.98), axis=0)
    flattest = int((high - low).argmin())
    if (
        flattest != 2
        and (high - low)[flattest] < FLATTER * (high - low)[2]
        and fullest(xyz, flattest) > 2 * fullest(xyz, 2)
    ):
        yield (
            f"the scan is flat along {'xyz'[flattest]}, not along z: its axes seem not to be x forward, y left, z up "
            "(a camera's are x right, y down, z forward): turn it first"
        )


def _height(xyz: Float[np.ndarray, "n 3"], sensor: Sensor) -> Iterator[str]:
    found = ground(xyz)
    if found is None or abs(found + sensor.height) <= HEIGHT:
        return
    if found > HEIGHT:
        yield f"the ground seems to lie {found:.1f} m above the sensor: z must point up: turn the scan over first"
        return
    yield (
        f"the ground seems to lie at z = {found:.1f} m; the model learned {-sensor.height:g} m: add "
        f"{-sensor.height - found:+.2f} m to z first"
    )


def _range(xyz: Float[np.ndarray, "n 3"], sensor: Sensor) -> Iterator[str]:
    distance = np.linalg.norm(xyz, axis=1)
    beyond, farthest = float((distance > sensor.max_range).mean()), float(np.quantile(distance, 0.99))
    if beyond > BEYOND:
        yield f"{100 * beyond:.0f} % of the points lie beyond the {sensor.max_range:g} m that the model learned"
    if farthest < NEAR:
        yield f"nearly all points lie within {farthest:.1f} m: is this a street, in metres?"


def _turn(xyz: Float[np.ndarray, "n 3"], sensor: Sensor) -> Iterator[str]:
    low, high = sensor.azimuth
    sector = np.floor((np.arctan2(xyz[:, 1], xyz[:, 0]) - low) / (high - low) * SECTORS).astype(np.int64)
    inside = (sector >= 0) & (sector < SECTORS)
    held, span = len(np.unique(sector[inside])) / SECTORS, np.degrees(high - low)
    learned = "full turns" if sensor.turns else f"{np.degrees(low):.0f} to {np.degrees(high):.0f} degrees"
    if held < TURN:
        yield f"the points cover {span * held:.0f} of {span:.0f} degrees; the model learned {learned}"
    elif not sensor.turns and inside.mean() < 1 - BEYOND:
        share = 100 * (1 - inside.mean())
        yield f"{share:.0f} % of the points lie beside what the model learned, {learned}: they take the nearest's class"


def _columns(scan: Scan, view: View) -> Iterator[str]:
    if view.sees != "range" or scan.ring is None:
        return
    typical = float(np.median(np.bincount(scan.ring)[np.unique(scan.ring)]))
    if typical < view.columns / 4:
        yield f"a ring has {typical:.0f} points; the model learned images of {view.columns} columns: most stay empty"


__all__ = ["unlike"]
