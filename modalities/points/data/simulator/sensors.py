"""Spinning LiDARs: where their lasers point, how far they see and how well."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import yaml
from jaxtyping import Float
from pydantic import Field, ValidationError, model_validator

from xmodal_kd.adapter.saved_model import explain
from xmodal_kd.adapter.source import Strict
from xmodal_kd.runtime.errors import UserError


@dataclass(frozen=True)
class Sensor:
    """A LiDAR that turns about its z axis.

    Attributes:
        name: as in `SENSORS`.
        elevations: ``(beams,)`` radians, descending: ring 0 is the highest.
        columns: shots of one laser in a turn.
        max_range: metres beyond which nothing comes back.
        height: metres above the ground.
        noise: standard deviation of a range, metres.
        dropout: share of returns lost for no visible reason.
    """

    name: str
    elevations: Float[np.ndarray, " beams"]
    columns: int
    max_range: float
    height: float
    noise: float = 0.02
    dropout: float = 0.05

    @property
    def beams(self) -> int:
        return len(self.elevations)

    def with_columns(self, columns: int) -> Sensor:
        """The same sensor with another number of shots in a turn."""
        return replace(self, columns=columns)

    def rays(self) -> Float[np.ndarray, "beams columns 3"]:
        """Unit directions in the sensor's frame. Column j looks at azimuth pi - 2 pi (j + 0.5) / columns.

        So azimuth falls with the column, as in a picture: left of the middle is left of the car.
        """
        azimuth = np.pi - 2 * np.pi * (np.arange(self.columns) + 0.5) / self.columns
        up, flat = np.sin(self.elevations)[:, None], np.cos(self.elevations)[:, None]
        rays = np.stack(np.broadcast_arrays(flat * np.cos(azimuth), flat * np.sin(azimuth), up), axis=-1)
        unit: np.ndarray = np.asarray(rays, np.float32)
        return unit


def _spread(*blocks: tuple[float, float, int]) -> Float[np.ndarray, " beams"]:
    """Elevations in radians from blocks of (first degree, last degree, lasers)."""
    elevations: np.ndarray = np.radians(np.concatenate([np.linspace(*block) for block in blocks]))
    return elevations


#: The HDL-64E's upper half is spaced by a third of a degree, its lower half by half a degree.
SENSORS = {
    sensor.name: sensor
    for sensor in (
        Sensor("hdl64e", _spread((2.0, -8.33, 32), (-8.83, -24.33, 32)), 1024, 100.0, 1.73),
        Sensor("vlp16", _spread((15.0, -15.0, 16)), 1024, 100.0, 1.73, noise=0.03),
        Sensor("nuscenes32", _spread((10.67, -30.67, 32)), 1084, 70.0, 1.84),
    )
}


class OwnSensor(Strict):
    """A LiDAR that is none of the presets, its beams evenly spaced."""

    beams: int = Field(ge=1, le=1024)
    top: float = Field(ge=-90, le=90)
    """Elevation of the highest beam, degrees above the horizon."""
    bottom: float = Field(ge=-90, le=90)
    """Of the lowest."""
    height: float = Field(default=1.73, ge=0, le=100)
    """Metres above the ground."""
    max_range: float = Field(default=100.0, gt=0, le=10_000)
    """Metres beyond which nothing comes back."""

    @model_validator(mode="after")
    def _downwards(self) -> OwnSensor:
        if self.beams > 1 and self.top <= self.bottom:
            raise ValueError(f"top: {self.top:g} degrees must lie above bottom, {self.bottom:g}")
        return self

    @property
    def made(self) -> Sensor:
        name = f"{self.beams} beams from {self.top:g} to {self.bottom:g} degrees"
        return Sensor(name, _spread((self.top, self.bottom, self.beams)), 1024, self.max_range, self.height)


#: As a recipe or a card names it.
Named = str | OwnSensor


def known(named: Named) -> Sensor | None:
    """The sensor that a recipe or a card names; None for a name that is no preset's."""
    return SENSORS.get(named) if isinstance(named, str) else named.made


def sensor(name: Named, columns: int | None = None) -> Sensor:
    """The preset of that name, or one's own (also as YAML), with another number of columns where one is given.

    Raises:
        UserError: no such preset, or no sensor.
    """
    if isinstance(name, str) and name.lstrip().startswith("{"):
        name = _written(name)
    if (found := known(name)) is None:
        own = "{beams: 40, top: 7, bottom: -16}"
        raise UserError(f"sensor {name!r} is unknown: choose one of {', '.join(SENSORS)}, or say what it is: {own}")
    return found if columns is None else found.with_columns(columns)


def _written(text: str) -> OwnSensor:
    try:
        return OwnSensor.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"sensor {text!r} is no YAML: {' '.join(str(error).split())[:120]}") from error
    except ValidationError as error:
        raise UserError(f"sensor {text!r}: {explain(error)}") from error
