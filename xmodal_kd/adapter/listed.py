"""What of a data section can be said without building anything: its files, and the samples that it leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..runtime.errors import UserError
from .source import Source

T = TypeVar("T")


@dataclass(frozen=True)
class Listed:
    """A file that a sample stands on.

    Attributes:
        key: of the sample, as ``data.skip`` would name it.
        look: raises `UserError` for a file that is there but whose header is not what it should be; it is not asked
            again of a file of the same size and time.
        part: what of the file is looked at, where that is not the whole of it: a member of a zip.
    """

    key: str
    path: Path
    look: Callable[[Path], object]
    part: str = ""


@dataclass
class Skipped:
    """The samples that a data section leaves out, and which of them there were.

    >>> from tempfile import mkdtemp
    >>> list_ = Path(mkdtemp()) / "bad.txt"
    >>> _ = list_.write_text("b\\n")
    >>> skipped = Skipped.of(list_)
    >>> skipped.keep(["a", "b", "c"], str), skipped.found
    (['a', 'c'], ['b'])
    """

    keys: frozenset[str] = frozenset()
    found: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path | None) -> Skipped:
        """Raises `UserError` for a list that cannot be read."""
        if path is None:
            return cls()
        try:
            lines = path.expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(f"data.skip: {path}: {why}: give a file with the name of a sample on each line") from None
        return cls(frozenset(line for line in lines if line.strip()))

    def keep(self, items: Iterable[T], key: Callable[[T], str]) -> list[T]:
        """Those of `items` that are not left out."""
        kept = []
        for item in items:
            if self.keys and (name := key(item)) in self.keys:
                self.found.append(name)
            else:
                kept.append(item)
        return kept


class Few:
    """The first samples of a source in the place of all; what else it has is the source's own."""

    def __init__(self, inner: Source, count: int) -> None:
        self.inner, self.count = inner, min(count, len(inner))

    def __len__(self) -> int:
        return self.count

    def plan(self, epoch: int) -> list[list[int]]:
        batches = ([i for i in batch if i < self.count] for batch in self.inner.plan(epoch))
        return [batch for batch in batches if batch]

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def named(keys: Sequence[str], count: int = 10) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(keys) - count:,} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + more


__all__ = ["Few", "Listed", "Skipped", "named"]
