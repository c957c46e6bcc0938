"""Arrays of an ``.npz`` that may come from anybody: plain numbers, as large as they say, and not beyond the memory."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from .allocation import room
from .bounded_files import regular
from .errors import UserError

#: Members of a zip, of which the list alone is held in memory.
MOST_MEMBERS = 5_000_000
#: Bytes of a member from which its size is held against what it takes in the zip, and how much smaller that may be: a
#: page of zeros deflates to a thousandth.
LARGE, RATIO = 1 << 24, 1200

#: What broken arrays make their reader say.
UNREADABLE = (
    OSError, ValueError, EOFError, zlib.error, RuntimeError, NotImplementedError, struct.error, SyntaxError, TypeError,
    OverflowError, MemoryError, RecursionError,
)  # fmt: skip


def check_zip(path: Path, opened: zipfile.ZipFile) -> None:
    """Raises `UserError` for a zip of too many members."""
    if len(opened.infolist()) > MOST_MEMBERS:
        raise UserError(f"{path} holds {len(opened.infolist()):,} files, more than {MOST_MEMBERS:,}")


def check_member(path: Path, info: zipfile.ZipInfo, most: int) -> None:
    """Raises `UserError` for a member that would unpack to more than `most` bytes, or to a thousandfold of itself."""
    if info.file_size > most:
        raise UserError(f"{path}: {info.filename} unpacks to {info.file_size:,} bytes, more than {most:,}")
    if info.file_size > LARGE and info.file_size > RATIO * max(1, info.compress_size):
        told = f"{info.compress_size:,} bytes that unpack to {info.file_size:,}"
        raise UserError(f"{path}: {info.filename}: {told}: not what people pack")


def read_npz(path: Path, names: Iterable[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file, or those of `names` that it holds. Pickled objects are refused: they could run code.

    Raises:
        UserError: it is no ``.npz`` of plain arrays, or what it holds does not fit into half of this machine's memory.
    """
    regular(path)
    wanted = None if names is None else set(names)
    found: dict[str, npt.NDArray[Any]] = {}
    left = room() // 2
    try:
        with zipfile.ZipFile(path) as file:
            check_zip(path, file)
            for info in file.infolist():
                name = info.filename.removesuffix(".npy")
                if wanted is not None and name not in wanted:
                    continue
                check_member(path, info, left)
                left -= info.file_size
                with file.open(info) as member:
                    found[name] = _array(member, info.file_size)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is not an .npz file (numpy.savez writes one), or a broken one: {_told(error)}"
        ) from error
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: plain arrays of numbers are expected ({_told(error)})") from error
    return found


def read_npy(path: Path) -> npt.NDArray[Any]:
    """The array of an ``.npy`` file. Raises `UserError` as `read_npz` does."""
    regular(path)
    if path.stat().st_size > room() // 2:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are more than the memory holds")
    try:
        with path.open("rb") as file:
            return _array(file, path.stat().st_size)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: a plain array of numbers is expected ({_told(error)})") from error


def _array(member: Any, size: int) -> npt.NDArray[Any]:
    """One array, once its header says no more than the member holds."""
    version = npy.read_magic(member)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = read(member)
    if dtype.hasobject:
        raise ValueError("pickled objects, which could run code")
    count = prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise ValueError(f"an array of shape {shape} in {size:,} bytes")
    content = member.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise ValueError("cut short")
    flat = np.frombuffer(bytearray(content), dtype=dtype, count=count)
    return flat.reshape(shape, order="F" if fortran else "C")


def names_in(path: Path) -> list[str]:
    """What a file holds, for messages."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()[:20]]
    except (OSError, zipfile.BadZipFile):
        return []


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


__all__ = ["check_member", "check_zip", "names_in", "read_npy", "read_npz"]
