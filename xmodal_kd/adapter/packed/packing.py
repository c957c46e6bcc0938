"""What a recipe's path holds packed: its files, its rows, and the columns that are made of these once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ...runtime.errors import UserError
from ...runtime.mapped_columns import Columns, Keep, columns_of
from ...runtime.progress import bar
from . import tables, tars
from .row import Row
from .shards import MEANT, by_split, is_pattern, shards

#: `sources` of a data section that are packed.
Kind = Literal["webdataset", "datasets"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Files from which on one may watch.
SHOW_PROGRESS = 20


@dataclass(frozen=True)
class Packing:
    """Samples packed in `files`.

    Attributes:
        classes: the names of the classes of each column of class numbers, of a table that says so.
    """

    kind: Kind
    files: Sequence[Path]
    folder: Path | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """All samples in order. Raises `UserError` for a broken file."""
        count = 0
        with bar("listing", len(self.files), quiet=len(self.files) < SHOW_PROGRESS) as shown:
            for number, file in enumerate(self.files):
                for row in self._of(file, count):
                    count += 1
                    yield row
                shown.update(number + 1, {})

    def _of(self, file: Path, count: int) -> Iterator[Row]:
        if self.kind == "webdataset":
            return tars.rows_of(file)
        assert self.folder is not None
        return tables.rows_of(file, tables.columns_of_kind(self.folder), count)

    def columns(self, how: str, build: Callable[[Keep], None]) -> Columns:
        """What `build` makes of the rows, found in the user's cache from the second time on.

        Args:
            how: it says all that the columns hang on beside the files.
        """
        salt = json.dumps([self.kind, how, {name: list(names) for name, names in self.classes.items()}])
        return columns_of(self.files, salt, build, by="times")


def kind_at(place: Path) -> Kind | None:
    """What a path that nobody said more of holds packed, if anything: a tar, a pattern or folder of tars, a table."""
    if place.is_dir():
        if tables.is_table(place) or (place / tables.SPLITS).is_file():
            return "datasets"
        return "webdataset" if any(place.glob("*.tar")) or any(place.glob("*/*.tar")) else None
    return "webdataset" if place.suffix == ".tar" or is_pattern(place) else None


def packings(kind: Kind, path: Path) -> dict[str, Packing]:
    """What lies at `path` by split. Raises `UserError` where no split is told apart."""
    if kind == "webdataset":
        parts = by_split(shards(path))
        if not parts:
            raise UserError(
                f"data.path: {path}: no shard says by its name, or its folder's, that it is of train, dev or test: "
                "name them train-000000.tar and so on"
            )
        return {split: Packing(kind, files) for split, files in parts.items()}
    place = path.expanduser()
    found = tables.split_tables(place) if place.is_dir() else None
    if found is None:
        raise UserError(f"data.path: {path}: not a DatasetDict that datasets has saved (no {tables.SPLITS})")
    named: dict[str, Packing] = {}
    for name, folder in found.items():
        if (split := MEANT.get(name)) is not None:
            named.setdefault(split, packing(kind, folder))
    return named


def packing(kind: Kind, path: Path, key: str = "data.path") -> Packing:
    """All that lies at `path`, of a `DatasetDict` all splits that have the kinds of columns of the first."""
    if kind == "webdataset":
        return Packing(kind, shards(path, key))
    place = path.expanduser()
    if not place.exists():
        raise UserError(f"{key}: {path} does not exist")
    return Packing(kind, tables.tables(place), place, tables.class_columns(place))


def refuse_twice(packed: Packing, keys: Sequence[str], hashes: np.ndarray, numbers: np.ndarray) -> None:
    """Raises `UserError` for a key that two samples have, of which the first pair is named with its files.

    Args:
        hashes: of the keys, 64 bits each.
        numbers: of the file that each sample is in.
    """
    order = np.argsort(hashes, kind="stable")
    alike = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    for at in alike:
        one, other = sorted((int(order[at]), int(order[at + 1])))
        if keys[one] == keys[other]:
            files = packed.files[int(numbers[one])], packed.files[int(numbers[other])]
            where = f"{files[0]} and {files[1]}" if files[0] != files[1] else f"{files[0]} twice"
            raise UserError(f"sample {keys[one]!r} is in {where}: give every sample a name of its own")


__all__ = ["KINDS", "Kind", "Packing", "kind_at", "packing", "packings", "refuse_twice"]
