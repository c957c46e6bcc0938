"""What a street is made of, as small triangle meshes in metres: x forward, y left, z up from the ground at 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int

Colour = tuple[float, float, float]
Point = tuple[float, float, float]


class Material(IntEnum):
    """What a surface is; rows of `REFLECTANCE` and `TRANSPARENCY`."""

    ASPHALT, MARKING, CONCRETE, GRASS, PAINT, GLASS, FACADE, ROOF, METAL, SIGN, BARK, LEAF, CLOTH, RUBBER = range(14)


#: Share of laser light sent back at normal incidence.
REFLECTANCE = np.array([0.36, 0.65, 0.42, 0.45, 0.5, 0.1, 0.45, 0.35, 0.5, 0.95, 0.35, 0.45, 0.4, 0.1], np.float32)
#: How many times as noisy a range is on a surface as on a smooth one: beams end somewhere among blades and leaves.
ROUGHNESS = np.array([1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1.5, 3, 1, 1], np.float32)
#: Share of laser shots that a surface lets through and that are lost.
TRANSPARENCY = np.array([0, 0, 0, 0.02, 0.02, 0.55, 0, 0, 0, 0, 0, 0.05, 0, 0.05], np.float32)


@dataclass(frozen=True)
class Shape:
    """A triangle mesh, copied into a world as often as needed.

    Attributes:
        vertices: ``(v, 3)`` metres.
        triangles: ``(f, 3)`` vertex indexes.
        material: ``(f,)`` of `Material`.
        colour: ``(f, 3)`` 0 to 1.
        painted: ``(f,)`` whether a copy's own colour multiplies the face's.
    """

    vertices: Float[np.ndarray, "v 3"]
    triangles: Int[np.ndarray, "f 3"]
    material: Int[np.ndarray, " f"]
    colour: Float[np.ndarray, "f 3"]
    painted: Bool[np.ndarray, " f"]

    @property
    def size(self) -> Float[np.ndarray, " 3"]:
        """Length, width and height of a vehicle or person, metres."""
        low, high = self.vertices.min(0), self.vertices.max(0)
        extent: np.ndarray = np.append((high - low)[:2], high[2])
        return extent


def shape(
    vertices: np.ndarray, triangles: np.ndarray, material: Material, colour: Colour = (1, 1, 1), *, painted: bool = True
) -> Shape:
    """A mesh of one material."""
    faces = len(triangles)
    return Shape(
        np.asarray(vertices, np.float32),
        np.asarray(triangles, np.int32),
        np.full(faces, material, np.int8),
        np.tile(np.asarray(colour, np.float32), (faces, 1)),
        np.full(faces, painted),
    )


def join(*shapes: Shape) -> Shape:
    """Several meshes as one."""
    starts = np.cumsum([0, *(len(s.vertices) for s in shapes[:-1])], dtype=np.int32)
    return Shape(
        np.concatenate([s.vertices for s in shapes]),
        np.concatenate([s.triangles + start for s, start in zip(shapes, starts, strict=True)]),
        np.concatenate([s.material for s in shapes]),
        np.concatenate([s.colour for s in shapes]),
        np.concatenate([s.painted for s in shapes]),
    )


def cuboid(low: Point, high: Point, material: Material, colour: Colour = (1, 1, 1), *, painted: bool = True) -> Shape:
    """A box between two corners."""
    corners = np.array([[(low, high)[(i >> k) & 1][k] for k in range(3)] for i in range(8)])
    quads = np.array([[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]])
    return shape(corners, _halves(quads), material, colour, painted=painted)


def _halves(quads: np.ndarray) -> np.ndarray:
    """``(q, 4)`` corners in order round each quad to ``(2 q, 3)`` triangles."""
    return quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


def limb(
    start: Point, end: Point, radii: tuple[float, float], material: Material, colour: Colour = (1, 1, 1), *,
    sides: int = 8, painted: bool = False,
) -> Shape:  # fmt: skip
    """A tapered cylinder from `start` to `end`, closed at both ends."""
    axis = np.subtract(end, start)
    across = np.cross(axis, (1.0, 0, 0) if abs(axis[0]) < max(abs(axis[1:])) else (0, 0, 1.0))
    across /= np.linalg.norm(across)
    upright = np.cross(axis, across) / np.linalg.norm(axis)
    turn = 2 * np.pi * np.arange(sides) / sides
    circle = np.cos(turn)[:, None] * across + np.sin(turn)[:, None] * upright
    vertices = np.concatenate([start + radii[0] * circle, end + radii[1] * circle])
    i, j = np.arange(sides), (np.arange(sides) + 1) % sides
    wall = _halves(np.stack([i, j, j + sides, i + sides], axis=1))
    fan = np.stack([np.zeros(sides - 2, int), np.arange(1, sides - 1), np.arange(2, sides)], axis=1)
    return shape(vertices, np.concatenate([wall, fan, fan + sides]), material, colour, painted=painted)


def ball(centre: Point, radii: Point, material: Material, colour: Colour = (1, 1, 1)) -> Shape:
    """An ellipsoid of 20 triangles (an icosahedron)."""
    g = (1 + 5**0.5) / 2
    corners = np.array([[0, a, b * g] for a in (-1, 1) for b in (-1, 1)]) / np.hypot(1, g)
    vertices = np.concatenate([np.roll(corners, k, axis=1) for k in range(3)])
    gaps = np.linalg.norm(vertices[:, None] - vertices[None], axis=2)
    near = (gaps > 0.1) & (gaps < 1.1)
    triples = [
        (a, b, c) for a in range(12) for b in range(a) for c in range(b) if near[a, b] and near[b, c] and near[a, c]
    ]
    return shape(vertices * radii + centre, np.array(triples), material, colour, painted=False)


def extrusion(outline: Sequence[Point], skin: Sequence[Material], side: Material, hub: tuple[float, float]) -> Shape:
    """A side view made solid, mirrored about y = 0.

    Args:
        outline: (x, z, half width) of each corner, round the view.
        skin: material of the strip from each corner to the next.
        side: material of both flanks.
        hub: (x, z) inside the outline from which all its corners can be seen.
    """
    x, z, half = np.array(outline).T
    n = len(x)
    left, right = np.stack([x, half, z], axis=1), np.stack([x, -half, z], axis=1)
    middle = np.array([[hub[0], half.max(), hub[1]], [hub[0], -half.max(), hub[1]]])
    i, j = np.arange(n), (np.arange(n) + 1) % n
    strips = _halves(np.stack([i, j, j + n, i + n], axis=1))
    flanks = np.concatenate([np.stack([i + k * n, j + k * n, np.full(n, 2 * n + k)], axis=1) for k in (0, 1)])
    solid = shape(np.concatenate([left, right, middle]), np.concatenate([strips, flanks]), Material.PAINT)
    material = np.concatenate([np.repeat(np.array(skin, np.int8), 2), np.full(2 * n, side, np.int8)])
    return replace(solid, material=material, colour=_TONES[material], painted=material == Material.PAINT)


#: Colour of a vehicle's faces by material; paint is white and takes the copy's colour.
_TONES = np.ones((len(Material), 3), np.float32)
_TONES[Material.GLASS] = (0.1, 0.13, 0.16)
_TONES[Material.RUBBER] = (0.06, 0.06, 0.06)


def _wheels(axles: Sequence[float], half: float, radius: float) -> list[Shape]:
    black = (0.06, 0.06, 0.06)
    return [
        limb((x, side * (half - 0.22), radius), (x, side * half, radius), (radius, radius), Material.RUBBER, black)
        for x in axles
        for side in (-1.0, 1.0)
    ]


def _car(belt: Sequence[tuple[float, float]], roof: Sequence[tuple[float, float]], half: float, top: float) -> Shape:
    """A car from its side view.

    Args:
        belt: (x, z) of the body's upper edge from the rear bumper to the front one.
        roof: (x, z) of the cabin: foot of the rear window, roof's rear, roof's front, foot of the windscreen.
        half: half of the width at the belt, metres.
        top: half of the width at the roof.
    """
    length = belt[-1][0]
    body = [(belt[0][0] + 0.1, 0.22, half - 0.08), *((x, z, half) for x, z in belt), (length - 0.1, 0.22, half - 0.08)]
    cabin = [(x, z, half - 0.04 if k in (0, 3) else top) for k, (x, z) in enumerate(roof)]
    paint, glass = Material.PAINT, Material.GLASS
    lower = extrusion(body, [paint] * (len(body) - 1) + [Material.RUBBER], paint, (0.0, 0.6))
    upper = extrusion(cabin, [glass, paint, glass, paint], glass, (roof[1][0] / 2 + roof[2][0] / 2, roof[0][1] + 0.2))
    return join(lower, upper, *_wheels((belt[0][0] * 0.62, length * 0.64), half, 0.32))


@cache
def cars() -> tuple[Shape, ...]:
    """Saloon, hatchback, estate, off-roader, van."""
    return (
        _car([(-2.2, 0.5), (-2.2, 0.95), (-1.55, 1.0), (1.0, 0.95), (2.1, 0.75), (2.25, 0.5)],
             [(-1.75, 0.98), (-1.0, 1.42), (0.2, 1.45), (1.15, 0.92)], 0.9, 0.62),
        _car([(-1.9, 0.5), (-1.92, 0.95), (-1.6, 1.0), (1.05, 0.97), (1.85, 0.75), (1.98, 0.5)],
             [(-1.9, 0.97), (-1.5, 1.45), (0.2, 1.5), (1.2, 0.93)], 0.86, 0.6),
        _car([(-2.3, 0.5), (-2.32, 0.95), (-1.9, 1.0), (1.05, 0.95), (2.15, 0.75), (2.3, 0.5)],
             [(-2.3, 0.96), (-1.95, 1.45), (0.25, 1.48), (1.2, 0.92)], 0.9, 0.64),
        _car([(-2.25, 0.6), (-2.28, 1.1), (-1.9, 1.15), (1.0, 1.12), (2.1, 0.98), (2.25, 0.6)],
             [(-2.2, 1.12), (-1.8, 1.66), (0.25, 1.7), (1.1, 1.1)], 0.94, 0.7),
        _car([(-2.5, 0.5), (-2.5, 1.15), (-2.0, 1.2), (1.7, 1.15), (2.35, 0.85), (2.5, 0.5)],
             [(-2.48, 1.15), (-2.42, 1.98), (1.0, 2.0), (1.95, 1.05)], 0.97, 0.82),
    )  # fmt: skip


@cache
def trucks() -> tuple[Shape, ...]:
    """Delivery truck, lorry, bus."""
    paint, glass, metal = Material.PAINT, Material.GLASS, Material.METAL
    dark = (0.08, 0.1, 0.12)
    cab = join(cuboid((2.0, -1.05, 0.45), (3.1, 1.05, 2.3), paint), cuboid((3.08, -0.95, 1.3), (3.14, 0.95, 2.1), glass,
               dark, painted=False))  # fmt: skip
    delivery = join(cab, cuboid((-3.1, -1.1, 0.75), (1.9, 1.1, 2.85), paint, (0.95, 0.95, 0.95), painted=False),
                    cuboid((-3.0, -0.5, 0.45), (2.0, 0.5, 0.75), metal, (0.2, 0.2, 0.2), painted=False),
                    *_wheels((-1.9, 2.4), 1.05, 0.4))  # fmt: skip
    front = join(cuboid((2.9, -1.25, 0.5), (4.6, 1.25, 3.0), paint), cuboid((4.58, -1.1, 1.7), (4.64, 1.1, 2.7), glass,
                 dark, painted=False))  # fmt: skip
    lorry = join(front, cuboid((-4.6, -1.27, 1.0), (2.7, 1.27, 3.6), paint, (0.85, 0.85, 0.9)),
                 cuboid((-4.4, -0.5, 0.6), (2.9, 0.5, 1.0), metal, (0.2, 0.2, 0.2), painted=False),
                 *_wheels((-3.2, -2.1, 3.6), 1.22, 0.5))  # fmt: skip
    body = [cuboid((-5.6, -1.27, 0.35), (5.6, 1.27, 3.0), paint)]
    panes = [cuboid((-5.2, side, 1.4), (5.0, side + 0.01, 2.4), glass, dark, painted=False) for side in (-1.29, 1.28)]
    screen = cuboid((5.6, -1.1, 1.1), (5.63, 1.1, 2.6), glass, dark, painted=False)
    return delivery, lorry, join(*body, *panes, screen, *_wheels((-3.4, 3.4), 1.25, 0.5))


@cache
def people() -> tuple[Shape, ...]:
    """One who stands and two who walk; the shirt takes the copy's colour."""
    return tuple(_person(stride, trousers) for stride, trousers in (
        (0.05, (0.12, 0.13, 0.2)), (0.3, (0.2, 0.17, 0.12)), (0.42, (0.1, 0.1, 0.1))
    ))  # fmt: skip


