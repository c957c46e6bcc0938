"""A sweep as an image: a row per beam or band of elevation, a column per step of azimuth, the nearest point shown.

Column j lies at azimuth ``pi - 2 pi (j + 0.5) / columns``: forward in the middle, what is left of the car in the left
half. So azimuth falls as the column rises. Row 0 is the highest.
Spherical projection after Milioto et al., RangeNet++ (IROS 2019), section III-A.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from xmodal_kd.runtime.errors import UserError

from ..data.frame import Scan
from ..data.simulator.sensors import AROUND

#: What the channels are, in order, and what each is divided by so that a network sees numbers near 1.
CHANNELS = ("range", "x", "y", "z", "valid")
SCALES = np.array([20, 20, 20, 2], dtype=np.float32)


@dataclass(frozen=True)
class RangeImage:
    """What a range image shows, and where each point of the sweep is in it.

    Attributes:
        channels: ``(5, h, w)`` range/20, x/20, y/20, z/2 in metres, and 1 where a point is shown; 0 elsewhere. With
            intensity, 0 to 1, it is the sixth.
        index: ``(h, w)`` the point that a cell shows, or -1.
        cell: ``(n,)`` row * w + column of the cell that a point belongs to, or -1: out of the image, or hidden behind
            a nearer point of the same cell. Points near the one that is shown share its cell.
    """

    channels: Float32[np.ndarray, "c h w"]
    index: Int64[np.ndarray, "h w"]
    cell: Int64[np.ndarray, " n"]

    def show(self, values: np.ndarray, fill: float | int) -> np.ndarray:
        """``(h, w)`` of what `values` ``(n,)`` (labels, predictions) says of the points shown; `fill` elsewhere."""
        if len(values) == 0:
            return np.full(self.index.shape, fill, dtype=values.dtype)
        shown: np.ndarray = np.where(self.index >= 0, values[self.index], values.dtype.type(fill))
        return shown


def range_image(
    scan: Scan,
    rows: int,
    columns: int,
    *,
    elevations: tuple[float, float] | None = None,
    max_range: float,
    tolerance: float = 0.5,
    intensity: bool = False,
    azimuth: tuple[float, float] = AROUND,
) -> RangeImage:
    """The nearest point of every cell.

    Args:
        scan: rows are its rings where it has as many as `rows`; else equal bands of elevation.
        rows, columns: of the image.
        elevations: (lowest, highest) edge of the image in radians, for scans that do not know their rings or have
            another number of them. Points outside it are not in the image.
        max_range: metres; points beyond it are not in the image.
        intensity: whether it has a channel.
        azimuth: (lowest, highest) in radians, between which the columns lie. Points outside are not in the image.
        tolerance: metres by which a point may lie behind the nearest of its cell and still belong to it.

    Raises:
        UserError: neither rings nor elevations say which row a point is in.
    """
    xyz = scan.xyz.astype(np.float32, copy=False)
    distance = np.sqrt(np.einsum("nc,nc->n", xyz, xyz))
    row = _rows(scan, distance, rows, elevations)
    column = column_of(xyz, columns, azimuth)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (distance > 0) & (distance <= max_range)
    cell = np.where(inside, row * columns + column, -1)
    nearest = np.full(rows * columns + 1, np.inf, dtype=np.float32)  # the last one takes cell -1
    np.minimum.at(nearest, cell, distance)
    index = _shown(cell, distance, nearest)
    cell = np.where(distance <= nearest[cell] + np.float32(tolerance), cell, -1)
    index = index.reshape(rows, columns)
    return RangeImage(_channels(xyz, distance, index, scan.intensity if intensity else None), index, cell)


def azimuths(columns: int) -> Float[np.ndarray, " w"]:
    """Radians of the middle of each column, falling from just below pi to just above -pi."""
    middle: np.ndarray = np.pi - 2 * np.pi * (np.arange(columns) + 0.5) / columns
    return middle


def column_of(
    xyz: Float[np.ndarray, "n 3"], columns: int, azimuth: tuple[float, float] = AROUND
) -> Int64[np.ndarray, " n"]:
    """The column that each point's azimuth falls into, -1 outside what is looked at."""
    if azimuth != AROUND:
        low, high = azimuth
        step = np.floor((high - np.arctan2(xyz[:, 1], xyz[:, 0])) * (columns / (high - low)))
        found: np.ndarray = np.where((step >= 0) & (step < columns), step, -1).astype(np.int64)
        return found
    turn = (np.pi - np.arctan2(xyz[:, 1], xyz[:, 0])) * (columns / (2 * np.pi))
    column: np.ndarray = turn.astype(np.int64) % columns  # never below 0: truncation is floor; azimuth -pi is column 0
    return column


def _rows(
    scan: Scan, distance: Float32[np.ndarray, " n"], rows: int, elevations: tuple[float, float] | None
) -> Int[np.ndarray, " n"]:
    """The row of each point; below 0 or from `rows` on where the image does not reach."""
    if scan.ring is not None and scan.beams == rows:
        return scan.ring.astype(np.int64, copy=False)
    if elevations is None:
        known = "does not say which beam saw a point" if scan.ring is None else f"has {scan.beams} beams"
        raise UserError(
            f"a range image of {rows} rows from a scan that {known}: give elevations, or find its rings first"
        )
    lowest, highest = elevations
    if not -np.pi / 2 <= lowest < highest <= np.pi / 2:
        raise UserError(f"elevations are (lowest, highest) in radians, got ({lowest:g}, {highest:g})")
    up = np.arcsin(np.clip(scan.xyz[:, 2] / np.maximum(distance, np.float32(1e-6)), -1, 1))
    row: np.ndarray = np.floor((highest - up) * (rows / (highest - lowest))).astype(np.int64)
    return row


def _shown(
    cell: Int64[np.ndarray, " n"], distance: Float32[np.ndarray, " n"], nearest: Float32[np.ndarray, " cells_and_none"]
) -> Int64[np.ndarray, " cells"]:
    """The nearest point of each cell, the first in the file among equals; -1 where there is none."""
    first = np.flatnonzero((cell >= 0) & (distance == nearest[cell]))[::-1]  # of several writes the last one stays
    index = np.full(len(nearest) - 1, -1, dtype=np.int64)
    index[cell[first]] = first
    return index


def _channels(
    xyz: Float32[np.ndarray, "n 3"], distance: Float32[np.ndarray, " n"], index: Int64[np.ndarray, "h w"],
    intensity: Float[np.ndarray, " n"] | None,
) -> Float32[np.ndarray, "c h w"]:  # fmt: skip
    number = len(CHANNELS) + (intensity is not None)
    points = np.zeros((number, len(xyz) + 1), dtype=np.float32)  # the last one is what empty cells show
    points[0, :-1], points[1:4, :-1], points[4, :-1] = distance, xyz.T, 1
    if intensity is not None:
        points[5, :-1] = intensity
    points[:4] /= SCALES[:, None]
    return points.take(index, axis=1, mode="wrap")  # -1 is the last
