"""A camera in the street: colour with sun, shadow, texture and haze; exact depth and labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from xmodal_kd.runtime.errors import UserError

from ..frame import UNLABELLED, Camera, Picture
from .scene import Scene
from .shapes import Material

#: A camera's axes (x right, y down, z forward) in the LiDAR's (x forward, y left, z up).
AXES = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
ZENITH, HORIZON = np.array([0.36, 0.55, 0.86]), np.array([0.78, 0.84, 0.9])
#: Metres at which haze hides 63 % of a colour.
HAZE = 160.0
#: How strongly a surface's brightness varies from place to place, by material.
GRAIN = np.full(len(Material), 0.12)
GRAIN[[Material.PAINT, Material.GLASS, Material.METAL, Material.SIGN]] = 0.03
GRAIN[[Material.GRASS, Material.LEAF]] = 0.3


@dataclass(frozen=True)
class CameraSpec:
    """A camera that looks ahead.

    Attributes:
        height, width: of its picture, pixels.
        fov_degrees: horizontal angle of view.
        offset: where it is in the LiDAR's frame, metres (forward, left, up).
    """

    height: int = 96
    width: int = 320
    fov_degrees: float = 81.0
    offset: tuple[float, float, float] = (0.27, 0.0, -0.08)

    def camera(self) -> Camera:
        """The pinhole camera, its axis in the picture's middle.

        Raises:
            UserError: a picture without pixels, or an angle outside 0 to 180 degrees.
        """
        if min(self.height, self.width) < 1 or not 0 < self.fov_degrees < 180:
            raise UserError(
                f"camera {self.height}x{self.width} at {self.fov_degrees} degrees: needs pixels and an angle between 0 "
                "and 180"
            )
        focal = self.width / 2 / np.tan(np.radians(self.fov_degrees) / 2)
        intrinsics = np.array([[focal, 0, self.width / 2], [0, focal, self.height / 2], [0, 0, 1.0]])
        lidar_to_camera = np.eye(4)
        lidar_to_camera[:3, :3], lidar_to_camera[:3, 3] = AXES, -AXES @ np.asarray(self.offset, float)
        return Camera(intrinsics, lidar_to_camera, self.height, self.width)


def photograph(
    scene: Scene, camera: Camera, pose: Float[np.ndarray, "4 4"], sun: Float[np.ndarray, " 3"],
    rng: np.random.Generator,
) -> Picture:  # fmt: skip
    """What the camera sees.

    Args:
        scene: everything, in the world.
        camera: beside the LiDAR.
        pose: LiDAR to world.
        sun: unit vector towards it, in the world.
        rng: draws the sensor's noise and the sky.
    """
    to_world = pose @ np.linalg.inv(camera.lidar_to_camera)
    v, u = np.mgrid[: camera.height, : camera.width] + 0.5
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
    directions = pixels @ np.linalg.inv(camera.intrinsics).T @ to_world[:3, :3].T
    depth, face, normal = scene.cast(to_world[:3, 3], directions)  # z is 1 along the axis: distances are depths
    hit = np.flatnonzero(face >= 0)
    rgb = np.empty((len(directions), 3), np.float32)
    rgb[face < 0] = _sky(directions[face < 0], rng)
    place = to_world[:3, 3] + depth[hit, None] * directions[hit]
    colour = _shaded(scene, face[hit], place, normal[hit], directions[hit], sun)
    clear = np.exp(-depth[hit, None] / HAZE)
    rgb[hit] = clear * colour + (1 - clear) * HORIZON
    exposure = np.float32(rng.uniform(0.85, 1.15))
    rgb = np.clip(rgb * exposure, 0, 1) ** (1 / 1.4) + 0.012 * rng.standard_normal(rgb.shape, np.float32)
    labels = np.where(face >= 0, scene.mesh.label[face], UNLABELLED).astype(np.int64)
    shape = camera.height, camera.width
    return Picture(
        camera,
        (np.clip(rgb, 0, 1) * 255).round().astype(np.uint8).reshape(*shape, 3),
        np.where(face >= 0, depth, np.inf).astype(np.float32).reshape(shape),
        labels.reshape(shape),
    )


def _sky(directions: Float[np.ndarray, "n 3"], rng: np.random.Generator) -> Float[np.ndarray, "n 3"]:
    """Blue above, pale at the horizon, with clouds: a few waves of elevation and azimuth."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    high = np.clip(unit[:, 2] * 2.2, 0, 1)[:, None]
    azimuth, cloud = np.arctan2(unit[:, 1], unit[:, 0]), np.zeros(len(unit))
    for turn, rise, phase in rng.uniform((2, 6, 0), (9, 30, 6.3), (5, 3)):
        cloud += np.sin(turn * azimuth + rise * unit[:, 2] + phase)
    white = np.clip(0.25 * cloud + rng.uniform(-0.4, 0.4), 0, 1)[:, None]
    sky: np.ndarray = (HORIZON + high * (ZENITH - HORIZON)) * (1 - white) + 0.9 * white
    return sky


def _shaded(
    scene: Scene, face: np.ndarray, place: np.ndarray, normal: np.ndarray, directions: np.ndarray, sun: np.ndarray
) -> Float[np.ndarray, "n 3"]:
    """Colour of surfaces under sun and sky: Lambert's law with cast shadows, and a grain that sticks to the place."""
    material = scene.mesh.material[face]
    facing = normal @ sun
    lit = facing > 0
    lit[lit] = ~scene.blocked(place[lit] + 0.02 * normal[lit], sun)
    light = 0.42 + 0.12 * normal[:, 2] + 0.75 * np.where(lit, facing, 0)
    grain = 1 + GRAIN[material] * (_hash(np.floor(place / 0.12)) + 0.6 * _hash(np.floor(place / 0.9)) - 0.8)
    colour = scene.mesh.colour[face] * (light * grain)[:, None]
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    mirrored = unit - 2 * np.einsum("ij,ij->i", unit, normal)[:, None] * normal
    share = np.select([material == Material.GLASS, material == Material.PAINT], [0.25, 0.08], 0.0)[:, None]
    seen = np.where(mirrored[:, 2:] > 0.02, HORIZON, (0.25, 0.25, 0.25))
    mixed: np.ndarray = (1 - share) * colour + share * seen
    return mixed


def _hash(cell: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    """A number in 0 to 1 for each cell of space, the same from wherever it is looked at."""
    mixed = np.sin(cell @ np.array([12.9898, 78.233, 37.719])) * 43758.5453
    fraction: np.ndarray = mixed - np.floor(mixed)
    return fraction
