"""Voxels and supervoxels of a cylindrical grid, and which supervoxels are worth a lesson (PVKD).

Hou et al.: Point-to-Voxel Knowledge Distillation for LiDAR Semantic Segmentation (CVPR 2022), sections 3.2 and 3.3.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from ..data.classes import Classes

#: Metres from the sensor, and of height about it, that the grid spans.
RADIUS, HEIGHT = 60.0, (-3.0, 5.0)
#: Voxels along radius, azimuth and height, and supervoxels, each of (30, 15, 4) voxels: the paper's number of them.
VOXELS, SUPERVOXELS = (120, 90, 16), (4, 6, 4)
#: Names of classes of which there is little, and on which students fail first: of the eight, SemanticKITTI, nuScenes.
MINOR = frozenset({
    "car", "truck", "pole", "person", "bicycle", "motorcycle", "bus", "other-vehicle", "bicyclist", "motorcyclist",
    "trunk", "traffic-sign", "barrier", "construction_vehicle", "pedestrian", "traffic_cone", "trailer",
})  # fmt: skip


def minor(classes: Classes) -> Int[np.ndarray, " m"]:
    """Indexes of the classes that are minor by their names; where there are none, distance alone decides."""
    return np.array([i for i, name in enumerate(classes.names) if name in MINOR], dtype=np.int64)


def cells(xyz: Float[np.ndarray, "n 3"], parts: tuple[int, int, int]) -> Int[np.ndarray, " n"]:
    """The cell of each point in a grid of `parts` along radius, azimuth, height; -1 outside it, or where xyz is NaN."""
    x, y, z = xyz.T
    place = np.stack([
        np.hypot(x, y) / RADIUS,
        (np.pi - np.arctan2(y, x)) / (2 * np.pi) % 1.0,
        (z - HEIGHT[0]) / (HEIGHT[1] - HEIGHT[0]),
    ])  # fmt: skip
    with np.errstate(invalid="ignore"):
        at = np.floor(np.nan_to_num(place, nan=-1.0) * np.array(parts)[:, None]).astype(np.int64)
    inside = ((at >= 0) & (at < np.array(parts)[:, None])).all(axis=0)
    return np.where(inside, np.ravel_multi_index(at * inside, parts), -1)


def supervoxels(
    xyz: Float[np.ndarray, "n 3"], labels: Int[np.ndarray, " n"], count: int, rng: np.random.Generator,
    minority: Int[np.ndarray, " m"],
) -> Int[np.ndarray, " n"]:  # fmt: skip
    """``(n,)``: 0 to count - 1 for the points of the supervoxels drawn, -1 for all others.

    Drawn without repetition with probability proportional to ``(1 / f) (d / R)``, ``f = 4 exp(-2 N_minor) + 1``: far
    ones and those which hold voxels of the classes of `minority`. Without labels N_minor is 0. Those of one point are
    left out.
    """
    cell = cells(xyz, SUPERVOXELS)
    held = np.bincount(cell[cell >= 0], minlength=int(np.prod(SUPERVOXELS)))
    rare = np.isin(labels, minority) & (cell >= 0)
    # distinct voxels of a minor class, by the supervoxel that holds them
    voxel, first = np.unique(cells(xyz[rare], VOXELS), return_index=True)
    per_cell = np.bincount(cell[rare][first][voxel >= 0], minlength=len(held))
    arc = (np.arange(len(held)) // (SUPERVOXELS[1] * SUPERVOXELS[2]) + 1) / SUPERVOXELS[0]
    weight = np.where(held > 1, arc / (4 * np.exp(-2.0 * per_cell) + 1), 0.0)
    drawn = min(count, int((weight > 0).sum()))
    number = np.full(len(held) + 1, -1, dtype=np.int64)  # the last one takes cell -1
    if drawn:
        number[rng.choice(len(held), size=drawn, replace=False, p=weight / weight.sum())] = np.arange(drawn)
    drawn_as: np.ndarray = number[cell]
    return drawn_as
