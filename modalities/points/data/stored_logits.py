"""Logits by point of a segmenter that ran elsewhere, and the frames that carry them: ``docs/own_logits.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.class_mapping import columns, map_classes
from xmodal_kd.teacher_cache.folder import CLASSES, INDEX, SignalFolder

from .frame import Frame


class StoredLogits:
    """A folder of logits by scan, a row a point in the order of the scan's points.

    Args:
        on_missing: what a scan without a file is: an ``error``, or one of which nothing is said (``skip``).
        classes: of the data. Where the folder names its own, they are matched by name.

    Raises:
        UserError: the folder is not there, or names too few of the classes.
    """

    def __init__(self, folder: Path, on_missing: str, classes: Sequence[str]) -> None:
        self.folder, self.on_missing, self.classes = folder, on_missing, tuple(classes)
        self.stored = SignalFolder(folder, "teacher.signals")
        self.stored.check_files()
        self.named = self.stored.classes()
        self.wanted = None
        if self.named is not None and self.named != self.classes:
            self.wanted = columns(classes, self.named, f"{folder / CLASSES}")

    def check(self, splits: Mapping[str, Sequence[tuple[str, Path | None]]]) -> None:
        """Raises `UserError` where logits of a frame are missing and should not be, where there are none to learn from,
        or where two folders call a frame the same, so that nobody knows whose the logits are.

        Args:
            splits: names and folders of the frames of each.
        """
        whose: dict[str, Path | None] = {}
        for split, named in splits.items():
            for key, path in named:
                if whose.setdefault(key, path) != path:
                    raise UserError(
                        f"{self.folder}: {key!r} is a frame of {whose[key]} and one of {path}: a folder of logits "
                        "finds frames by name: rename one"
                    )
            keys = dict(named)
            lacking = [key for key in keys if self.stored.path(key) is None]
            none = len(lacking) == len(keys)
            if lacking and (self.on_missing == "error" or (split == "train" and none)):
                raise UserError(self._missing(lacking[0], len(lacking) - 1, split, none))

    def _missing(self, key: str, more: int, split: str, none: bool) -> str:
        others = f"nor {more} other frames " if more else ""
        advice = "" if none else ", or say teacher.on_missing=skip"
        return (
            f"{self.folder}: no logits of {key!r} {others}of {split}: add {key}.npz (.npy, .safetensors), or name its "
            f"file in {INDEX}{advice}"
        )

    def of(self, key: str, points: int) -> Float32[np.ndarray, "points classes"] | None:
        """Of a frame of so many points, in the data's classes (-inf of what the folder does not know); None where
        nothing is stored and that is no error.

        Raises:
            UserError: they are missing; they are of another number of points or classes, not finite, or no logits.
        """
        if (logits := self.stored.logits(key)) is None:
            if self.on_missing == "error":
                raise UserError(self._missing(key, 0, "the data", none=False))
            return None
        path = self.stored.path(key)
        if logits.ndim != 2:
            raise UserError(f"{path}: logits of shape {logits.shape}: (points, classes) is expected")
        if len(logits) != points:
            raise UserError(
                f"{path}: logits of {len(logits)} points, and its scan {key!r} has {points}: a row for each is "
                "expected, in the order of the scan's points"
            )
        width = len(self.named or self.classes)
        if logits.shape[1] != width:
            whose = f"{CLASSES} names" if self.named is not None else "the data have"
            advice = "" if self.named is not None else f": name the columns in {CLASSES}"
            raise UserError(f"{path}: logits of {logits.shape[1]} classes, and {whose} {width}{advice}")
        if self.wanted is None:
            return logits
        found: np.ndarray = map_classes(torch.from_numpy(logits), self.wanted).numpy()
        return found


class Answered:
    """Frames that may carry what teachers that ran elsewhere said of their points."""

    def __init__(self) -> None:
        self._said: dict[str, StoredLogits] = {}

    def tell(self, role: str, stored: StoredLogits) -> None:
        """From now on frames carry what `role` said."""
        self._said[role] = stored

    def carrying(self, frame: Frame) -> Frame:
        """The frame with what is stored of it."""
        said = {role: stored.of(frame.key, len(frame.scan)) for role, stored in self._said.items()}
        known = {role: rows for role, rows in said.items() if rows is not None}
        return replace(frame, scan=replace(frame.scan, said=known)) if known else frame


__all__ = ["Answered", "StoredLogits"]
