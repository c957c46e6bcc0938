"""Copies of a shape along a street, some of which move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from ..frame import CLASSES, UNLABELLED
from .mesh import Mesh
from .shapes import Shape
from .street import Street

#: What is no class of its own: the class of its points.
KINDS = {"cyclist": "person"}
#: Attributes of `Copies` with a row for each.
ARRAYS = ("s", "d", "lift", "yaw", "scale", "colour", "velocity")


@dataclass(frozen=True)
class Copies:
    """k copies of one shape, in street coordinates at time 0.

    Attributes:
        shape: what is copied.
        label: name of a class, of one of `KINDS`, or "" for none.
        s, d: ``(k,)`` metres along and to the left.
        lift: ``(k,)`` metres above the ground.
        yaw: ``(k,)`` radians against the street's direction.
        scale: ``(k, 3)`` along the shape's own axes.
        colour: ``(k, 3)`` of painted faces, 0 to 1.
        velocity: ``(k, 2)`` m/s along s and d.
        first: number of the first copy as a thing with a box; None: these have none.
    """

    shape: Shape
    label: str
    s: Float[np.ndarray, " k"]
    d: Float[np.ndarray, " k"]
    lift: Float[np.ndarray, " k"]
    yaw: Float[np.ndarray, " k"]
    scale: Float[np.ndarray, "k 3"]
    colour: Float[np.ndarray, "k 3"]
    velocity: Float[np.ndarray, "k 2"]
    first: int | None = None

    def __len__(self) -> int:
        return len(self.s)

    def __getitem__(self, chosen: np.ndarray) -> Copies:
        """Some of the copies, without their numbers."""
        s, d, lift, yaw, scale, colour, velocity = (getattr(self, name)[chosen] for name in ARRAYS)
        return Copies(self.shape, self.label, s, d, lift, yaw, scale, colour, velocity)

    @property
    def moves(self) -> Bool[np.ndarray, " k"]:
        found: np.ndarray = (self.velocity != 0).any(1)
        return found

    def at(self, street: Street, time: float) -> tuple[np.ndarray, np.ndarray]:
        """``(k, 3)`` places on the ground or above it, and ``(k,)`` yaws in the world, at `time` seconds."""
        s, d = self.s + time * self.velocity[:, 0], self.d + time * self.velocity[:, 1]
        x, y = street.world(s, d)
        return np.stack([x, y, street.height(s, d) + self.lift], axis=1), self.yaw + street.heading(s)

    def mesh(self, street: Street, time: float) -> Mesh:
        """All copies as triangles at `time` seconds."""
        shape, k = self.shape, len(self)
        place, yaw = self.at(street, time)
        turn = np.zeros((k, 3, 3), np.float32)  # rows of vertices times this: scaled, then turned about z
        turn[:, 0, 0], turn[:, 0, 1] = np.cos(yaw) * self.scale[:, 0], np.sin(yaw) * self.scale[:, 0]
        turn[:, 1, 0], turn[:, 1, 1] = -np.sin(yaw) * self.scale[:, 1], np.cos(yaw) * self.scale[:, 1]
        turn[:, 2, 2] = self.scale[:, 2]
        turned = shape.vertices @ turn + place[:, None].astype(np.float32)
        starts = np.arange(k, dtype=np.int32)[:, None, None] * np.int32(len(shape.vertices))
        tint = np.where(shape.painted[:, None], self.colour[:, None].astype(np.float32), 1) * shape.colour
        faces = len(shape.triangles)
        label = CLASSES.index(KINDS.get(self.label, self.label)) if self.label else UNLABELLED
        thing = np.full(k, -1) if self.first is None else np.arange(self.first, self.first + k)
        return Mesh(
            turned.reshape(-1, 3),
            (shape.triangles + starts).reshape(-1, 3),
            np.full(k * faces, label, np.int8),
            np.tile(shape.material, k),
            tint.reshape(-1, 3),
            np.repeat(thing.astype(np.int32), faces),
        )


def merged(groups: Iterable[Copies]) -> list[Copies]:
    """The same copies in fewer groups: one for each shape and label that stands still, and one that moves."""
    kinds: dict[tuple[int, str, bool], list[Copies]] = {}
    for group in groups:
        moves = group.moves
        for moving in (False, True):
            if (moves == moving).any():
                kinds.setdefault((id(group.shape), group.label, moving), []).append(group[moves == moving])
    return [_joined(alike) for alike in kinds.values()]


def _joined(groups: list[Copies]) -> Copies:
    s, d, lift, yaw, scale, colour, velocity = (np.concatenate([getattr(g, name) for g in groups]) for name in ARRAYS)
    return Copies(groups[0].shape, groups[0].label, s, d, lift, yaw, scale, colour, velocity)


def copies(
    shape: Shape, label: str, s: np.ndarray, d: np.ndarray, *, lift: np.ndarray | float = 0.0,
    yaw: np.ndarray | float = 0.0, scale: np.ndarray | tuple[float, float, float] = (1, 1, 1),
    colour: np.ndarray | tuple[float, float, float] = (1, 1, 1),
    velocity: np.ndarray | tuple[float, float] = (0, 0),
) -> Copies:  # fmt: skip
    """`Copies` with what is not given filled in: as many as `s` is long."""
    k = len(s)

    def filled(value: np.ndarray | float | tuple[float, ...], *shape: int) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, float), (k, *shape))

    return Copies(
        shape, label, np.asarray(s, float), filled(d), filled(lift), filled(yaw), filled(scale, 3),
        filled(colour, 3), filled(velocity, 2),
    )  # fmt: skip


def of_kinds(shapes: tuple[Shape, ...], kind: np.ndarray, template: Copies) -> Iterator[Copies]:
    """Copies of several shapes: copy i is of ``shapes[kind[i]]`` and stands where the template's copy i does."""
    for number, shape in enumerate(shapes):
        if (kind == number).any():
            yield replace(template[kind == number], shape=shape)
