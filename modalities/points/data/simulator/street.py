"""The ground: a bent, uneven road with kerbs, pavements, yards and perhaps a side street, as a height and as a mesh.

Street coordinates are s, metres along the centre line from where the sensor is at time 0, and d, metres to its left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ..frame import CLASSES
from .families import Layout
from .mesh import Mesh
from .shapes import Material

#: Metres of street before and behind the sensor, and of land on either side.
LENGTH, WIDTH = 85.0, 45.0
#: The ground is gridded more finely where beams are dense: metres of street on either side of the sensor.
FINE = 45.0
#: Seconds before time 0 in which the sensor's car is in the street and nothing is in its way.
SPAN = 4.0
#: Width of a parking strip, metres, and how steep the kerb's face is.
STRIP, FACE = 2.3, 0.02
ASPHALT, SLABS, LAWN, LINE = (0.3, 0.3, 0.31), (0.55, 0.53, 0.5), (0.3, 0.42, 0.2), (0.85, 0.85, 0.82)


@dataclass(frozen=True)
class Waves:
    """Waves of the ground: ``(w,)`` each. Height is the sum of ``amplitude * sin(along s + across d + phase)``."""

    amplitude: Float[np.ndarray, " w"]
    along: Float[np.ndarray, " w"]
    across: Float[np.ndarray, " w"]
    phase: Float[np.ndarray, " w"]


class Street:
    """One street.

    Args:
        layout: its measures.
        rng: draws the rest: waves of the ground, the side street, how yards rise.
    """

    def __init__(self, layout: Layout, rng: np.random.Generator) -> None:
        self.layout = layout
        self.bend = layout.bend * rng.choice([-1.0, 1.0])
        length = rng.uniform(14, 70, 4)
        turn = rng.uniform(0, np.pi, 4)
        self.waves = Waves(
            layout.rough * rng.uniform(0.001, 0.006, 4) * length,
            np.cos(turn) * 2 * np.pi / length,
            np.sin(turn) * 2 * np.pi / length,
            rng.uniform(0, 2 * np.pi, 4),
        )
        self.tilt = rng.uniform(-0.02, 0.02)
        self.rise = rng.uniform(-0.01, 0.08, 2) * layout.rough
        self.paved_yards = rng.random() < 0.25
        self.half = layout.lane + (STRIP if layout.parked > 0.25 else 0.5)
        self.pavement = self.half + layout.pavement
        centre = rng.uniform(18, 55) * rng.choice([-1.0, 1.0])
        wide = rng.uniform(3.0, 4.5)
        self.junction = (centre - wide, centre + wide) if rng.random() < layout.junction else None
        self._noise = rng

    def at_junction(self, s: np.ndarray, margin: float | np.ndarray = 0.0) -> Bool[np.ndarray, " n"]:
        """Whether s lies within the side street's width, or `margin` metres of it."""
        if self.junction is None:
            return np.zeros(np.shape(s), bool)
        found: np.ndarray = (s > self.junction[0] - margin) & (s < self.junction[1] + margin)
        return found

    def heading(self, s: np.ndarray) -> np.ndarray:
        """Yaw of the street, radians."""
        yaw: np.ndarray = self.bend * np.asarray(s, float)
        return yaw

    def height(self, s: np.ndarray, d: np.ndarray) -> Float[np.ndarray, " n"]:
        """Of the ground in metres, kerbs and banks included."""
        w = self.waves
        phase = np.multiply.outer(s, w.along) + np.multiply.outer(d, w.across) + w.phase
        smooth = np.sin(phase) @ w.amplitude + self.tilt * np.asarray(s) - 0.015 * np.minimum(np.abs(d), self.half)
        raised = (np.abs(d) > self.half + FACE / 2) & ~self.at_junction(s)
        rise = np.where(np.asarray(d) > 0, self.rise[0], self.rise[1])
        bank = rise * np.clip(np.abs(d) - self.pavement, 0, 12)
        total: np.ndarray = smooth + raised * (self.layout.kerb + bank)
        return total

    def world(self, s: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Street coordinates to x and y: the centre line is an arc that leaves the origin along x."""
        s, half = np.asarray(s, float), self.heading(s) / 2
        chord = s * np.sinc(half / np.pi)
        return chord * np.cos(half) - d * np.sin(2 * half), chord * np.sin(half) + d * np.cos(2 * half)

    def mesh(self) -> Mesh:
        """The ground as triangles, with lane markings and 4 mm to 9 cm of unevenness by surface."""
        s_lines, d_lines = self._lines()
        s, d = (grid.ravel() for grid in np.meshgrid(s_lines, d_lines, indexing="ij"))
        yard = (abs(d) > self.pavement + 0.1) & ~self.at_junction(s)
        bumps = self._noise.normal(0, 1, len(s)) * np.where(
            yard & (not self.paved_yards), 0.06 * self.layout.rough, 0.004
        )
        vertices = np.stack([*self.world(s, d), self.height(s, d) + bumps], axis=1)
        rows, columns = len(s_lines), len(d_lines)
        corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
        quads = np.stack([corner, corner + columns, corner + columns + 1, corner + 1], axis=1)
        triangles = quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
        middle_s, middle_d = s[quads].mean(1), d[quads].mean(1)
        label, material, colour = self._surfaces(middle_s, middle_d)
        return Mesh.still(
            vertices, triangles, np.repeat(label, 2), np.repeat(material, 2), np.repeat(colour, 2, axis=0)
        )

    def _lines(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the grid of the ground has its lines: regular along s, at every edge of a surface along d."""
        lane, half, outer = self.layout.lane, self.half, self.pavement
        s = np.concatenate([np.arange(-LENGTH, -FINE, 5), np.arange(-FINE, FINE, 2.5), np.arange(FINE, LENGTH + 1, 5)])
        if self.junction is not None:
            edges = np.array([edge + k * FACE for edge in self.junction for k in (-0.5, 0.5)])
            s = np.sort(np.concatenate([s[~self.at_junction(s, 0.5) | self.at_junction(s, -0.5)], edges]))
        far = outer + np.cumsum([0.2, 1.5, 2, 2.5, 4, 6, 8, 10])
        side = [0.07, lane - 0.06, lane + 0.06, half - 0.15, half, half + FACE, (half + outer) / 2, outer]
        d = np.concatenate([side, far[far < WIDTH - 2], [WIDTH]])
        return s, np.concatenate([-d[::-1], d])

    def _surfaces(self, s: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Label, material and colour of the grid's cells by their centres."""
        aside, crossing = abs(d), self.at_junction(s)
        paved = (aside > self.half) & (aside < self.pavement) & ~crossing
        yard = (aside > self.pavement) & ~crossing
        dash = (aside < 0.07) & (np.floor(s / 2.5) % 3 == 0)
        edge = (abs(aside - self.layout.lane) < 0.06) & (self.layout.parked > 0.25)
        line = (dash | edge) & ~crossing
        label = np.where(paved | (yard & self.paved_yards), CLASSES.index("pavement"), CLASSES.index("ground"))
        yards = (Material.CONCRETE, SLABS) if self.paved_yards else (Material.GRASS, LAWN)
        kinds = [line, paved, yard]
        material = np.select(kinds, [Material.MARKING, Material.CONCRETE, yards[0]], Material.ASPHALT)
        choice = np.select(kinds, [1, 2, 3], 0)
        return label, material, np.array([ASPHALT, LINE, SLABS, yards[1]])[choice]
