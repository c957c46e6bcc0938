"""How streets differ: between worlds of one family by chance, between families by the ranges they draw from."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from xmodal_kd.runtime.errors import UserError, nearest


@dataclass(frozen=True)
class Layout:
    """The measures of one street, metres unless said otherwise.

    Attributes:
        lane: width of a lane; there are two.
        parked: share of parking places taken, 0 to 1.
        lorries: share of vehicles that are trucks, 0 to 1.
        pavement: its width.
        kerb: its height.
        setback: from the pavement to the houses.
        house: length of a house's front.
        storeys: height of a house.
        gap: between houses.
        built: share of plots with a house, 0 to 1; the others are green.
        trees: between two trees of a row.
        crown: radius of a tree's crown.
        green: hedges and bushes on 100 m of a side.
        poles: between two lamps.
        people: on 100 m of a pavement.
        traffic: vehicles on 100 m of a lane.
        bend: curvature, 1 / m; its sign is drawn apart.
        rough: unevenness of the ground, 1 is usual.
        junction: chance of a side street.
        speed: of the car with the sensor, m/s.
        size: of vehicles and people against the usual one.
    """

    lane: float
    parked: float
    lorries: float
    pavement: float
    kerb: float
    setback: float
    house: float
    storeys: float
    gap: float
    built: float
    trees: float
    crown: float
    green: float
    poles: float
    people: float
    traffic: float
    bend: float
    rough: float
    junction: float
    speed: float
    size: float


#: Lowest and highest value of each measure. Training streets vary most. Dev streets are those of an old town: narrow,
#: bent, built up, busy on foot. Test streets are an avenue's: wide, straighter, green, with more traffic. Both lie
#: partly outside what training has seen.
FAMILIES = {
    "train": (
        Layout(2.9, 0.1, 0.08, 1.5, 0.09, 0.0, 8, 5, 0.5, 0.3, 9, 1.2, 0, 14, 4, 0.5, 0.0, 0.4, 0.3, 0, 0.94),
        Layout(3.5, 0.8, 0.22, 3.5, 0.15, 8.0, 18, 16, 8, 1.0, 26, 2.6, 4, 30, 18, 3.0, 0.01, 1.5, 0.7, 13, 1.06),
    ),
    "dev": (
        Layout(2.7, 0.3, 0.06, 1.2, 0.07, 0.0, 6, 7, 0.0, 0.6, 12, 1.0, 0, 13, 8, 0.5, 0.003, 0.6, 0.4, 0, 0.92),
        Layout(3.1, 0.9, 0.18, 2.6, 0.13, 4.0, 12, 18, 4, 1.0, 30, 2.2, 3, 26, 22, 2.5, 0.014, 1.7, 0.8, 9, 1.04),
    ),
    "test": (
        Layout(3.2, 0.1, 0.1, 2.2, 0.1, 2.0, 10, 4, 2.0, 0.3, 7, 1.5, 1, 18, 4, 1.0, 0.0, 0.4, 0.2, 4, 0.97),
        Layout(3.8, 0.7, 0.25, 4.5, 0.17, 10.0, 24, 14, 11, 0.9, 20, 3.0, 5, 34, 17, 4.0, 0.008, 1.6, 0.6, 16, 1.09),
    ),
}


def draw(family: str, rng: np.random.Generator) -> Layout:
    """A street of the family, each measure uniform in its range.

    Raises:
        UserError: no such family.
    """
    if family not in FAMILIES:
        raise UserError(f"family {family!r} of worlds is unknown{nearest(family, FAMILIES)}")
    low, high = FAMILIES[family]
    return Layout(*rng.uniform(astuple(low), astuple(high)).tolist())
