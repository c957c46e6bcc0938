"""The frames of a split: simulated, recorded, or labelled ones joined by recorded ones without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from xmodal_kd.adapter.listed import Listed, Skipped
from xmodal_kd.runtime.bounded_cache import BoundedCache
from xmodal_kd.runtime.errors import UserError

from .classes import EIGHT, Classes
from .config import Folder, PointsData
from .frame import Frame
from .readers import READERS
from .readers.base import look
from .rings import OtherBeams, banded, find_rings
from .simulator.camera import CameraSpec
from .simulator.cast import key_of, simulate
from .simulator.sensors import SENSORS, Sensor
from .stored_logits import Answered, StoredLogits

#: Bytes of frames that `Kept` holds.
MEMORY = 1 << 29


class Frames(Protocol):
    """Moments by index, each with the sweeps before it."""

    @property
    def labelled(self) -> Sequence[int]:
        """Indexes of those with labels."""
        ...

    @property
    def named(self) -> Sequence[tuple[str, Path | None]]:
        """What messages call each, and which folder it is of."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> list[Frame]:
        """The newest frame first."""
        ...

    def tell(self, role: str, stored: StoredLogits) -> None:
        """From now on frames carry what `role`, a teacher that ran elsewhere, said."""
        ...

    def describe(self) -> dict[str, Any]: ...


def frames_of(data: PointsData, split: str) -> Frames:
    """The frames of a split of the recipe."""
    sweeps = max(view.sweeps for view in data.views)
    found: Frames
    if data.sources == "simulator":
        found = Simulated(data, split, sweeps)
    else:
        assert data.path is not None
        folder = Folder(sources=data.sources, path=data.path, frames=getattr(data, split))
        found = recorded = Recorded(
            folder, data.lidar, classes=data.taxonomy, sweeps=sweeps, pictures=data.needs_pictures,
            skipped=Skipped.of(data.skip), boxes=data.task == "detection",
        )  # fmt: skip
        recorded.check_labels(split)
        if split != "train" and not found.labelled:
            what = "boxes" if data.task == "detection" else "labels by point"
            raise UserError(f"{data.path}: {data.sources} has no {what}, so nothing can be measured on {split}")
    if split == "train" and data.unlabelled is not None:
        more = Recorded(
            data.unlabelled, data.lidar, classes=data.taxonomy, sweeps=sweeps, pictures=data.needs_pictures,
            skipped=Skipped.of(data.skip), beside=True,
        )  # fmt: skip
        return Joined(found, more)
    return found


class Simulated(Answered):
    """Moments of simulated worlds, each of a world of its own, or drives through some; the split is their family."""

    def __init__(self, data: PointsData, split: str, sweeps: int) -> None:
        super().__init__()
        self.split, self.sweeps, self.size = split, sweeps, data.scenes.frames(split)
        self.first, self.drive = (data.scenes.first, data.scenes.drive) if split == "train" else (0, 1)
        self.sensor = data.lidar.with_columns(max(view.columns for view in data.views))
        self.camera, self.cyclists = None, data.scenes.cyclists
        if data.needs_pictures:
            self.camera = CameraSpec(height=data.image[0], width=data.image[1])

    def __len__(self) -> int:
        return self.size

    @property
    def labelled(self) -> Sequence[int]:
        return range(self.size)

    @property
    def named(self) -> Sequence[tuple[str, Path | None]]:
        return [(key_of(self.split, *self._moment(index)), None) for index in range(self.size)]

    def _moment(self, index: int) -> tuple[int, int]:
        """A world, and how many tenths of a second before its last moment."""
        world, at = divmod(index, self.drive)
        return self.first + world, self.drive - 1 - at

    def __getitem__(self, index: int) -> list[Frame]:
        world, age = self._moment(index)
        newest, *older = simulate(
            self.split, world, self.sensor, camera=self.camera, sweeps=self.sweeps, cyclists=self.cyclists, first=age
        )
        return [self.carrying(newest), *older]

    def describe(self) -> dict[str, Any]:
        return {"sources": "simulator", "family": self.split, "sensor": self.sensor.name}


