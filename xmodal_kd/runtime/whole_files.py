"""Files that are whole or not there, and JSON; without torch, so that what only reads a run folder starts at once."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from .bounded_files import MOST_JSON, parse_json, read_bytes
from .errors import RunError, UserError
from .leftovers import temporary


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk, a size limit or a missing permission becomes one line that names the file."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        what = "the disk is full (or a file-size limit is hit)" if full else (error.strerror or str(error))
        advice = ": free some space, and call it again (a run with --resume)" if full else ""
        raise UserError(f"cannot write {path}: {what}; what was complete before is untouched{advice}") from error


def writable(folder: Path, key: str) -> None:
    """Raises `UserError` where `folder`, or the folders above it that are not there yet, cannot be written to.

    Nothing is left behind.
    """
    place = folder.expanduser().absolute()
    try:
        while not place.exists():
            if place.is_symlink():
                raise UserError(f"{key}: {folder} cannot be written: {place} links to nothing: choose another {key}")
            place = place.parent
        if not place.is_dir():
            raise UserError(f"{key}: {folder} cannot be written: {place} is no folder: choose another {key}")
        with TemporaryFile(dir=place, prefix=".rehearsal-") as file:
            file.write(b"\0")
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UserError(f"{key}: {folder} cannot be written: {why} in {place}: choose another {key}") from error


def write_bytes(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        lasting: on the disk before it returns, so that a power cut takes nothing of it.
    """
    half = temporary(path)
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with half.open("wb") as file:
                file.write(content)
                if lasting:
                    file.flush()
                    os.fsync(file.fileno())
            half.replace(path)
            if lasting:
                sync_folder(path.parent)
        finally:
            half.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """A rename is safe from a power cut once the folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """JSON, whole or not at all. Raises `RunError` for NaN and infinity, which JSON does not have."""
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except ValueError as error:
        raise RunError(f"{path}: a value of it is NaN or infinite ({error})") from error
    write_bytes(path, f"{text}\n".encode())


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """Raises `UserError` for what is missing, no file, too large or nested too deeply, and for what is not JSON."""
    return parse_json(read_bytes(path, most), path)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds keys and values."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON object belongs here, not {type(found).__name__}")
    return found


def damaged(path: Path, error: BaseException) -> UserError:
    """What to say of a file whose content is not of the types that it should be of."""
    told = " ".join(str(error).split())[:120]
    return UserError(f"{path} is damaged, or of another version ({type(error).__name__}: {told})")


__all__ = [
    "damaged",
    "disk_errors",
    "read_json",
    "read_object",
    "sync_folder",
    "writable",
    "write_bytes",
    "write_json",
]
