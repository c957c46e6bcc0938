"""What stands beside the road: houses with windows and roofs, walls, hedges, trees, lamps, signs, bins."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..frame import CLASSES
from .copies import Copies, copies
from .mesh import Mesh
from .shapes import Material, simple
from .street import LENGTH, Street

PLASTERS = np.array(
    [(0.75, 0.7, 0.6), (0.65, 0.35, 0.28), (0.8, 0.78, 0.72), (0.55, 0.5, 0.45), (0.7, 0.6, 0.42), (0.6, 0.62, 0.62)]
)
TILES = np.array([(0.45, 0.22, 0.16), (0.25, 0.25, 0.28), (0.35, 0.28, 0.24)])
PANE = (0.13, 0.17, 0.22)


def houses(street: Street, rng: np.random.Generator) -> Iterator[Copies]:
    """A row of houses on each side, their fronts with windows, balconies and doorsteps, some with gabled roofs."""
    layout, shapes = street.layout, simple()
    for side in (-1.0, 1.0):
        n = int(2 * LENGTH / (layout.house + layout.gap)) + 3
        length = layout.house * rng.uniform(0.75, 1.25, n)
        gap = np.where(rng.random(n) < 0.5, 0.0, 2 * layout.gap * rng.random(n))
        s = np.cumsum(length + gap) - length / 2 - LENGTH - 3
        keep = (s < LENGTH) & ~street.at_junction(s, length / 2 + 2) & (rng.random(n) < layout.built)
        s, length = s[keep], length[keep]
        n = len(s)
        high = np.clip(layout.storeys * rng.uniform(0.6, 1.4, n), 3.2, 24)
        deep = rng.uniform(7, 12, n)
        front = street.pavement + layout.setback * rng.uniform(0.8, 1.3, n) + 0.3
        front = np.maximum(front, street.pavement + 0.3)
        yaw = np.full(n, np.pi if side > 0 else 0.0)  # the front looks along its own +y
        scale = np.stack([length, deep, high + 1.5], axis=1)
        plaster = np.clip(PLASTERS[rng.integers(len(PLASTERS), size=n)] * rng.uniform(0.8, 1.15, (n, 1)), 0, 1)
        middle = side * (front + deep / 2)
        yield copies(shapes["house"], "building", s, middle, lift=-1.5, yaw=yaw, scale=scale, colour=plaster)
        low = high < 10
        pitched = low & (rng.random(n) < 0.7)
        roof = np.stack([length, deep * 1.08, deep * 0.35], axis=1)[pitched]
        tiles = TILES[rng.integers(len(TILES), size=pitched.sum())]
        yield copies(shapes["gable"], "building", s[pitched], middle[pitched], lift=high[pitched], yaw=yaw[pitched],
                     scale=roof, colour=tiles)  # fmt: skip
        yield from _fronts(s, side, front, length, high, middle, street, rng)


def _fronts(
    s: np.ndarray, side: float, front: np.ndarray, length: np.ndarray, high: np.ndarray, middle: np.ndarray,
    street: Street, rng: np.random.Generator,
) -> Iterator[Copies]:  # fmt: skip
    """Windows in rows and columns, and what sticks out of a wall."""
    shapes = simple()
    base = street.height(s, middle)
    bays = np.maximum((length / 2.9).astype(int), 1)
    floors = np.clip((high / 3.1).astype(int), 1, 4)  # higher windows are above what any beam sees
    house = np.repeat(np.arange(len(s)), bays * floors)
    number = np.arange(len(house)) - np.repeat(np.cumsum(bays * floors) - bays * floors, bays * floors)
    bay, floor = number % bays[house], number // bays[house]
    along = s[house] + ((bay + 0.5) / bays[house] - 0.5) * length[house]
    wall = side * (front[house] - 0.04)
    lift = base[house] + 0.9 + 3.0 * floor - street.height(along, wall)
    wide, tall = rng.uniform(1.0, 1.7, len(s))[house], rng.uniform(1.2, 1.6, len(s))[house]
    scale = np.stack([wide, np.ones(len(house)), tall], axis=1)
    yield copies(shapes["pane"], "building", along, wall, lift=lift, scale=scale, colour=PANE)
    some = rng.random(len(house)) < 0.12
    if not some.any():
        return
    along, wall, floor, lift = along[some], wall[some], floor[some], lift[some]
    out = np.where(floor == 0, 0.4, rng.uniform(0.5, 1.2, some.sum()))  # a doorstep, else a balcony
    scale = np.stack([wide[some] + 0.6, 2 * out, np.where(floor == 0, 0.5, 1.0)], axis=1)
    lift = np.where(floor == 0, -0.2, lift - 1.0)
    yield copies(shapes["ledge"], "building", along, wall, lift=lift, scale=scale, colour=(0.6, 0.58, 0.55))


def borders(street: Street, rng: np.random.Generator) -> Iterator[Copies]:
    """Garden walls between pavement and yard, and the boxes inside hedges."""
    layout, shapes = street.layout, simple()
    if layout.setback < 2:
        return
    for side in (-1.0, 1.0):
        s = np.arange(-LENGTH + 3, LENGTH - 3, 6.0)
        kind = rng.random(len(s))
        free = ~street.at_junction(s, 4.0)
        scale = np.stack(
            [rng.uniform(4, 6, len(s)), np.full(len(s), 0.25), rng.uniform(0.7, 1.8, len(s)) + 0.3], axis=1
        )
        d = np.full(len(s), side * (street.pavement + 0.3))
        wall, hedge = free & (kind < 0.2), free & (kind > 1 - 0.12 * layout.green)
        yield copies(shapes["house"], "building", s[wall], d[wall], lift=-0.3, scale=scale[wall], colour=PLASTERS[3])
        scale = scale * (1, 2.5, 0.9)
        green = np.array([0.13, 0.24, 0.09]) * rng.uniform(0.8, 1.2, (hedge.sum(), 1))
        yield copies(shapes["hedge"], "tree", s[hedge], d[hedge] + 0.4 * side, lift=-0.3, scale=scale[hedge],
                     colour=green)  # fmt: skip


def poles(street: Street, rng: np.random.Generator) -> Iterator[Copies]:
    """Lamps with arms, road signs, bollards, traffic lights; and bins, which have no class."""
    layout, shapes = street.layout, simple()
    s = np.arange(-LENGTH, LENGTH, layout.poles) + rng.uniform(0, layout.poles)
    side = np.where(np.arange(len(s)) % 2 == 0, 1.0, -1.0)
    s = s[keep := ~street.at_junction(s, 1.0) & (s < LENGTH)]
    side, n = side[keep], int(keep.sum())
    d, tall = side * (street.half + 0.5), np.full(n, rng.uniform(5, 9))
    thick = rng.uniform(0.07, 0.13)
    grey = np.full(3, rng.uniform(0.25, 0.6))
    yield copies(shapes["pole"], "pole", s, d, lift=-0.1, scale=np.stack([thick + 0 * s, thick + 0 * s, tall], axis=1),
                 colour=grey)  # fmt: skip
    arm = np.tile([0.09, 1.6, 0.09], (n, 1))
    yield copies(shapes["bar"], "pole", s, d - side * 0.7, lift=tall - 0.15, scale=arm, colour=grey)

    n = rng.poisson(10)
    s = rng.uniform(-LENGTH, LENGTH, n)
    s = s[~street.at_junction(s, 0.5)]
    n = len(s)
    side = rng.choice([-1.0, 1.0], n)
    d = side * (street.half + 0.45)
    yield copies(shapes["pole"], "pole", s, d, scale=(0.04, 0.04, 2.9), colour=(0.6, 0.6, 0.62))
    sign = np.array([(0.7, 0.1, 0.1), (0.1, 0.2, 0.6), (0.85, 0.85, 0.8), (0.8, 0.7, 0.1)])[rng.integers(4, size=n)]
    yield copies(shapes["plate"], "pole", s - 0.05, d, lift=2.2, scale=(0.03, 0.65, 0.65), colour=sign)
    if rng.random() < 0.5:
        row = 1.6 * np.arange(rng.integers(4, 12)) + rng.uniform(-50, 40)
        s = row[~street.at_junction(row, 0.3)]
        d = np.full(len(s), rng.choice([-1, 1]) * (street.half + 0.3))
        yield copies(shapes["pole"], "pole", s, d, scale=(0.08, 0.08, 1.0), colour=(0.35, 0.2, 0.2))
    if street.junction is not None:
        s = np.repeat(street.junction, 2) + np.array([-0.8, -0.8, 0.8, 0.8])
        d = (street.half + 0.5) * np.array([1, -1, 1, -1.0])
        yield copies(shapes["pole"], "pole", s, d, scale=(0.08, 0.08, 3.4), colour=(0.3, 0.3, 0.3))
        yield copies(shapes["bar"], "pole", s, d, lift=2.6, scale=(0.3, 0.35, 0.9), colour=(0.08, 0.09, 0.08))
    s = rng.uniform(-60, 60, rng.poisson(3))
    s = s[~street.at_junction(s, 1.0)]
    d = rng.choice([-1.0, 1.0], len(s)) * (street.pavement - 0.4)
    yield copies(shapes["ledge"], "", s, d, scale=(0.6, 0.7, 1.1), colour=(0.16, 0.2, 0.17))


class Greenery:
    """Trees and bushes: trunks and dark cores as copies, leaves as one mesh of loose triangles that lets beams pass."""

    def __init__(self, street: Street, rng: np.random.Generator) -> None:
        self.street, self.rng = street, rng
        layout = street.layout
        self.s, self.d = self._places()
        n = len(self.s)
        self.radius = np.clip(layout.crown * rng.uniform(0.7, 1.3, n), 0.8, 3.4)
        self.trunk = self.radius * rng.uniform(0.2, 1.3, n) + 0.7
        bushes = rng.poisson(layout.green * 6 + 20 * (1 - layout.built))
        self.bush_s = rng.uniform(-LENGTH, LENGTH, bushes)
        self.bush_d = rng.choice([-1.0, 1.0], bushes) * (street.pavement + rng.uniform(0.8, 10, bushes))
        keep = ~street.at_junction(self.bush_s, 1.5)
        keep &= np.full(bushes, layout.setback > 1.5 or layout.built < 0.7)
        self.bush_s, self.bush_d = self.bush_s[keep], self.bush_d[keep]
        self.bush = rng.uniform(0.4, 1.5, len(self.bush_s))

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """A row at each kerb that has one, and single trees in the yards."""
        street, rng, layout = self.street, self.rng, self.street.layout
        found = []
        for kerb in (-1.0, 1.0):
            if rng.random() < 0.7 and layout.pavement > 1.6:
                s = np.arange(-LENGTH, LENGTH, layout.trees) + rng.uniform(0, layout.trees)
                found.append((s + rng.normal(0, 0.5, len(s)), np.full(len(s), kerb * (street.half + 0.75))))
        n = rng.poisson(200 / layout.trees * (0.3 + 0.1 * layout.setback + 1.5 * (1 - layout.built)))
        side = rng.choice([-1.0, 1.0], n)
        found.append((rng.uniform(-LENGTH, LENGTH, n), side * (street.pavement + rng.uniform(1.2, 26, n))))
        s, d = (np.concatenate(part) for part in zip(*found, strict=True))
        keep = ~street.at_junction(s, 2.0) & (s < LENGTH)
        return s[keep], d[keep]

    def copies(self) -> Iterator[Copies]:
        shapes, rng = simple(), self.rng
        n, thick = len(self.s), 0.09 + 0.06 * self.radius
        bark = np.array([0.27, 0.21, 0.16]) * rng.uniform(0.8, 1.2, (n, 1))
        high = self.trunk + 0.4 * self.radius
        yield copies(shapes["trunk"], "tree", self.s, self.d, lift=-0.1, scale=np.stack([thick, thick, high], axis=1),
                     yaw=rng.uniform(0, 6.28, n), colour=bark)  # fmt: skip
        core = np.stack([self.radius, self.radius, self.radius * 0.9], axis=1) * 0.55
        dark = (0.1, 0.2, 0.07)
        yield copies(
            shapes["core"], "tree", self.s, self.d, lift=self.trunk + self.radius * 0.6, scale=core, colour=dark
        )
        core = np.stack([self.bush, self.bush, self.bush * 1.1], axis=1) * 0.8
        yield copies(shapes["core"], "tree", self.bush_s, self.bush_d, lift=0.4 * self.bush, scale=core, colour=dark)

    def leaves(self) -> Mesh:
        """Loose triangles of 0.3 to 0.6 m in the shells of crowns and bushes; fewer and larger ones far away."""
        rng, street = self.rng, self.street
        s, d = np.concatenate([self.s, self.bush_s]), np.concatenate([self.d, self.bush_d])
        radius = np.concatenate([self.radius, self.bush])
        lift = np.concatenate([self.trunk + self.radius * 0.6, 0.55 * self.bush])
        x, y = street.world(s, d)
        centre = np.stack([x, y, street.height(s, d) + lift], axis=1)
        far = np.hypot(s, d) > 32
        count = (np.where(far, 16, 64) * radius).astype(int) + 14
        plant = np.repeat(np.arange(len(s)), count)
        n = len(plant)
        out = rng.standard_normal((n, 3), np.float32)
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        shell = rng.uniform(0.55, 1.05, n) * rng.choice(np.linspace(0.8, 1.15, 9), n)
        middle = centre[plant] + out * (shell * radius[plant])[:, None] * (1, 1, 0.85)
        size = np.where(far, 0.7, 0.34)[plant] * np.clip(radius[plant], 0.6, 1.5)
        corners = middle[:, None] + rng.standard_normal((n, 3, 3), np.float32) * (0.55 * size[:, None, None])
        tone = np.array([0.22, 0.38, 0.12]) * rng.uniform(0.7, 1.25, (len(s), 1)) * (1, 1, rng.uniform(0.7, 1.3))
        colour = tone[plant] * rng.uniform(0.65, 1.2, (n, 1))
        leaf = np.full(n, Material.LEAF)
        tree = np.full(n, CLASSES.index("tree"))
        return Mesh.still(corners.reshape(-1, 3), np.arange(3 * n).reshape(-1, 3), tree, leaf, colour)