def _person(stride: float, trousers: Colour) -> Shape:
    cloth, skin = Material.CLOTH, (0.75, 0.58, 0.47)
    legs = [
        limb((side * stride, side * 0.1, 0.0), (0.0, side * 0.09, 0.85), (0.07, 0.1), cloth, trousers, sides=6)
        for side in (-1.0, 1.0)
    ]
    arms = [
        limb((-side * stride * 0.8, side * 0.27, 0.75), (0.0, side * 0.22, 1.42), (0.045, 0.06), cloth, sides=5,
             painted=True)
        for side in (-1.0, 1.0)
    ]  # fmt: skip
    torso = limb((0.0, 0.0, 0.8), (0.02, 0.0, 1.47), (0.16, 0.2), cloth, sides=7, painted=True)
    return join(*legs, *arms, torso, ball((0.02, 0.0, 1.62), (0.11, 0.1, 0.14), cloth, skin))


@cache
def cyclists() -> tuple[Shape, ...]:
    """Two on bicycles, their feet at the pedals' two places; the shirt takes the copy's colour."""
    return tuple(_cyclist(pedal, trousers) for pedal, trousers in ((0.17, (0.12, 0.13, 0.2)), (0.0, (0.2, 0.17, 0.12))))


def _cyclist(pedal: float, trousers: Colour) -> Shape:
    """`pedal`: metres by which the left one is lower than the hub."""
    cloth, steel, skin = Material.CLOTH, (0.35, 0.35, 0.38), (0.75, 0.58, 0.47)
    wheels = [
        limb((x, -0.02, 0.34), (x, 0.02, 0.34), (0.34, 0.34), Material.RUBBER, (0.06, 0.06, 0.06), sides=12)
        for x in (-0.52, 0.52)
    ]
    tubes = [
        limb(start, end, (0.02, 0.02), Material.METAL, steel, sides=5)
        for start, end in (
            ((-0.52, 0.0, 0.34), (0.0, 0.0, 0.32)), ((0.0, 0.0, 0.32), (-0.18, 0.0, 0.9)),
            ((0.0, 0.0, 0.32), (0.4, 0.0, 0.85)), ((-0.15, 0.0, 0.8), (0.4, 0.0, 0.85)),
            ((0.52, 0.0, 0.34), (0.38, 0.0, 1.0)), ((0.38, -0.28, 1.0), (0.38, 0.28, 1.0)),
        )
    ]  # fmt: skip
    legs = [
        part
        for side in (-1.0, 1.0)
        for knee, foot in [((0.22, side * 0.1, 0.68 - side * pedal / 3), (0.05, side * 0.12, 0.3 - side * pedal))]
        for part in (
            limb((-0.16, side * 0.09, 0.93), knee, (0.1, 0.07), cloth, trousers, sides=6),
            limb(knee, foot, (0.07, 0.05), cloth, trousers, sides=6),
        )
    ]
    arms = [
        limb((0.36, side * 0.25, 1.02), (0.08, side * 0.2, 1.38), (0.04, 0.055), cloth, sides=5, painted=True)
        for side in (-1.0, 1.0)
    ]
    torso = limb((-0.18, 0.0, 0.9), (0.1, 0.0, 1.45), (0.15, 0.19), cloth, sides=7, painted=True)
    return join(*wheels, *tubes, *legs, *arms, torso, ball((0.16, 0.0, 1.6), (0.11, 0.1, 0.14), cloth, skin))


