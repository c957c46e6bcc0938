"""The samples of uncompressed tars, by WebDataset's names: members with one name and several endings lie together."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ...runtime.errors import UserError
from .member import Member
from .row import Row
from .shards import check_plain

#: A key goes to the first point of the last part of a name.
NAME = re.compile(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", re.DOTALL)
BLOCK = 512


def rows_of(shard: Path) -> Iterator[Row]:
    """The samples of a tar, in its order, each with its members by ending (``.flac``, in lower case).

    Hidden files, those without an ending, and WebDataset's own (``__..__``) are passed over.

    Raises:
        UserError: no tar, or one that is cut or damaged; members of one name twice, or not side by side; sparse ones.
    """
    seen: set[str] = set()
    row: Row | None = None
    for member in _members(shard):
        parts = NAME.fullmatch(member.name)
        if parts is None or any(part.startswith("__") for part in member.name.split("/")):
            continue
        key, ending = parts[1].removeprefix("./"), f".{parts[2].lower()}"
        if row is None or row.key != key:
            if row is not None:
                yield row
            if key in seen:
                raise UserError(
                    f"{member}: sample {key!r} is in this shard already: the members of a sample lie side by side, and "
                    "no two samples have one name"
                )
            seen.add(key)
            row = Row(key, shard, {})
        if ending in row.members:
            raise UserError(f"{member}: sample {key!r} has two members that end in {ending}")
        row.members[ending] = member
    if row is not None:
        yield row


def _members(shard: Path) -> Iterator[Member]:
    try:
        check_plain(shard)
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size = os.fstat(file.fileno()).st_size
            while (one := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined] # it would hold all of them
                if one.issparse():
                    raise UserError(f"{shard}: {one.name}: a sparse member, with holes: pack it as a whole file")
                if one.isreg():
                    if one.offset_data + one.size > size:
                        raise UserError(f"{shard}: {one.name}: the tar is cut: it ends within this member")
                    yield Member(shard, one.name, one.offset_data, one.size)
            file.seek(tar.offset)
            if file.read(BLOCK).strip(b"\0") or size < tar.offset + BLOCK:
                raise UserError(
                    f"{shard}: a broken tar: behind byte {tar.offset:,} is neither a member nor its end: pack it anew"
                )
    except tarfile.TarError as error:
        raise UserError(f"{shard}: not a tar, or a broken one ({' '.join(str(error).split())[:120]})") from error
    except OSError as error:
        raise UserError(f"{shard}: cannot be read: {error.strerror or error}") from error


__all__ = ["rows_of"]
