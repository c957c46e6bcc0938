"""One street with everything in it, at any moment of the few seconds before time 0.

A world follows from (seed, family, index) alone. Each kind of thing draws from a stream of its own, so that a change to
one kind leaves the others where they are. Families draw from different streams and from different ranges (`FAMILIES`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import chain

import numpy as np
from jaxtyping import Float

from xmodal_kd.runtime.random_streams import Streams

from ..frame import Box
from .copies import Copies, merged
from .families import draw
from .mesh import Mesh
from .street import SPAN, Street
from .surroundings import Greenery, borders, houses, poles
from .traffic import driving, parked, riders, walkers

#: Points on a thing, at least, that is easy, moderate, hard to find: a level of the simulator's own.
LEVELS = (50, 15, 5)


class World:
    """A street, its surroundings and its traffic.

    Args:
        family: one of `FAMILIES`.
        index: which world of the family.
        seed: of all worlds.
        cyclists: on 100 m of a lane (`riders`); all else is where it is without them.

    Raises:
        UserError: no such family.
    """

    def __init__(self, family: str, index: int, seed: int = 0, cyclists: float = 0.0) -> None:
        streams = Streams(seed)

        def rng(part: str) -> np.random.Generator:
            return streams.numpy("world", family, index, part)

        self.layout = draw(family, rng("layout"))
        self.street = Street(self.layout, rng("street"))
        self.greenery = Greenery(self.street, rng("greenery"))
        street = self.street
        vehicles = [*parked(street, rng("parked")), *driving(street, rng("driving"))]
        things = chain(vehicles, walkers(street, rng("people")))
        if cyclists:
            things = chain(things, riders(street, rng("cyclists"), cyclists, vehicles))
        beside = chain(
            houses(street, rng("houses")), borders(street, rng("borders")), poles(street, rng("poles")),
            self.greenery.copies(),
        )  # fmt: skip
        self.things = _numbered(merged(things))
        self.beside = merged(beside)
        ego = rng("ego")
        self._sway = ego.normal(0, np.radians(0.4), 2)
        sun = np.array([*ego.normal(0, 1, 2), ego.uniform(0.8, 2.0)])
        self.sun: np.ndarray = sun / np.linalg.norm(sun)
        self._lateral = -0.45 * self.layout.lane + ego.uniform(-0.15, 0.25)

    @cached_property
    def moving(self) -> np.ndarray:
        """``(things,)`` bool, by number."""
        return np.concatenate([group.moves for group in self.things] or [np.zeros(0, bool)])

    @cached_property
    def _still(self) -> list[Mesh]:
        groups = [*self.beside, *(group for group in self.things if not group.moves.any())]
        return [self.street.mesh(), self.greenery.leaves(), *(group.mesh(self.street, 0.0) for group in groups)]

    def mesh(self, time: float) -> Mesh:
        """Everything at `time` seconds."""
        movers = [group.mesh(self.street, time) for group in self.things if group.moves.any()]
        return Mesh.join([*self._still, *movers])

    def pose(self, time: float, height: float) -> Float[np.ndarray, "4 4"]:
        """Where a sensor `height` metres above the ground is at `time` seconds: sensor to world, exact.

        The car keeps to its lane at its speed and lies as the road lies, but for a lean of its own.

        Raises:
            ValueError: `time` is outside the seconds that a world lasts.
        """
        if not -SPAN <= time <= 0:
            raise ValueError(f"time {time}: a world lasts from -{SPAN} to 0 seconds")
        s, d = self.layout.speed * time, self._lateral
        corners = np.array([s, s + 1.3, s - 1.3, s, s]), np.array([d, d, d, d + 0.8, d - 0.8])
        x, y = self.street.world(*corners)
        place = np.stack([x, y, self.street.height(*corners)], axis=1)
        ahead = place[1] - place[2]
        ahead /= np.linalg.norm(ahead)
        left = place[3] - place[4]
        left -= ahead * (ahead @ left)
        left /= np.linalg.norm(left)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([ahead, left, np.cross(ahead, left)], axis=1) @ _lean(*self._sway)
        pose[:3, 3] = place[0] + height * pose[:3, 2]
        return pose

    def boxes(
        self, time: float, pose: Float[np.ndarray, "4 4"], numbers: np.ndarray, points: np.ndarray
    ) -> tuple[Box, ...]:
        """Boxes of the things of these `numbers` (ascending) at `time`, in the frame of a sensor at `pose`.

        Args:
            points: how many of the sensor's lie on each; they decide the level (`LEVELS`), as there is no photograph.
        """
        turn = np.arctan2(pose[1, 0], pose[0, 0])
        found = []
        for group in self.things:
            first = group.first or 0
            mine = (numbers >= first) & (numbers < first + len(group))
            seen, hits = numbers[mine] - first, points[mine]
            if not len(seen):
                continue
            part = group[seen]
            place, yaw = part.at(self.street, time)
            size = group.shape.size * part.scale
            centre = (place + [0, 0, 0.5] * size - pose[:3, 3]) @ pose[:3, :3]
            angle = (yaw - turn + np.pi) % (2 * np.pi) - np.pi
            found += [
                Box(group.label, (c[0], c[1], c[2]), (e[0], e[1], e[2]), a, n, sum(n < least for least in LEVELS))
                for c, e, a, n in zip(centre.tolist(), size.tolist(), angle.tolist(), hits.tolist(), strict=True)
            ]
        return tuple(found)


def _numbered(groups: list[Copies]) -> list[Copies]:
    starts = np.cumsum([0, *map(len, groups)])
    return [replace(group, first=int(start)) for group, start in zip(groups, starts, strict=False)]


def _lean(pitch: float, roll: float) -> Float[np.ndarray, "3 3"]:
    """Rotation about y, then x, by small angles in radians."""
    a, b, c, d = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    lean: np.ndarray = np.array([[a, 0, b], [0, 1, 0], [-b, 0, a]]) @ np.array([[1, 0, 0], [0, c, -d], [0, d, c]])
    return lean
