"""A segmenter that ran elsewhere, by the folder of its logits: of which classes they are, and of which scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.teacher_cache.folder import CLASSES as NAMED
from xmodal_kd.teacher_cache.folder import INDEX, SignalFolder

from ..data.classes import SHIPPED, read_classes
from ..data.frame import CLASSES

EIGHT = "eight"


@dataclass(frozen=True)
class Stored:
    """What a folder of logits says of the scans that it was written for.

    Attributes:
        classes: what the data are to tell apart: a shipped map, or None for the eight.
        why: how that was told.
        lacking: keys of scans without logits.
    """

    classes: str | None
    why: str
    lacking: Sequence[str]


def stored(folder: Path, keys: Sequence[str]) -> Stored:
    """The logits of the scans that go by `keys`.

    Raises:
        UserError: the folder is damaged, holds none of the scans, or is of classes that no shipped map has.
    """
    signals = SignalFolder(folder, "--teacher")
    signals.check_files()
    lacking = [key for key in keys if signals.path(key) is None]
    if len(lacking) == len(keys):
        none = f"none of the {len(keys):,} scans, whose keys are as in {keys[0]!r}" if keys else "no simulated scan"
        raise UserError(
            f"{folder}: holds logits of {none}: give --data the folder of the scans that it was written for, and "
            f"name each file KEY.npz or KEY.npy, or list them in {INDEX} (docs/own_logits.md)"
        )
    known: Mapping[str, Sequence[str]] = {EIGHT: CLASSES} | {
        name: read_classes(path).names for name, path in SHIPPED.items()
    }
    if (named := signals.classes()) is not None:
        shared = {name: len(set(names) & set(named)) / len(names) for name, names in known.items()}
        best = max(shared, key=shared.__getitem__)
        if shared[best] <= 0.5:
            raise UserError(
                f"{folder / NAMED}: names {', '.join(named[:6])}{' ...' if len(named) > 6 else ''}, and no map that "
                f"comes along ({', '.join(known)}) has most of them: leave --teacher out, write data.classes into the "
                "recipe and name the folder there as teacher.signals (docs/own_data.md)"
            )
        return Stored(None if best == EIGHT else best, f"{folder / NAMED} names them", lacking)
    without = set(lacking)
    width = _width(signals, next(key for key in keys if key not in without))
    best = next((name for name, names in known.items() if len(names) == width), "")
    if not best:
        raise UserError(
            f"{folder}: logits of {width} classes, which no map that comes along has: name the columns in {NAMED}"
        )
    return Stored(None if best == EIGHT else best, f"{folder}: {width} columns, taken for them in their order", lacking)


def _width(signals: SignalFolder, key: str) -> int:
    """Columns of a scan's logits. Raises `UserError` where they are none by point."""
    logits = signals.logits(key)
    if logits is None or logits.ndim != 2:
        shape = None if logits is None else logits.shape
        raise UserError(f"{signals.path(key)}: logits of shape {shape}: (points, classes) is expected")
    return int(logits.shape[1])


__all__ = ["Stored", "stored"]
