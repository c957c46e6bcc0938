"""Every file that a run's samples stand on, looked at before it trains: there, not empty, its header sound.

What was sound is remembered by size and time, so that a second look is a stat alone.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..adapter.adapter import adapter_class
from ..adapter.listed import Listed, named
from ..recipe.recipe import Loaded
from ..runtime.errors import UserError
from ..runtime.mapped_columns import cache_folder
from .roles import scheme_of

#: Threads that look, and files that one of them takes at once.
THREADS, TAKEN = 16, 256
#: Files that are held at once, and that are remembered in order not to look at one twice.
AT_ONCE, REMEMBERED = 4096, 200_000
CREATE = "create table if not exists sound (path text, part text, size int, time int, primary key (path, part))"
#: Of a file in the memory: its path and the part that is looked at; and what was seen of it.
Key = tuple[str, str]
Known = dict[Key, tuple[int, int]]
Row = tuple[str, str, int, int]


@dataclass(frozen=True)
class Bad:
    """A file that will not do, and whose it is."""

    key: str
    path: Path
    why: str


@dataclass(frozen=True)
class Looked:
    """What was found of all files: how many there are, how many were opened now, and which will not do."""

    files: int
    opened: int
    bad: Sequence[Bad]

    def refuse(self) -> None:
        """Raises `UserError` for the bad files: the first by what is wrong with it, the others by name and number."""
        if not self.bad:
            return
        first, keys = self.bad[0], list(dict.fromkeys(bad.key for bad in self.bad))
        more = f" ({len(keys):,} samples cannot be read: {named(keys)})" if len(keys) > 1 else ""
        raise UserError(
            f"sample {first.key}: {first.why}{more}: mend it, or leave it out: check --bad FILE lists what data.skip "
            "leaves out"
        )


def look(listed: Iterable[Listed]) -> Looked:
    """Look at every file once, in threads; `Listed.look` is asked of those that are new or changed."""
    files, opened = 0, 0
    bad: list[Bad] = []
    seen: set[Key] = set()
    with _memory() as memory, ThreadPoolExecutor(THREADS) as pool:
        for some in _distinct(listed, seen):
            known = _read(memory, [path for path, _ in some]) if memory is not None else {}
            looked = pool.map(partial(_looked, known), _pieces(list(some.values())))
            results = [one for piece in looked for one in piece]
            fresh = [row for row in results if isinstance(row, tuple)]
            if memory is not None and fresh:
                _write(memory, fresh)
            wrong = [one for one in results if isinstance(one, Bad)]
            files, opened, bad = files + len(some), opened + len(fresh) + len(wrong), bad + wrong
    return Looked(files, opened, bad)


def _distinct(listed: Iterable[Listed], seen: set[Key]) -> Iterator[dict[Key, Listed]]:
    """Some files after another, by key, each once: a list of millions is never held. Of what was seen before as much
    is remembered as costs little; a file that comes again later than that is looked at again."""
    some: dict[Key, Listed] = {}
    for one in listed:
        key = _name(one), one.part
        if key in seen or key in some:
            continue
        some[key] = one
        if len(some) == AT_ONCE:
            yield some
            if len(seen) < REMEMBERED:
                seen |= some.keys()
            some = {}
    if some:
        yield some


def of_recipe(loaded: Loaded) -> Looked:
    """Of the recipe's data section, and of those of its scheme. Raises `UserError` where files cannot be listed."""
    kind, scheme = adapter_class(loaded.recipe.modality), scheme_of(loaded)
    sections = {} if scheme is None else scheme[0].sections(scheme[1])
    other = [loaded.validate(kind.Data, one, ("scheme", "params", key)) for key, one in sections.items()]
    data = [loaded.validate(kind.Data, loaded.recipe.data, ("data",)), *other]
    return look(listed for section in data for listed in kind.files(section))


def _name(one: Listed) -> str:
    return os.path.abspath(one.path)  # noqa: PTH100 - links are files of their own, and this is quick


def _pieces(listed: Sequence[Listed]) -> list[Sequence[Listed]]:
    size = max(1, min(TAKEN, len(listed) // THREADS + 1))
    return [listed[start : start + size] for start in range(0, len(listed), size)]


def _looked(known: Known, piece: Sequence[Listed]) -> list[Bad | Row | None]:
    return [_look(one, known) for one in piece]


def _look(one: Listed, known: Known) -> Bad | Row | None:
    """What is wrong with a file, or its line in the memory; None for one that is there already."""
    try:
        there = one.path.stat()
        if not there.st_size:
            return Bad(one.key, one.path, f"{one.path}: empty: it holds no bytes")
        key, seen = (_name(one), one.part), (there.st_size, there.st_mtime_ns)
        if known.get(key) == seen:
            return None
        one.look(one.path)
        return (*key, *seen)
    except FileNotFoundError:
        return Bad(one.key, one.path, f"{one.path}: no such file")
    except OSError as error:
        return Bad(one.key, one.path, f"{one.path}: not readable ({error.strerror})")
    except UserError as error:
        return Bad(one.key, one.path, str(error))


# ---------------------------------------------------------------- what was sound


@contextmanager
def _memory() -> Iterator[sqlite3.Connection | None]:
    """The user's, shared by all runs; None where there cannot be one, which costs time and nothing else."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        memory = sqlite3.connect(folder / "files.sqlite", timeout=2.0)
        memory.execute(CREATE)
    except (OSError, RuntimeError, sqlite3.Error):
        yield None
        return
    with closing(memory):
        yield memory


def _read(memory: sqlite3.Connection, paths: Sequence[str]) -> Known:
    """What is known of files."""
    asked = ",".join("?" * len(paths))
    try:
        rows = memory.execute(f"select path, part, size, time from sound where path in ({asked})", paths)
        return {(path, part): (size, time) for path, part, size, time in rows}
    except sqlite3.Error:
        return {}


def _write(memory: sqlite3.Connection, rows: Sequence[Row]) -> None:
    try:
        with memory:
            memory.executemany("insert or replace into sound values (?, ?, ?, ?)", rows)
    except sqlite3.Error:
        return


__all__ = ["Bad", "Looked", "look", "of_recipe"]
