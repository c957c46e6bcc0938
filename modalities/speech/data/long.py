"""Utterances whose list is not held: what orders and splits them is mapped, each is made when it is asked for."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from xmodal_kd.runtime.mapped_columns import Columns

from .manifests import Utterance

Rows = NDArray[np.int64]


class Long(Sequence[Utterance], ABC):
    """Those of `columns`: ``seconds`` (NaN: nothing says), ``texted``, ``speaker`` (a number of ``speakers``, which
    is JSON) and ``file``, a hash of its place.

    Args:
        rows: those that are meant, ascending; None: all.
    """

    #: Whether audio cannot change without the index being made anew.
    sealed = False

    def __init__(self, columns: Columns, rows: Rows | None = None) -> None:
        self.columns, self.rows = columns, rows

    def __len__(self) -> int:
        return len(self.columns["seconds"]) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Utterance: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Utterance]: ...
    def __getitem__(self, at: int | slice) -> Utterance | Sequence[Utterance]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return self._made(self._row(at))

    @abstractmethod
    def _made(self, row: int) -> Utterance:
        """That of a row of the columns."""

    @abstractmethod
    def _part(self, rows: Rows) -> Long:
        """Those of some rows of the columns."""

    @abstractmethod
    def _text(self, row: int) -> str | None: ...

    @abstractmethod
    def find(self, key: str) -> list[int]:
        """Where `key` is."""

    def _row(self, at: int) -> int:
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        return at if self.rows is None else int(self.rows[at])

    def column(self, name: str) -> NDArray[Any]:
        found = self.columns[name]
        return found if self.rows is None else found[self.rows]

    @cached_property
    def _named(self) -> list[str]:
        return list(json.loads(self.columns["speakers"].tobytes()))

    def speakers(self, without: Sequence[int] | Rows = ()) -> list[str]:
        """Whoever speaks, sorted, in all utterances but those at some places."""
        who, number = self.column("speaker"), len(self._named)
        left = np.bincount(who[np.asarray(without, np.int64)], minlength=number)
        return sorted(self._named[i] for i in np.flatnonzero(np.bincount(who, minlength=number) > left))

    def of_speakers(self, wanted: Sequence[str]) -> Long:
        numbers = [i for i, name in enumerate(self._named) if name in set(wanted)]
        return self.chosen(np.flatnonzero(np.isin(self.column("speaker"), numbers)))

    def chosen(self, places: Rows) -> Long:
        """Those at `places`, ascending."""
        return self._part(places if self.rows is None else self.rows[places])

    def texts(self) -> Iterator[str | None]:
        for at in range(len(self)):
            yield self._text(self._row(at))

    def remembered(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """As `Columns.remembered`, of these utterances."""
        which = "" if self.rows is None else blake2b(self.rows.tobytes(), digest_size=12).hexdigest()
        return self.columns.remembered(f"{which} {name}", make)


__all__ = ["Long", "Rows"]
