"""What a folder of scans holds: its layout, its sensor, its labels, and how it can be split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_kd.adapter.sketch import Noted
from xmodal_kd.runtime.errors import UserError

from .frame import Scan
from .measured_sensor import alike, grid, measured
from .readers import READERS, Reader
from .rings import BEAMS, rings_by_order
from .simulator.sensors import SENSORS, SensorSpec, sensor
from .suffixes import IN_FOLDERS

#: Layouts that share folders' names, the stricter one first.
ORDER = ("semantickitti", "kitti_raw", "kitti", "nuscenes")
#: The sensor of a layout whose scans do not tell their beams.
USUAL = {"semantickitti": "hdl64e", "kitti": "hdl64e", "kitti_raw": "hdl64e", "nuscenes": "nuscenes32"}
#: Splits, and which part of the frames is for each where they are cut by time.
SPLITS, SHARES = ("train", "dev", "test"), (0.7, 0.15, 0.15)
SEARCHED = 10_000
HELP = "docs/own_data.md#points-scans"


@dataclass(frozen=True)
class Scans:
    """Frames that can be learned from.

    Attributes:
        sources: the layout.
        sensor: a preset, or what was measured; None for simulated frames, which are of any.
        splits: of labelled frames, by split; else None.
        train: how many of the frames are for training.
        others: keys of the folder's frames without labels, as ``Folder.frames`` takes them.
        pictures: whether there are photographs.
        keys: of all frames, by which a folder of logits finds them.
    """

    sources: str
    path: Path | None
    sensor: str | SensorSpec | None
    frames: int
    why: str
    splits: dict[str, Noted] | None = None
    train: int = 0
    others: Any = None
    pictures: bool = True
    notes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


def scans(path: Path) -> Scans:
    """What `path` holds, which may be the name ``simulator``.

    Raises:
        UserError: it is not there, of no known layout, of a sensor that is not known, or cannot be split.
    """
    place = path.expanduser()
    if not place.exists():
        if str(path) == "simulator":
            return Scans("simulator", None, None, 0, "streets that are made on the fly, and need no files")
        raise UserError(f"--data {path}: no such folder: give scans, or simulator for streets made on the fly ({HELP})")
    if not place.is_dir():
        raise UserError(
            f"--data {path} is a file: a student segments it (xmodal-kd segment STUDENT {path}), but to learn from, "
            f"give a folder in a layout of {HELP}"
        )
    sources, reader = _reader(path, place)
    first = reader.frame(0)
    seen_by, why, notes = _sensor(path, sources, first.scan)
    splits, others = _splits(path, reader)
    train = 0 if splits is None else _count(reader, splits["train"].value)
    counted = f"{len(reader):,} frames in the layout of {sources}"
    return Scans(
        sources, path, seen_by, len(reader), f"{counted}; {why}", splits, train, others, bool(first.pictures),
        (*notes, *reader.warnings), tuple(reader.keys),
    )  # fmt: skip


def _reader(path: Path, place: Path) -> tuple[str, Reader]:
    """The reader whose layout the folder has."""
    refused: dict[str, UserError] = {}
    for name in ORDER:
        try:
            reader = READERS[name](place)
        except UserError as error:
            refused[name] = error
            continue
        if name == "semantickitti" and not reader.classes and _is_kitti(place):
            continue
        return name, reader
    said = [error for name, error in refused.items() if not _no_layout(name, error)]
    if said:
        raise said[0]
    raise UserError(_unknown(path, place))


def _is_kitti(place: Path) -> bool:
    """Whether folders of scans are those of the object benchmark."""
    parts = (place, place / "training", place / "testing")
    return any((part / kind).is_dir() for part in parts for kind in ("label_2", "image_2"))


def _no_layout(name: str, error: UserError) -> bool:
    """Whether a reader only says that the folder is none of its own."""
    told = {
        "semantickitti": "no SemanticKITTI data", "kitti_raw": "no KITTI raw drive", "kitti": "no KITTI object data",
        "nuscenes": "no nuScenes frame",
    }  # fmt: skip
    return told[name] in str(error)


def _unknown(path: Path, place: Path) -> str:
    inside = [part for part in sorted(place.iterdir()) if (part / "sequences").is_dir()]
    if inside:
        return f"--data {path}: name the folder that holds sequences/: --data {path / inside[0].name}"
    loose = [file for file in islice(place.rglob("*"), SEARCHED) if file.name.lower().endswith(IN_FOLDERS)]
    if loose:
        return (
            f"--data {path}: {len(loose)} files of scans, as {loose[0].relative_to(place)}, in no layout that is read "
            f"here: write sequences/00/velodyne/*.bin and, where there are labels, labels/*.label ({HELP})"
        )
    held = ", ".join(sorted(file.name for file in place.iterdir())[:5]) or "nothing"
    return f"--data {path}: no scans, it holds {held}: give a folder as in {HELP}, or simulator"


# ---------------------------------------------------------------- the sensor


def _sensor(path: Path, sources: str, scan: Scan) -> tuple[str | SensorSpec, str, list[str]]:
    """The preset that looks as a scan does, or else what the scan shows; what it was told by, and what is odd."""
    beams = scan.beams if scan.ring is not None else next((n for n in BEAMS if _turns(scan, n)), None)
    if beams is None and (seen := grid(scan)) is not None:
        assert seen.azimuth is not None and seen.fov is not None
        right, left = seen.azimuth
        told = f"of solid state, {right:.0f} to {left:.0f} degrees across and {seen.fov[0]:.0f} to {seen.fov[1]:.0f} up"
        return seen, f"{told}, by its first scan", [f"{path}: {told}: put its data sheet's numbers into data.sensor"]
    if beams is None:
        name = USUAL[sources]
        told = f"taken for {name}, the layout's own sensor"
        return name, told, [f"{path}: the beams of its scans cannot be counted: {told}; data.sensor says otherwise"]
    found = measured(scan, beams)
    lidar = sensor(found)
    low, high = np.degrees([lidar.elevations.min(), lidar.elevations.max()])
    told = f"{beams} beams from {low:.0f} to {high:.0f} degrees, by its first scan"
    for name in (USUAL[sources], *SENSORS):  # of several that fit, the layout's own
        if alike(SENSORS[name], lidar):
            return name, told, []
    return found, told, [f"{path}: {told}: put its data sheet's numbers into data.sensor"]


def _turns(scan: Scan, beams: int) -> bool:
    return rings_by_order(scan.xyz, beams) is not None


# ---------------------------------------------------------------- splits


def _splits(path: Path, reader: Reader) -> tuple[dict[str, Noted] | None, Any]:
    """Labelled frames by split, and the other frames."""
    known = [reader.labelled(i) for i in range(len(reader))]
    if not any(known):
        return None, {"first": 0, "last": len(reader)}
    if all(known) and len({_sequence(reader, i) for i in range(len(reader))}) < len(SPLITS):
        return dict(_by_time(path, len(reader))), None
    names = list(dict.fromkeys(_sequence(reader, i) for i, labelled in enumerate(known) if labelled))
    if len(names) < len(SPLITS):
        raise UserError(
            f"--data {path}: labels in {len(names)} of its sequences ({', '.join(names)}), others have none: move the "
            "labelled ones into a folder of their own, or give three labelled ones (train, dev, test)"
        )
    bare = sorted({_sequence(reader, i) for i, labelled in enumerate(known) if not labelled})
    parts = {"train": names[:-2], "dev": names[-2:-1], "test": names[-1:]}
    splits = {
        split: Noted(part, "whole sequences, so that no split sees another's street") for split, part in parts.items()
    }
    return splits, {"sequences": bare} if bare else None


def _by_time(path: Path, count: int) -> Iterator[tuple[str, Noted]]:
    if count < len(SPLITS):
        raise UserError(f"--data {path}: {count} labelled frame(s): at least 3 are needed, for train, dev and test")
    held = [max(1, round(share * count)) for share in SHARES[1:]]
    ends = [0, count - sum(held), count - held[1], count]
    for split, first, last in zip(SPLITS, ends, ends[1:], strict=False):
        yield split, Noted({"first": first, "last": last}, f"by time: {last - first} of {count} frames")


def _count(reader: Reader, frames: Any) -> int:
    """Frames of a range, or of a list of sequences."""
    if isinstance(frames, list):
        return sum(_sequence(reader, i) in frames for i in range(len(reader)))
    return int(frames["last"] - frames["first"])


def _sequence(reader: Reader, i: int) -> str:
    return reader.keys[i].rpartition("/")[0]


__all__ = ["HELP", "Scans", "scans"]
