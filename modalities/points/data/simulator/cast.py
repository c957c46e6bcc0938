"""Frames of simulated drives: rays cast from a LiDAR, and from a camera beside it, into a street."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from xmodal_kd.runtime.random_streams import Streams

from ..frame import Frame, Picture, Scan
from .camera import CameraSpec, photograph
from .scene import Scene
from .sensors import Sensor
from .shapes import REFLECTANCE, ROUGHNESS, TRANSPARENCY, Material
from .world import World

#: Seconds between two sweeps.
PERIOD = 0.1
#: Signal, as reflectance times cosine at 20 m, below which nothing is detected.
THRESHOLD = 1e-3


def simulate(
    family: str, index: int, sensor: Sensor, *, seed: int = 0, camera: CameraSpec | None = None, sweeps: int = 1,
    cyclists: float = 0.0, first: int = 0,
) -> list[Frame]:  # fmt: skip
    """A moment of a drive and the sweeps before it.

    Args:
        family: of worlds: train, dev or test.
        index: which world of the family.
        sensor: the LiDAR, as many columns as wanted.
        seed: of worlds and noise.
        camera: beside the LiDAR, at the moment of each sweep; None: no pictures.
        sweeps: frames, a tenth of a second apart.
        cyclists: on 100 m of a lane; their points are of the class person, their boxes are called cyclist.
        first: age of the moment: tenths of a second before the end of its world.

    Returns:
        The newest frame first. Points are in ray order: by ring, then from left to right. All labels, boxes of what has
        at least one point, and poses are exact; ranges, intensities and which returns are missing are noisy.

    Raises:
        UserError: no such family, or Open3D cannot be loaded.
        ValueError: more sweeps than a world lasts.
    """
    world = World(family, index, seed, cyclists)
    frames = []
    for age in range(first, first + sweeps):
        time = -PERIOD * age
        rng = Streams(seed).numpy("noise", family, index, age)
        pose = world.pose(time, sensor.height)
        scene = Scene(world.mesh(time))
        scan, (seen, points) = _scan(scene, sensor, pose, world.moving, rng)
        boxes = world.boxes(time, pose, seen, points)
        key = key_of(family, index, age)
        pictures: tuple[Picture, ...] = ()
        if camera is not None:
            chance = Streams(seed).numpy("picture", family, index, age)
            pictures = (photograph(scene, camera.camera(), pose, world.sun, chance),)
        frames.append(Frame(key, scan, pose, pictures, boxes))
    return frames


def key_of(family: str, index: int, age: int = 0) -> str:
    """What messages call a moment, which may be some tenths of a second before its world's last."""
    return f"{family}-{index:06d}" + (f"-{age}" if age else "")


def _scan(
    scene: Scene, sensor: Sensor, pose: Float[np.ndarray, "4 4"], moving: np.ndarray, rng: np.random.Generator
) -> tuple[Scan, tuple[np.ndarray, np.ndarray]]:
    """One turn of the sensor, and the numbers of the things that it saw, with how many points lie on each."""
    rays = sensor.rays().reshape(-1, 3)
    directions = rays @ pose[:3, :3].T.astype(np.float32)
    distance, face, normal = scene.cast(pose[:3, 3], directions)
    mesh = scene.mesh
    luck, noise, speckle = rng.random(len(rays)), rng.standard_normal(len(rays)), rng.standard_normal(len(rays))
    hit = np.flatnonzero((distance < sensor.max_range) & (distance > 1.0))
    face, distance = face[hit], distance[hit]
    material = mesh.material[face]
    slant = -np.einsum("ij,ij->i", normal[hit], directions[hit])
    reflectance = REFLECTANCE[material]
    bright = mesh.colour[face].mean(1)
    reflectance = np.where(material == Material.PAINT, reflectance * (0.3 + bright), reflectance)
    signal = reflectance * slant * (20 / distance) ** 2
    kept = (luck[hit] >= 1 - (1 - sensor.dropout) * (1 - TRANSPARENCY[material])) & (signal > THRESHOLD)
    hit, face, distance = hit[kept], face[kept], distance[kept]
    intensity = reflectance[kept] * (0.65 + 0.35 * slant[kept]) + 0.03 * speckle[hit]
    measured = (distance + sensor.noise * ROUGHNESS[material[kept]] * noise[hit]).astype(np.float32)
    thing = mesh.thing[face]
    scan = Scan(
        xyz=rays[hit] * measured[:, None],
        intensity=np.clip(intensity, 0, 1).astype(np.float32),
        ring=hit // sensor.columns,
        beams=sensor.beams,
        labels=mesh.label[face].astype(np.int64),
        moving=np.append(moving, False)[thing],  # thing -1 is the last: no thing
    )
    return scan, np.unique(thing[thing >= 0], return_counts=True)
