"""What one moment looks like: a LiDAR sweep, and if there is one a photograph taken with it.

Axes of a scan: x forward, y left, z up, metres, origin at the sensor. Axes of a camera: x right, y down, z forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

#: What the simulator labels, in order; also the classes of recipes that name no others (`classes.EIGHT`).
CLASSES = ("ground", "pavement", "car", "truck", "building", "pole", "tree", "person")
#: The label of what has none.
UNLABELLED = -1


@dataclass(frozen=True)
class Scan:
    """One sweep, or several brought into one frame.

    Attributes:
        xyz: ``(n, 3)`` metres in the sensor's frame; of files to be segmented also NaN, for shots without a return.
        intensity: ``(n,)`` 0 to 1.
        ring: ``(n,)`` the laser that saw each point, 0 the highest; None where the file does not say.
        beams: number of lasers, where `ring` is known.
        labels: ``(n,)`` index into the classes, or `UNLABELLED`; None where nothing is labelled.
        moving: ``(n,)`` whether a point lies on something that moves; None where nobody knows.
        sweep: ``(n,)`` how many sweeps ago a point was seen, 0 for the sweep whose frame this is; None for one sweep.
        said: ``(n, classes)`` logits of each point by teachers that ran elsewhere, by role.
    """

    xyz: Float[np.ndarray, "n 3"]
    intensity: Float[np.ndarray, " n"]
    ring: Int[np.ndarray, " n"] | None = None
    beams: int | None = None
    labels: Int[np.ndarray, " n"] | None = None
    moving: Bool[np.ndarray, " n"] | None = None
    sweep: Int[np.ndarray, " n"] | None = None
    said: Mapping[str, Float[np.ndarray, "n classes"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def distance(self) -> Float[np.ndarray, " n"]:
        """Metres from the sensor."""
        found: np.ndarray = np.linalg.norm(self.xyz, axis=1)
        return found

    @property
    def there(self) -> Bool[np.ndarray, " n"]:
        """Points with a place: something came back from them."""
        found: np.ndarray = np.isfinite(self.xyz).all(axis=1)
        return found

    def __getitem__(self, chosen: np.ndarray) -> Scan:
        """The points of a bool mask or of indexes, in that order."""
        parts = ("xyz", "intensity", "ring", "labels", "moving", "sweep")
        taken: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[chosen] for name in parts
        }
        return replace(self, **taken, said={role: rows[chosen] for role, rows in self.said.items()})

    @property
    def nbytes(self) -> int:
        parts = (self.xyz, self.intensity, self.ring, self.labels, self.moving, self.sweep)
        return sum(part.nbytes for part in (*parts, *self.said.values()) if part is not None)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera beside the LiDAR.

    Attributes:
        intrinsics: ``(3, 3)`` pixels.
        lidar_to_camera: ``(4, 4)`` rigid.
        height, width: of the image, pixels.
    """

    intrinsics: Float[np.ndarray, "3 3"]
    lidar_to_camera: Float[np.ndarray, "4 4"]
    height: int
    width: int

    def project(self, xyz: Float[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
        """Pixel positions (u right, v down; pixel (i, j) covers u in [j, j + 1)) and depths in metres along the axis.

        Positions mean something only where the depth is above 0.
        """
        seen = xyz.astype(np.float64) @ self.lidar_to_camera[:3, :3].T + self.lidar_to_camera[:3, 3]
        depth = seen[:, 2]
        safe = np.where(depth > 1e-6, depth, 1.0)
        uv = (seen @ self.intrinsics.T)[:, :2] / safe[:, None]
        return uv, depth

    def resized(self, height: int, width: int) -> Camera:
        """The camera of the same picture at another size."""
        scale = np.diag([width / self.width, height / self.height, 1.0])
        return Camera(scale @ self.intrinsics, self.lidar_to_camera, height, width)


@dataclass(frozen=True)
class Picture:
    """What a camera took.

    Attributes:
        camera: where it stood and how it projects.
        rgb: ``(h, w, 3)`` uint8.
        depth: ``(h, w)`` metres along the axis, inf for the sky; None for a photograph.
        labels: ``(h, w)`` index into the classes, or `UNLABELLED`; None where no pixel is labelled.
        name: of the camera, where a frame has several.
    """

    camera: Camera
    rgb: np.ndarray
    depth: Float[np.ndarray, "h w"] | None = None
    labels: Int[np.ndarray, "h w"] | None = None
    name: str = ""


@dataclass(frozen=True)
class Box:
    """A labelled object: centre, size (length, width, height) in metres, yaw about z in radians, LiDAR frame.

    Attributes:
        points: of the LiDAR, on it; None where nobody has counted.
        level: the first at which benchmarks ask for it: easy 0, moderate 1, hard 2, none of them 3; None: nobody knows.
    """

    name: str
    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float
    points: int | None = None
    level: int | None = None

    def inside(self, xyz: Float[np.ndarray, "n 3"], margin: float = 0.0) -> Bool[np.ndarray, " n"]:
        """Which points lie in the box, `margin` metres larger on every side."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        x, y, z = (xyz.astype(np.float64) - np.asarray(self.centre)).T
        along, across = cos * x + sin * y, -sin * x + cos * y
        length, width, height = (side / 2 + margin for side in self.size)
        found: np.ndarray = (abs(along) <= length) & (abs(across) <= width) & (abs(z) <= height)
        return found


@dataclass(frozen=True)
class Frame:
    """One moment of a drive.

    Attributes:
        key: names it in messages and reports.
        scan: the current sweep.
        pose: ``(4, 4)`` sensor to world; None where nobody knows.
        pictures: by camera; empty without one.
        boxes: labelled objects; None where boxes are not labelled (an empty tuple: nothing was there).
    """

    key: str
    scan: Scan
    pose: Float[np.ndarray, "4 4"] | None = None
    pictures: tuple[Picture, ...] = ()
    boxes: tuple[Box, ...] | None = None

    @property
    def nbytes(self) -> int:
        drawn = [part for one in self.pictures for part in (one.rgb, one.depth, one.labels) if part is not None]
        return self.scan.nbytes + sum(part.nbytes for part in drawn)
