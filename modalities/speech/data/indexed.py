"""Long manifests by an index: what orders and splits utterances is mapped, a line is read when it is wanted."""

from __future__ import annotations

import heapq
import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_kd.runtime.checkpoint import disk_errors
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.mapped_columns import Columns, columns_of
from xmodal_kd.runtime.mapped_words import hashed

from .long import Long, Rows
from .manifests import Utterance, as_record, overlap, place_of, read_manifest, taken_by

#: Bytes from which on a manifest has an index; below, its lines are held.
LARGE = 1 << 23
#: Bytes of a line at most, and lines that are sorted at once in memory.
LONGEST_LINE, AT_ONCE = 1 << 24, 1 << 14
ROW = np.dtype([
    ("start", "u8"), ("size", "u4"), ("number", "u4"), ("seconds", "f8"), ("offset", "f8"), ("speaker", "u4"),
    ("texted", "?"), ("file", "u8"),
])  # fmt: skip


class Indexed(Long):
    """The utterances of a manifest, sorted as `read_manifest` sorts them; a line is read when it is wanted."""

    def __init__(self, file: Path, columns: Columns, rows: Rows | None = None) -> None:
        super().__init__(columns, rows)
        self.file = file
        self._opened: int | None = None

    def __reduce__(self) -> Any:
        return Indexed, (self.file, self.columns, self.rows)

    def _made(self, row: int) -> Utterance:
        return as_record(self.file, int(self.columns["number"][row]), self._line(row))

    def _part(self, rows: Rows) -> Indexed:
        return Indexed(self.file, self.columns, rows)

    def _line(self, row: int) -> str:
        """Raises `UserError` where the file is no longer what was listed."""
        if self._opened is None:
            self._opened = os.open(self.file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._opened)
        size = int(self.columns["size"][row])
        found = os.pread(self._opened, size, int(self.columns["start"][row]))
        try:
            if len(found) == size:
                return found.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError:
            pass
        raise UserError(f"{self.file}: it was changed while it was in use: start again")

    def _text(self, row: int) -> str | None:
        text = json.loads(self._line(row)).get("text")
        return None if text is None else str(text)

    def find(self, key: str) -> list[int]:
        """A segment's offset is part of its key."""
        name, at, number = key.rpartition("@")
        tried = {(key, 0.0)} | ({(name, float(number))} if at and _is_number(number) else set())
        found = []
        for place in tried:
            low, high = 0, len(self)
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if place_of(self[middle]) < place else (low, middle)
            while low < len(self) and place_of(self[low])[0] == place[0]:
                found += [low] if self[low].key == key else []
                low += 1
        return sorted(set(found))


def shared_audio(listed: Sequence[Utterance], others: Sequence[Utterance]) -> Utterance | None:
    """The first of `others` that holds audio which one of `listed` has."""
    if not isinstance(listed, Long) and not isinstance(others, Long):
        return overlap(taken_by(listed), others)
    mine, theirs = _files(listed), _files(others)
    few, many = (mine, theirs) if len(mine) < len(theirs) else (theirs, mine)
    both = np.unique(many[_among(many, np.unique(few))])
    ours = [listed[int(at)] for at in np.flatnonzero(_among(mine, both))]
    return overlap(taken_by(ours), (others[int(at)] for at in np.flatnonzero(_among(theirs, both))))


def _files(listed: Sequence[Utterance]) -> NDArray[np.uint64]:
    if isinstance(listed, Long):
        return listed.column("file")
    return np.array([hashed(one.file) for one in listed], np.uint64)


