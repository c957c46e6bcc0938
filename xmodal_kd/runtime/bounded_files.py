"""Files of unknown origin are looked at before they are read: none may block, fill the memory or nest without end."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UserError

#: Bytes of a JSON file and of a text that people write; a run's own largest (a million scored items) have 100 MB.
MOST_JSON, MOST_TEXT = 1 << 28, 1 << 24
#: Levels of lists and mappings in one another; our own files have nine.
DEEPEST = 64
#: The largest number that a recipe may say, and the longest text.
LARGEST, LONGEST = 2**53, 20_000
#: What texts of 16 bits begin with, and what to do with them.
MARKS, UTF16 = (b"\xff\xfe", b"\xfe\xff"), ": it is one in UTF-16: save it as UTF-8"


def regular(path: Path, most: int | None = None) -> os.stat_result:
    """What the system knows of a file, links followed.

    Raises:
        UserError: it is missing, a folder, a pipe or a device (which would block or never end), or larger than `most`
            bytes.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise UserError(f"{path} is {kind}, not a file")
    if most is not None and found.st_size > most:
        raise UserError(f"{path} has {found.st_size:,} bytes, more than the {most:,} that such a file may have")
    return found


def read_bytes(path: Path, most: int) -> bytes:
    """All of a regular file of at most `most` bytes."""
    regular(path, most)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > most:  # it has grown since
        raise UserError(f"{path} has more than the {most:,} bytes that such a file may have")
    return content


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """A text in UTF-8."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read: not a text in UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
            f"{UTF16 if error.object[:2] in MARKS else ''}"
        ) from None


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins so only stands for one that Git LFS has not fetched."""
    return head.startswith(b"version https://git-lfs")


def parse_json(text: str | bytes, name: Path | str) -> Any:
    """JSON of at most `DEEPEST` levels, whose error names where it is from."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise UserError(f"{name} is nested too deeply: more than {DEEPEST} levels") from None
    except ValueError as error:  # of its grammar, of its encoding, of a number of thousands of digits
        raise UserError(f"{name} is not JSON: {' '.join(str(error).split())}") from None
    check_depth(found, name)
    return found


def check_depth(content: Any, name: Path | str) -> None:
    """Raises `UserError` where lists and mappings lie in one another by more than `DEEPEST` levels."""
    level = [content]
    for _ in range(DEEPEST + 1):
        below = (one for parent in level for one in (parent.values() if isinstance(parent, Mapping) else parent))
        level = [one for one in below if isinstance(one, Mapping | list)] if _holds(level) else []
        if not level:
            return
    raise UserError(f"{name} is nested too deeply: more than {DEEPEST} levels")


def sane(value: Any) -> Any:
    """`value` of a recipe or a card as it is.

    Raises `ValueError` for a number that no computer counts to, and for a text that no file could be called or no
    terminal could show.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) > LARGEST:
        raise ValueError(f"a number up to {LARGEST:.0e} is expected, got {value:.3e}")
    if isinstance(value, str):
        if "\0" in value or (not value.isprintable() and any(0xD800 <= ord(letter) < 0xE000 for letter in value)):
            raise ValueError(f"a text is expected, got one with characters that none has: {value[:40]!a}")
        if len(value) > LONGEST:
            raise ValueError(f"a text of at most {LONGEST:,} characters is expected, got {len(value):,}")
    return value


def _holds(level: list[Any]) -> bool:
    return bool(level) and isinstance(level[0], Mapping | list)


def inside(folder: Path, name: str) -> Path | None:
    """The regular file `name` of a folder received from others; None where it, or its target, lies elsewhere."""
    try:
        path, root = (folder / name).resolve(), folder.resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name with a zero byte, a ring of links
        return None


__all__ = ["check_depth", "inside", "is_pointer", "parse_json", "read_bytes", "read_text", "regular", "sane"]