class Recorded(Answered):
    """Frames of a folder, in its order.

    Args:
        classes: what the labels of its points mean.
        skipped: frames that are left out, by key.
        beside: whether it stands beside the data's own folder, so that its keys need the folder's name.
        boxes: whether its labels are the boxes of things instead of classes of points.
    """

    def __init__(
        self, folder: Folder, sensor: Sensor, *, classes: Classes = EIGHT, sweeps: int = 1, pictures: bool = False,
        skipped: Skipped | None = None, beside: bool = False, boxes: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.folder, self.sweeps, self.pictures, self.boxes = folder, sweeps, pictures, boxes
        self.sensor = sensor
        self.reader = READERS[folder.sources](Path(folder.path), classes)
        every = self._chosen()
        self.beside, self.skipped = beside, skipped or Skipped()
        self.indexes = self.skipped.keep(every, self.key)
        if not self.indexes:
            raise UserError(f"{folder.path}: data.skip leaves out all {len(every)} frames from {every[0]}")

    def _chosen(self) -> Sequence[int]:
        """Indexes of the reader's frames that the folder's ``frames`` mean."""
        path, frames = self.folder.path, self.folder.frames
        if frames.sequences is not None:
            drives = [_drive(key) for key in self.reader.keys]
            if absent := [name for name in frames.sequences if name not in drives]:
                known = sorted(set(drives))
                raise UserError(f"{path}: no sequence {absent[0]!r} (there are {', '.join(known[:30]) or 'none'})")
            return [i for i, drive in enumerate(drives) if drive in frames.sequences]
        first, last = frames.first, frames.last
        if (last or first + 1) > len(self.reader):
            raise UserError(
                f"{path}: frames {first} to {'the end' if last is None else last} of {len(self.reader)}: "
                "first and last count from 0, last is not among them"
            )
        return range(first, len(self.reader) if last is None else last)

    def check_labels(self, split: str) -> None:
        """Raises `UserError` that names the first sequence or frame without labels, of a list of sequences."""
        if self.folder.frames.sequences is None:
            return
        for at in self.indexes:
            if not self.reader.labelled(at):
                raise UserError(
                    f"{self.folder.path}: sequence {_drive(self.reader.keys[at])!r} of data.{split} has no labels: "
                    "leave it out, or bring it as data.unlabelled"
                )
            if gone := next(
                (p for p in self.reader.files(at, False) if p.suffix == ".label" and not p.is_file()), None
            ):
                raise UserError(f"{gone}: no such file: the frame has no labels; name it in data.skip or bring it")

    def __len__(self) -> int:
        return len(self.indexes)

    @property
    def labelled(self) -> Sequence[int]:
        if self.boxes:
            return [i for i, at in enumerate(self.indexes) if self.reader.boxed(at)]
        return [i for i, at in enumerate(self.indexes) if self.reader.labelled(at)] if self.reader.classes else ()

    @property
    def named(self) -> Sequence[tuple[str, Path | None]]:
        return [(self.reader.keys[at], self.folder.path) for at in self.indexes]

    def key(self, at: int) -> str:
        """How ``data.skip`` names a frame of the reader."""
        name = self.reader.keys[at]
        return f"{self.folder.path}/{name}" if self.beside else name

    def files(self) -> Iterator[Listed]:
        """Of all frames, and of the sweeps before them."""
        for at in self.indexes:
            for path in self.reader.files(at, self.pictures):
                yield Listed(self.key(at), path, look)

    def __getitem__(self, index: int) -> list[Frame]:
        """The newest frame first; the first ones of a drive have fewer before them."""
        at = self.indexes[index]
        sweeps = [self.carrying(self._frame(at, self.pictures))]
        for back in range(at - 1, max(at - self.sweeps, -1), -1):
            if _drive(self.reader.keys[back]) != _drive(self.reader.keys[at]):
                break
            if self.key(back) in self.skipped.keys:
                continue
            sweeps.append(self._frame(back, pictures=False))
        return sweeps

    def _frame(self, at: int, pictures: bool) -> Frame:
        frame = self.reader.frame(at, pictures=pictures)
        if not self.sensor.turns:
            return replace(frame, scan=banded(frame.scan, self.sensor.beams, self.sensor))
        if frame.scan.ring is not None:
            return frame
        try:
            return replace(frame, scan=find_rings(frame.scan, self.sensor.beams))
        except OtherBeams as error:
            raise UserError(
                f"{self.folder.path}: {self.key(at)}: {_of_sensor(error.beams, self.sensor.beams)}"
            ) from error

    def describe(self) -> dict[str, Any]:
        return {
            "sources": self.folder.sources, "first": self.indexes[0], "last": self.indexes[-1],
            "skipped": len(self.skipped.found),
            **({"sequences": list(named)} if (named := self.folder.frames.sequences) is not None else {}),
            "warnings": list(self.reader.warnings),
        }  # fmt: skip


@dataclass(frozen=True)
class Sweeps:
    """A moment and the sweeps before it, the newest first."""

    frames: list[Frame]

    @property
    def nbytes(self) -> int:
        return sum(frame.nbytes for frame in self.frames)


class Kept:
    """Frames that are made once, as far as `MEMORY` goes: for looking at the same ones in several ways."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self._made: BoundedCache[Sweeps] = BoundedCache(MEMORY)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def named(self) -> Sequence[tuple[str, Path | None]]:
        return self.frames.named

    @property
    def labelled(self) -> Sequence[int]:
        return self.frames.labelled

    def tell(self, role: str, stored: StoredLogits) -> None:
        self.frames.tell(role, stored)
        self._made = BoundedCache(MEMORY)

    def __getitem__(self, index: int) -> list[Frame]:
        return self._made.get(index, lambda: Sweeps(self.frames[index])).frames

    def describe(self) -> dict[str, Any]:
        return self.frames.describe()


def _of_sensor(beams: int, taken: int) -> str:
    """What to do with recorded scans of another number of beams than the sensor that the recipe names."""
    name = next((name for name, sensor in SENSORS.items() if sensor.beams == beams), None)
    own = f"{{beams: {beams}, fov: [lowest, highest degrees]}}"
    advice = f"set data.sensor to {f'{name}, or to ' if name else ''}{own}"
    return f"a scan of {beams} beams, and data.sensor is one of {taken}: {advice}"


def _drive(key: str) -> str:
    """The part of a frame's key that it shares with the sweeps before it."""
    return key.rpartition("/")[0]


class Joined:
    """Labelled frames, and behind them others whose labels, if they have any, nobody looks at."""

    def __init__(self, labelled: Frames, others: Recorded) -> None:
        self.parts = labelled, others

    def __len__(self) -> int:
        return len(self.parts[0]) + self.parts[1].folder.repeat * len(self.parts[1])

    @property
    def named(self) -> Sequence[tuple[str, Path | None]]:
        return [*self.parts[0].named, *list(self.parts[1].named) * self.parts[1].folder.repeat]

    @cached_property
    def labelled(self) -> Sequence[int]:
        return self.parts[0].labelled

    def tell(self, role: str, stored: StoredLogits) -> None:
        for part in self.parts:
            part.tell(role, stored)

    def __getitem__(self, index: int) -> list[Frame]:
        known, others = self.parts
        return known[index] if index < len(known) else others[(index - len(known)) % len(others)]

    def describe(self) -> dict[str, Any]:
        return self.parts[0].describe() | {
            "unlabelled": self.parts[1].describe() | {"repeat": self.parts[1].folder.repeat}
        }


__all__ = ["Frames", "Joined", "Kept", "Recorded", "Simulated", "frames_of"]