def _among(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of `values` are in `known`, which is sorted; in pieces, as it is of the memory."""
    found = np.zeros(len(values), np.bool_)
    for start in range(0, len(values) if len(known) else 0, AT_ONCE):
        part = values[start : start + AT_ONCE]
        at = np.minimum(np.searchsorted(known, part), len(known) - 1)
        found[start : start + AT_ONCE] = known[at] == part
    return found


def open_manifest(file: Path) -> Sequence[Utterance]:
    """`read_manifest`, of a large file by an index that is made once and kept in the user's cache.

    Raises `UserError` as it does.
    """
    if not file.is_file() or file.stat().st_size < LARGE:
        return read_manifest(file)
    salt = json.dumps([os.path.abspath(file.parent), os.path.expanduser("~")])  # noqa: PTH100, PTH111
    return Indexed(file, columns_of(file, salt, lambda keep: _build(file, keep)))


def is_large(files: Sequence[Path]) -> bool:
    """Whether lists are so large that what they list is not held."""
    return bool(files) and sum(file.stat().st_size for file in files) >= LARGE


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


# ---------------------------------------------------------------- making it


def _build(file: Path, keep: Callable[[str, NDArray[Any]], None]) -> None:
    """Lines are passed over once; what is known of each lies on the disk until it is sorted."""
    with tempfile.TemporaryDirectory() as place:
        folder, speakers, runs = Path(place), dict[str, int](), list[Path]()
        with disk_errors(folder), (folder / "rows").open("wb") as out:
            for run in _in_runs(_utterances(file)):
                out.write(np.array([_as_row(one, speakers) for one in run], dtype=ROW).tobytes())
                runs.append(folder / f"run-{len(runs)}")
                _spill(runs[-1], run, AT_ONCE * (len(runs) - 1))
        rows: Any = np.memmap(folder / "rows", ROW, "r") if runs else np.empty(0, ROW)
        _refuse_twice(file, rows)
        order = _merged(runs)
        for name in ROW.names or ():
            keep(name, rows[name][order])
        keep("speakers", np.frombuffer(json.dumps(list(speakers)).encode(), np.uint8))


def _spill(path: Path, run: Sequence[Any], first: int) -> None:
    """Keys and rows of a part of the lines, sorted."""
    places = sorted((*place_of(one), first + i) for i, (one, *_) in enumerate(run))
    with path.open("w", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(place)}\n" for place in places)


def _merged(runs: Sequence[Path]) -> Rows:
    with ExitStack() as stack:
        files = [stack.enter_context(path.open(encoding="utf-8")) for path in runs]
        merged = heapq.merge(*(map(json.loads, lines) for lines in files))
        return np.fromiter((row for _, _, row in merged), np.int64)


def _utterances(file: Path) -> Iterator[tuple[Utterance, int, int, int]]:
    """Each line's utterance, number, first byte and bytes."""
    start = 0
    with file.open("rb") as lines:
        for number in range(1, 1 << 62):
            if not (raw := lines.readline(LONGEST_LINE)):
                return
            if len(raw) == LONGEST_LINE:
                raise UserError(f"{file} line {number}: it has more than {LONGEST_LINE:,} bytes")
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{file}: not readable as UTF-8 text (line {number}: {error.reason})") from error
            line = line.removeprefix("\ufeff") if number == 1 else line
            if line.strip():
                yield as_record(file, number, line), number, start, len(raw)
            start += len(raw)


def _in_runs(found: Iterator[Any]) -> Iterator[list[Any]]:
    run = []
    for one in found:
        run.append(one)
        if len(run) == AT_ONCE:
            yield run
            run = []
    if run:
        yield run


def _as_row(line: tuple[Utterance, int, int, int], speakers: dict[str, int]) -> tuple[Any, ...]:
    one, number, start, size = line
    seconds, offset = (np.nan if value is None else value for value in (one.duration, one.offset))
    speaker = speakers.setdefault(one.speaker, len(speakers))
    return start, size, number, seconds, offset, speaker, one.text is not None, hashed(one.file)


def _refuse_twice(file: Path, rows: Any) -> None:
    """Raises `UserError` for a recording, or segment of one, on two lines; the first such line is named."""
    order = np.lexsort((rows["offset"], rows["file"]))
    files, offsets = rows["file"][order], rows["offset"][order]
    alike = (files[1:] == files[:-1]) & (
        (offsets[1:] == offsets[:-1]) | (np.isnan(offsets[1:]) & np.isnan(offsets[:-1]))
    )
    if not alike.any():
        return
    first: dict[tuple[str, float | None], int] = {}
    for row in np.sort(np.unique([order[:-1][alike], order[1:][alike]])):
        number, start, size = (int(rows[name][row]) for name in ("number", "start", "size"))
        with file.open("rb") as lines:
            lines.seek(start)
            one = as_record(file, number, lines.read(size).decode().removeprefix("\ufeff"))
        if first.setdefault((one.file, one.offset), number) != number:
            there = first[one.file, one.offset]
            raise UserError(f"{file} line {number}: {one.key!r} is on line {there} already")


__all__ = ["Indexed", "is_large", "open_manifest", "shared_audio"]
