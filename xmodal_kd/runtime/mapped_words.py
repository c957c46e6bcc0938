"""Columns while they are made, of rows and of texts, on the disk and not in memory; and texts by number, mapped."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .checkpoint import disk_errors
from .mapped_columns import Keep

#: Bytes that are held before they are written.
HELD = 1 << 20


class Words(Sequence[str]):
    """The texts of a column of `Written`.

    Args:
        columns: it holds them as ``<name>`` and ``<name>_ends``.
        rows: those that are meant, in this order; None: all.
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]], name: str, rows: NDArray[Any] | None = None) -> None:
        self.columns, self.name, self.rows = columns, name, rows

    def __len__(self) -> int:
        return len(self.columns[f"{self.name}_ends"]) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        row = at % len(self) if self.rows is None else int(self.rows[at])
        ends = self.columns[f"{self.name}_ends"]
        start = int(ends[row - 1]) if row else 0
        return str(self.columns[self.name][start : int(ends[row])].tobytes().decode("utf-8", "surrogatepass"))

    def chosen(self, places: NDArray[Any]) -> Words:
        """Those at `places`."""
        return Words(self.columns, self.name, places if self.rows is None else self.rows[places])


def hashed(text: str) -> int:
    """64 bits by which a column finds a text."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Spool:
    """Bytes one behind the other in a nameless file."""

    def __init__(self) -> None:
        self._held, self._place = bytearray(), Path(tempfile.gettempdir())
        with disk_errors(self._place):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - what is mapped outlives it
        weakref.finalize(self, self._file.close)
        self.size = 0

    def append(self, content: bytes) -> None:
        self._held += content
        self.size += len(content)
        if len(self._held) >= HELD:
            self._flush()

    def array(self, dtype: Any) -> NDArray[Any]:
        """All of them, mapped."""
        self._flush()
        return np.memmap(self._file, dtype, "r") if self.size else np.empty(0, dtype)

    def _flush(self) -> None:
        with disk_errors(self._place):
            self._file.write(self._held)
            self._file.flush()
        self._held.clear()


class Written:
    """A column of texts while it is made.

    >>> written, held = Written(), {}
    >>> for text in ("ja", "", "nein"):
    ...     written.append(text)
    >>> written.keep("said", held.__setitem__)
    >>> list(Words(held, "said")), Words(held, "said", np.array([2]))[0]
    (['ja', '', 'nein'], 'nein')
    """

    def __init__(self) -> None:
        self._content, self._ends = Spool(), Spool()

    def append(self, text: str) -> None:
        self._content.append(text.encode("utf-8", "surrogatepass"))
        self._ends.append(self._content.size.to_bytes(8, "little"))

    def keep(self, name: str, keep: Keep) -> None:
        """Give the columns `name` and its ends away."""
        keep(name, self._content.array(np.uint8))
        keep(f"{name}_ends", self._ends.array("<u8"))


__all__ = ["Spool", "Words", "Written", "hashed"]
