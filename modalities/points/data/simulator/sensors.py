"""LiDARs, that turn or look one way: where their lasers point, how far they see and how well."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import yaml
from jaxtyping import Float
from pydantic import AfterValidator, Field, ValidationError, model_validator

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.adapter.saved_model import explain
from xmodal_kd.runtime.errors import UserError, nearest

#: Degrees above the horizon.
Degrees = Annotated[float, Field(ge=-90, le=90)]
#: Degrees from ahead to the left.
Turned = Annotated[float, Field(ge=-180, le=180)]
Metres = Annotated[float, Field(gt=0, le=10_000)]
#: Lasers of one sensor: more than any has.
MOST = 1024


#: Azimuths of a full turn.
AROUND = (-np.pi, np.pi)


@dataclass(frozen=True)
class Sensor:
    """A LiDAR that turns about its z axis, or one of solid state, which sees a grid of azimuth and elevation.

    Attributes:
        name: as in `SENSORS`.
        elevations: ``(beams,)`` radians, descending: ring 0 is the highest.
        columns: shots of one laser in a turn.
        max_range: metres beyond which nothing comes back.
        height: metres above the ground.
        noise: standard deviation of a range, metres.
        dropout: share of returns lost for no visible reason.
        azimuth: lowest and highest, radians from x towards y, between which it looks: all around for one that turns.
    """

    name: str
    elevations: Float[np.ndarray, " beams"]
    columns: int
    max_range: float
    height: float
    noise: float = 0.02
    dropout: float = 0.05
    azimuth: tuple[float, float] = AROUND

    @property
    def turns(self) -> bool:
        """Whether it looks all around; else no laser is followed through a scan, and rings are bands of elevation."""
        return self.azimuth == AROUND

    @property
    def edges(self) -> tuple[float, float]:
        """Lowest and highest edge, in radians, of as many equal bands of elevation as it has lasers."""
        low, high = float(min(self.elevations)), float(max(self.elevations))
        margin = 0.01 if self.turns else (high - low) / (2 * (self.beams - 1))
        return low - margin, high + margin

    @property
    def beams(self) -> int:
        return len(self.elevations)

    def with_columns(self, columns: int) -> Sensor:
        """The same sensor with another number of shots in a turn."""
        return replace(self, columns=columns)

    def rays(self) -> Float[np.ndarray, "beams columns 3"]:
        """Unit directions in the sensor's frame; column j of a full turn looks at pi - 2 pi (j + 0.5) / columns.

        So azimuth falls with the column, as in a picture: left of the middle is left of the car.
        """
        low, high = self.azimuth
        azimuth = high - (high - low) * (np.arange(self.columns) + 0.5) / self.columns
        up, flat = np.sin(self.elevations)[:, None], np.cos(self.elevations)[:, None]
        rays = np.stack(np.broadcast_arrays(flat * np.cos(azimuth), flat * np.sin(azimuth), up), axis=-1)
        unit: np.ndarray = np.asarray(rays, np.float32)
        return unit


def _spread(*blocks: tuple[float, float, int]) -> Float[np.ndarray, " beams"]:
    """Elevations in radians from blocks of (first degree, last degree, lasers)."""
    elevations: np.ndarray = np.radians(np.concatenate([np.linspace(*block) for block in blocks]))
    return elevations


#: Degrees of the VLP-32C's lasers, by its manual: dense about the horizon.
_VLP32C = (
    15, 10.333, 7, 4.667, 3.333, 2.333, 1.667, 1.333, 1, 0.667, 0.333, 0, -0.333, -0.667, -1, -1.333, -1.667, -2,
    -2.333, -2.667, -3, -3.333, -3.667, -4, -4.667, -5.333, -6.148, -7.254, -8.843, -11.31, -15.639, -25,
)  # fmt: skip
#: Where the uppermost lasers of Hesai's two look.
_HESAI = ((15, 11, 2), (8, 8, 1), (5, 3, 2))
#: The HDL-64E's upper half is spaced by a third of a degree, its lower half by half a degree.
SENSORS = {
    sensor.name: sensor
    for sensor in (
        Sensor("hdl64e", _spread((2.0, -8.33, 32), (-8.83, -24.33, 32)), 1024, 100.0, 1.73),
        Sensor("vlp16", _spread((15.0, -15.0, 16)), 1024, 100.0, 1.73, noise=0.03),
        Sensor("nuscenes32", _spread((10.67, -30.67, 32)), 1084, 70.0, 1.84),
        Sensor("hdl32e", _spread((10.67, -30.67, 32)), 1084, 100.0, 1.73),
        Sensor("vlp32c", np.radians(_VLP32C), 1800, 200.0, 1.73, noise=0.03),
        Sensor("pandar40p", _spread(*_HESAI, (2, -6, 25), (-7, -14, 8), (-19, -25, 2)), 1800, 200.0, 1.73),
        Sensor("pandar64", _spread(*_HESAI, (2, -6, 49), (-7, -14, 8), (-19, -25, 2)), 1800, 200.0, 1.73),
        Sensor("os1_64", _spread((22.5, -22.5, 64)), 1024, 120.0, 1.73, noise=0.03),
        Sensor("os1_128", _spread((22.5, -22.5, 128)), 1024, 120.0, 1.73, noise=0.03),
        Sensor("os0_128", _spread((45.0, -45.0, 128)), 1024, 50.0, 1.73, noise=0.03),
        # 120 x 25 degrees, 45,200 points a scan (its manual); they follow no lines: a grid of as many here
        Sensor("livox_hap", _spread((12.5, -12.5, 112)), 400, 150.0, 1.73, azimuth=(-np.pi / 3, np.pi / 3)),
    )
}


class SensorSpec(Strict):
    """A LiDAR that is none of the presets: its lasers by number and field of view, or one by one."""

    beams: Annotated[int, Field(gt=1, le=MOST)] | None = None
    """Lasers, evenly spaced over `fov`."""
    fov: tuple[Degrees, Degrees] | None = None
    """Lowest and highest elevation, degrees above the horizon."""
    elevations: Annotated[tuple[Degrees, ...], Field(min_length=2, max_length=MOST)] | None = None
    """Of each laser, where they are not evenly spaced."""
    azimuth: tuple[Turned, Turned] | None = None
    """Of solid state: lowest and highest azimuth that it sees, degrees from ahead to the left; None: it turns. Its
    scans are looked at as a grid of azimuth and elevation, whatever lines they name."""
    columns: Annotated[int, Field(ge=8, le=1 << 14)] = 1024
    """Shots of a laser in a turn, or between the two azimuths; of the simulator."""
    max_range: Metres = 100.0
    """Beyond which nothing comes back."""
    height: Metres = 1.73
    """Above the ground."""
    noise: Annotated[float, Field(ge=0, le=10)] = 0.02
    """Standard deviation of a range in metres; of the simulator, as `dropout`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of returns that are lost."""

    @model_validator(mode="after")
    def _lasers(self) -> SensorSpec:
        if (self.elevations is None) == (self.beams is None) or (self.beams is None) != (self.fov is None):
            raise ValueError("give beams and fov, [lowest, highest] in degrees, or the elevations of all lasers")
        if self.fov is not None and self.fov[0] >= self.fov[1]:
            raise ValueError(f"fov is [lowest, highest] in degrees, got [{self.fov[0]:g}, {self.fov[1]:g}]")
        if self.azimuth is not None and self.azimuth[0] >= self.azimuth[1]:
            raise ValueError(f"azimuth is [lowest, highest] in degrees, got {[*self.azimuth]}")
        if self.elevations is not None and len(set(self.elevations)) < len(self.elevations):
            raise ValueError("elevations: two lasers look at the same angle")
        return self

    def sensor(self) -> Sensor:
        if self.fov is not None and self.beams is not None:
            degrees = np.linspace(self.fov[1], self.fov[0], self.beams)
        else:
            degrees = np.array(sorted(self.elevations or (), reverse=True))
        name = f"{len(degrees)} beams from {degrees[-1]:g} to {degrees[0]:g} degrees"
        lasers: np.ndarray = np.radians(degrees)
        around = AROUND
        if self.azimuth is not None and self.azimuth != (-180, 180):
            around = float(np.radians(self.azimuth[0])), float(np.radians(self.azimuth[1]))
            name += f", {self.azimuth[0]:g} to {self.azimuth[1]:g} across"
        return Sensor(name, lasers, self.columns, self.max_range, self.height, self.noise, self.dropout, around)


def sensor(given: str | SensorSpec, columns: int | None = None) -> Sensor:
    """The preset of that name, or the sensor that is described, with another number of columns where one is given.

    Raises:
        UserError: no such preset.
    """
    if isinstance(given, SensorSpec):
        found = given.sensor()
    elif given in SENSORS:
        found = SENSORS[given]
    else:
        raise UserError(
            f"sensor {given!r} is unknown{nearest(given, SENSORS)}: name one, or describe it by its lasers, "
            "{beams: 40, fov: [-25, 15]}"
        )
    return found if columns is None else found.with_columns(columns)


def told(text: str) -> str | SensorSpec:
    """A sensor as a command line says it: a preset's name, or a YAML mapping. Raises `UserError`."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return SensorSpec.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"--sensor {text}: no YAML mapping: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UserError(f"--sensor {text}: {explain(error)}") from error


def _known(given: str | SensorSpec) -> str | SensorSpec:
    try:
        sensor(given)
    except UserError as error:
        raise ValueError(str(error)) from None
    return given


#: As recipes and cards say it: a preset's name, or its lasers.
SensorField = Annotated[str | SensorSpec, AfterValidator(_known)]