@cache
def simple() -> dict[str, Shape]:
    """Unit shapes that a copy's scale turns into houses, panes, poles and trunks; all stand on z = 0."""
    pane = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0.5, 0, 1], [-0.5, 0, 1]])
    gable = np.array([[x, y, z] for x in (-0.5, 0.5) for y, z in ((-0.5, 0), (0.5, 0), (0, 1.0))])
    roof = np.array([[0, 1, 2], [3, 4, 5], [0, 2, 5], [0, 5, 3], [1, 4, 5], [1, 5, 2]])
    unit = ((-0.5, -0.5, 0.0), (0.5, 0.5, 1.0))
    return {
        "house": cuboid(*unit, Material.FACADE),
        "ledge": cuboid(*unit, Material.CONCRETE),
        "bar": cuboid(*unit, Material.METAL),
        "plate": cuboid(*unit, Material.SIGN),
        "hedge": cuboid(*unit, Material.LEAF),
        "pane": shape(pane, np.array([[0, 1, 2], [0, 2, 3]]), Material.GLASS),
        "gable": shape(gable, roof, Material.ROOF),
        "pole": limb((0, 0, 0), (0, 0, 1), (1.0, 0.8), Material.METAL, painted=True),
        "trunk": limb((0, 0, 0), (0.1, 0.05, 1), (1.0, 0.6), Material.BARK, sides=7, painted=True),
        "core": replace(ball((0, 0, 0), (1, 1, 1), Material.LEAF), painted=np.ones(20, bool)),
    }
