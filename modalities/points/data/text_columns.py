"""Points as lines of text, parted by comma, semicolon, tab or blank, with names of the columns in a first line or none.

CloudCompare, PCL and the programs of scanners export them so; nobody says how, so the first lines tell.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xmodal_kd.runtime.allocation import room
from xmodal_kd.runtime.errors import UserError

from .column_units import intensity_at

#: Files that begin with a line that counts their points, and what their columns are by their number.
COUNTED = ".pts"
LEICA = {4: 3, 7: 3}
#: What their intensities are at least and at most.
LOWEST, HIGHEST = -2048, 2047
#: Bytes of text that a number takes at least, with what parts it from the next; and bytes of the number.
LEAST, NUMBER = 2, 8
#: What parts columns, the first that a line holds; else blanks.
PARTS = (",", ";", "\t")
#: Lines of notes begin so, but for CloudCompare's names.
NOTE = ("#", "//")


def read_text(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Columns by name, lower case and without units; of a file without names x, y, z and, of four or five, intensity.

    Of a ``.pts``, Leica's, x, y, z and, of four or seven, intensity; its colours are left out.

    Raises:
        UserError: it names the file, and the line that is no row of numbers; or the file is larger than the memory.
    """
    if path.stat().st_size * NUMBER // LEAST > room() // 2:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes of text are more than the memory holds: cut it")
    try:
        with path.open(encoding="utf-8-sig") as file:
            skipped, names, first = _head(file.readline, path)
        part = next((part for part in PARTS if part in first), None)
        table = np.loadtxt(path, delimiter=part, skiprows=skipped, comments=list(NOTE), ndmin=2, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not rows of numbers ({' '.join(str(error).split())})") from error
    if names is None:
        return _unnamed(table, path)
    if len(names) > table.shape[1]:
        raise UserError(f"{path}: its first line names {len(names)} columns, its rows have {table.shape[1]}")
    return {name: table[:, at] for at, name in enumerate(names)}


def _unnamed(table: npt.NDArray[np.float64], path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Columns that no line names."""
    found = {name: table[:, at] for at, name in enumerate("xyz"[: table.shape[1]])}
    counted = path.suffix.lower() == COUNTED
    at = LEICA.get(table.shape[1]) if counted else intensity_at(table.shape[1])
    if at is None:
        return found
    column = table[:, at]
    if counted and column.min() < 0:
        column = (column - LOWEST) / (HIGHEST - LOWEST)
    return {**found, "intensity": column}


def _head(readline, path: Path) -> tuple[int, list[str] | None, str]:  # type: ignore[no-untyped-def]
    """Lines before the first row of numbers, the names in the last of them, and that row."""
    names = None
    for count in range(1000):
        line = readline()
        if not line:
            break
        words = _words(line)
        if not words:
            continue
        if line.startswith("#") and names is None and not _named(words):
            continue
        if count == 0 and len(words) == 1 and path.suffix.lower() == COUNTED and words[0].isdecimal():
            continue
        if _numbers(words):
            return count, names, line
        if names is not None:
            raise UserError(f"{path}: line {count + 1} is neither names nor numbers: {line.strip()[:60]!r}")
        names = [re.sub(r"[\[(].*", "", word).strip().lower() for word in words]
    raise UserError(f"{path}: it holds no row of numbers")


def _words(line: str) -> list[str]:
    line = line.strip().lstrip("#/").strip()
    part = next((part for part in PARTS if part in line), None)
    return [word.strip().strip("\"'") for word in line.split(part)] if line else []


def _numbers(words: list[str]) -> bool:
    try:
        [float(word) for word in words]
    except ValueError:
        return False
    return True


def _named(words: list[str]) -> bool:
    """Whether a note is the names of the columns."""
    return {"x", "y", "z"} <= {word.lower() for word in words}


__all__ = ["read_text"]
