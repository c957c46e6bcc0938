"""The section ``detection`` of a recipe: where boxes are looked for, and which names are which class."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from xmodal_kd.adapter.adapter import Strict

from .frame import Box

Metres = Annotated[float, Field(ge=-1000, le=1000)]
#: What KITTI, nuScenes and the simulator call a thing; each in lower case.
NAMES: dict[str, tuple[str, ...]] = {
    "car": ("car",),
    "truck": ("truck", "bus", "trailer", "construction_vehicle"),
    "person": ("person", "pedestrian"),
}


class Detection(Strict):
    """Where boxes are looked for, and what they are of.

    Attributes:
        range: least x and y, largest x and y of box centres and of the points that are looked at, metres; x forward.
        classes: by class the names of the data set that mean it, in any case; things of other names are passed over.
        points: with fewer LiDAR points in it a box is neither learnt nor asked for.
    """

    range: tuple[Metres, Metres, Metres, Metres] = (-38.4, -25.6, 38.4, 25.6)
    classes: dict[str, tuple[str, ...]] = NAMES
    points: Annotated[int, Field(ge=0, le=100_000)] = 1

    @model_validator(mode="after")
    def _fits(self) -> Detection:
        x0, y0, x1, y1 = self.range
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"range: {list(self.range)} holds no ground: give least x, least y, largest x, largest y")
        if not self.classes or not all(self.classes.values()):
            raise ValueError("classes: name at least one, each with the names that a data set has for it")
        said = [name.lower() for names in self.classes.values() for name in names]
        if twice := next((name for name in said if said.count(name) > 1), None):
            raise ValueError(f"classes: {twice!r} stands there twice: a name means one class")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    def number(self, box: Box) -> int:
        """The class of a box, -1 for one of none."""
        name = box.name.lower()
        return next((i for i, names in enumerate(self.classes.values()) if name in map(str.lower, names)), -1)

    def wanted(self, box: Box) -> bool:
        """Whether a box is one to find: of a class, its centre in range, with points in it where they were counted."""
        x0, y0, x1, y1 = self.range
        x, y, _ = box.centre
        seen = box.points is None or box.points >= self.points
        return self.number(box) >= 0 and x0 <= x < x1 and y0 <= y < y1 and seen

    def steps(self, cell: float) -> tuple[int, int]:
        """Pillars along x and y. Raises ``ValueError`` where the range is no even number of them."""
        x0, y0, x1, y1 = self.range
        found = (x1 - x0) / cell, (y1 - y0) / cell
        whole = round(found[0]), round(found[1])
        if max(abs(a - b) for a, b in zip(found, whole, strict=True)) > 1e-3 or any(n % 8 for n in whole):
            raise ValueError(
                f"detection.range of {x1 - x0:g} x {y1 - y0:g} m is {found[0]:g} x {found[1]:g} pillars of {cell:g} m: "
                "give sides that are multiples of eight pillars"
            )
        return whole


__all__ = ["NAMES", "Detection"]
