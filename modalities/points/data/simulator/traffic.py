"""Who is in the street: parked and driving vehicles, people who stand and walk, cyclists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .copies import Copies, copies, of_kinds
from .shapes import cars, cyclists, people, trucks
from .street import LENGTH, SPAN, STRIP, Street

#: The road that the sensor's own car keeps to itself, metres before and behind it.
CLEAR = 9.0
#: Metres from a cyclist's middle to a vehicle's, along the street, in which they would be beside one another; and from
#: it to a vehicle's flank, across the street.
BESIDE, ELBOW = 7.5, 0.36
#: Metres from a cyclist's middle to that of the one who rides before.
FOLLOWING = 2.6
PAINTS = np.array(
    [(0.85, 0.85, 0.87), (0.6, 0.62, 0.65), (0.1, 0.1, 0.12), (0.3, 0.32, 0.35), (0.5, 0.08, 0.08),
     (0.1, 0.18, 0.45), (0.55, 0.5, 0.4), (0.1, 0.3, 0.18), (0.8, 0.55, 0.1)]
)  # fmt: skip


def parked(street: Street, rng: np.random.Generator) -> Iterator[Copies]:
    """Rows of vehicles at both kerbs, and some cars in the yards."""
    layout = street.layout
    for side in (-1.0, 1.0):
        s = np.arange(-LENGTH + 4, LENGTH - 4, 6.2)
        s = s + rng.normal(0, 0.4, len(s))
        s = s[(rng.random(len(s)) < layout.parked) & ~street.at_junction(s, 5.0)]
        if layout.parked > 0.25:
            d = side * (street.half - STRIP / 2) + rng.normal(0, 0.12, len(s))
            turned = (side > 0) ^ (rng.random(len(s)) < 0.15)
            yaw = np.where(turned, np.pi, 0) + rng.normal(0, 0.03, len(s))
            yield from vehicles(street, rng, s, d, yaw, np.zeros((len(s), 2)), lorries=layout.lorries / 2)
        if layout.setback > 5.5:
            s = rng.uniform(-LENGTH, LENGTH, 4)
            s = s[~street.at_junction(s, 6.0)]
            yaw = side * np.pi / 2 * rng.choice([-1, 1], len(s)) + rng.normal(0, 0.1, len(s))
            d = np.full(len(s), side * (street.pavement + 2.8))
            yield from vehicles(street, rng, s, d, yaw, np.zeros((len(s), 2)), lorries=0.0)


def driving(street: Street, rng: np.random.Generator) -> Iterator[Copies]:
    """Vehicles in both lanes. Those of a lane keep about one speed, so that they do not meet."""
    layout = street.layout
    for side in (-1.0, 1.0):
        gap = 100 / max(layout.traffic, 0.1)
        s = np.arange(-LENGTH + 6, LENGTH - 6, max(gap, 13.0)) + rng.uniform(0, gap)
        s = s + rng.uniform(-2, 2, len(s))
        own = side < 0  # the sensor's own lane: on the right
        s = s[(abs(s) > CLEAR) & (abs(s) < LENGTH)] if own else s[s < LENGTH]
        pace = layout.speed if own else rng.uniform(4, 14)
        speed = -side * np.maximum(pace + rng.uniform(-0.5, 0.5, len(s)), 0)
        if pace < 1:
            speed = np.zeros(len(s))
        d = side * layout.lane / 2 + rng.normal(0, 0.15, len(s))
        yaw = np.full(len(s), 0.0 if own else np.pi)
        velocity = np.stack([speed, np.zeros(len(s))], axis=1)
        yield from vehicles(street, rng, s, d, yaw, velocity, lorries=layout.lorries)


def vehicles(
    street: Street, rng: np.random.Generator, s: np.ndarray, d: np.ndarray, yaw: np.ndarray, velocity: np.ndarray, *,
    lorries: float,
) -> Iterator[Copies]:  # fmt: skip
    """Cars, and a share of trucks, of random kinds, sizes and paints at these places."""
    n = len(s)
    scale = street.layout.size * rng.uniform(0.94, 1.06, (n, 3))
    colour = np.clip(PAINTS[rng.integers(len(PAINTS), size=n)] * rng.uniform(0.8, 1.15, (n, 1)), 0, 1)
    heavy = rng.random(n) < lorries
    car, truck = rng.choice(5, n, p=[0.25, 0.3, 0.15, 0.2, 0.1]), rng.choice(3, n, p=[0.4, 0.35, 0.25])
    for label, shapes, kind, mask in (("car", cars(), car, ~heavy), ("truck", trucks(), truck, heavy)):
        template = copies(shapes[0], label, s, d, yaw=yaw, scale=scale, colour=colour, velocity=velocity)
        yield from of_kinds(shapes, kind[mask], template[mask])


def walkers(street: Street, rng: np.random.Generator) -> Iterator[Copies]:
    """People: most on the pavements along the street, a few on their way across it."""
    layout = street.layout
    n = rng.poisson(layout.people * 2 * LENGTH / 100, 2)
    side = np.repeat([-1.0, 1.0], n)
    s = rng.uniform(-LENGTH, LENGTH, n.sum())
    together = rng.random(len(s)) < 0.3  # beside the one before
    s[1:] = np.where(together[1:], s[:-1] + rng.uniform(-0.6, 0.6, len(s) - 1), s[1:])
    d = side * (street.half + rng.uniform(0.4, max(layout.pavement - 0.3, 0.6), len(s)))
    speed = np.where(rng.random(len(s)) < 0.35, 0.0, rng.uniform(0.9, 1.7, len(s)) * rng.choice([-1, 1], len(s)))
    velocity = np.stack([speed, np.zeros(len(s))], axis=1)
    yaw = np.where(speed < 0, np.pi, np.where(speed > 0, 0, rng.uniform(-np.pi, np.pi, len(s))))
    crossing = (rng.random(len(s)) < 0.15) & ((s > CLEAR) | (s < -SPAN * layout.speed - CLEAR))
    d = np.where(crossing, rng.uniform(-street.half, street.half, len(s)), d)
    velocity = np.where(crossing[:, None], np.stack([0 * speed, side * 1.3], axis=1), velocity)
    yaw = np.where(crossing, side * np.pi / 2, yaw)
    height = layout.size * rng.uniform(0.88, 1.1, len(s))
    scale = np.stack([height, height * rng.uniform(0.9, 1.2, len(s)), height], axis=1)
    colour = rng.uniform(0.08, 0.85, (len(s), 3))
    walks = (velocity != 0).any(1)
    kind = np.where(walks, rng.integers(1, 3, len(s)), 0)
    template = copies(people()[0], "person", s, d, yaw=yaw, scale=scale, colour=colour, velocity=velocity)
    yield from of_kinds(people(), kind, template)


def riders(street: Street, rng: np.random.Generator, rate: float, others: Sequence[Copies]) -> Iterator[Copies]:
    """Cyclists at the edge of both lanes, who ride with the traffic; whoever would touch a vehicle is left out.

    Args:
        rate: on 100 m of a lane, before any is left out.
        others: the vehicles.
    """
    layout = street.layout
    n = rng.poisson(rate * 2 * LENGTH / 100, 2)
    side = np.repeat([-1.0, 1.0], n)
    speed = np.repeat(rng.uniform(2.5, 6.5, 2), n)  # those of a side keep one pace, so that none meet
    s = np.concatenate([np.sort(rng.uniform(-LENGTH, LENGTH, k)) for k in n])
    d = side * (layout.lane - 0.2 + rng.normal(0, 0.06, len(s)))
    velocity = np.stack([-side * speed, np.zeros(len(s))], axis=1)
    height = layout.size * rng.uniform(0.92, 1.08, len(s))
    colour = rng.uniform(0.08, 0.85, (len(s), 3))
    kind = rng.integers(2, size=len(s))
    free = np.diff(s, prepend=-np.inf) > FOLLOWING
    free |= np.diff(side, prepend=0.0) != 0
    for group in others:
        ahead = s[:, None] - group.s
        before = ahead - SPAN * (velocity[:, :1] - group.velocity[:, 0])
        apart = (np.sign(ahead) == np.sign(before)) & (np.minimum(abs(ahead), abs(before)) > BESIDE)
        clear = abs(d[:, None] - group.d) > group.shape.size[1] / 2 + ELBOW
        free &= (apart | clear).all(axis=1)
    yaw = np.where(side < 0, 0.0, np.pi) + rng.normal(0, 0.04, len(s))
    scale = np.repeat(height[:, None], 3, axis=1)
    template = copies(cyclists()[0], "cyclist", s, d, yaw=yaw, scale=scale, colour=colour, velocity=velocity)
    yield from of_kinds(cyclists(), kind[free], template[free])
