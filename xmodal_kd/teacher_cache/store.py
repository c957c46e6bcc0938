"""Entries on disk: an LMDB environment for each rank that writes, all of them open in every process that reads.

LMDB commits whole transactions or nothing, so a process that is killed leaves what it had committed, and the next one
goes on from there. Not for network file systems, which do not keep LMDB's promises.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import lmdb

from ..runtime.bounded_files import regular
from ..runtime.errors import UserError
from ..runtime.leftovers import clear

#: An environment's first size; it grows by doubling. Files are sparse: what is not used costs nothing.
FIRST_SIZE = 1 << 28
#: An environment's file, as LMDB calls it.
DATA = "data.mdb"
#: Processes that read at once.
READERS = 1024
#: What an environment has on the disk once LMDB has laid it out; a kill may leave less.
_LAID_OUT = 8192
#: What LMDB says where there is no room.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EFBIG), os.strerror(errno.EDQUOT))
ANEW = "delete the cache, which is then filled anew"
#: Bytes of an entry's checksum, which stands before it.
SEAL = 4
#: Of LMDB's two first pages: head, magic, version, address, size of the map; two tables of 48 bytes each, of which the
#: first begins with the size of a page; the last page in use, the transaction.
_META = struct.Struct("<16xII8x8xI44x48xQQ")
_MAGIC = 0xBEEFC0DE


class _Open(NamedTuple):
    process: int
    inode: int
    environment: lmdb.Environment
    writes: bool


#: What this process has open, by folder: LMDB opens an environment once a process, and never takes it through a fork.
_OPEN: dict[Path, _Open] = {}


class Store:
    """Bytes by key in the environments of a folder.

    Args:
        rank: whose environment this process writes; None for none.
    """

    def __init__(self, folder: Path, rank: int | None = None) -> None:
        self.folder, self.rank = folder, rank
        self._paths: list[Path] | None = None

    # ---------------------------------------------------------------- reading

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where no environment has it."""
        found: list[bytes | None] = [None] * len(keys)
        for environment in self._environments():
            with self._begin(environment) as transaction:
                for i, key in enumerate(keys):
                    if found[i] is None and (value := transaction.get(key)) is not None:
                        found[i] = self._opened(key, bytes(value))
            if None not in found:
                break
        return found

    def _opened(self, key: bytes, sealed: bytes) -> bytes:
        """An entry without its checksum. Raises `UserError` where it is not what was written."""
        value = sealed[SEAL:]
        if sealed[:SEAL] != _seal(key, value):
            raise UserError(f"cache {self.folder}: an entry of it is damaged (its checksum differs): {ANEW}")
        return value

    def entries(self) -> int:
        return sum(environment.stat()["entries"] for environment in self._environments())

    def bytes_on_disk(self) -> int:
        return sum(512 * path.stat().st_blocks for path in self.folder.glob("rank-*/data.mdb"))

    def _begin(self, environment: lmdb.Environment) -> lmdb.Transaction:
        try:
            return environment.begin()
        except lmdb.MapResizedError:  # another process has made it larger
            environment.set_mapsize(0)
            return environment.begin()

    def _environments(self) -> list[lmdb.Environment]:
        """All there were when this store was first used, the one that it writes before the others."""
        own = None if self.rank is None else self.folder / f"rank-{self.rank}"
        with self._errors():
            if self._paths is None:
                _forget_deleted()
                there = [path for path in sorted(self.folder.glob("rank-*")) if path != own and _laid_out(path)]
                self._paths = [own, *there] if own is not None else there
            return [_environment(path, writes=path == own) for path in self._paths]

    # ---------------------------------------------------------------- writing

    def put(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Write all items or, if the process dies, none. On return they are on the disk."""
        items = [(key, _seal(key, value) + value) for key, value in items]
        own = self._environments()[0]
        with self._errors():
            while True:
                try:
                    with own.begin(write=True) as transaction:
                        for key, value in items:
                            transaction.put(key, value)
                    return
                except lmdb.MapFullError:
                    own.set_mapsize(2 * own.info()["map_size"])
                except lmdb.MapResizedError:
                    own.set_mapsize(0)

    def close(self) -> None:
        """Let go of the environments; whatever uses them next opens them again."""
        for path in self._paths or []:
            _close(path)
        self._paths = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            text = " ".join(str(error).split())
            full = ": the disk is full (or a file-size limit is hit)" if any(word in text for word in _FULL) else ""
            raise UserError(f"cache {self.folder}: {text}{full}; what was committed before is untouched") from error


def _seal(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key)).to_bytes(SEAL, "little")


def _check_size(data: Path) -> None:
    """A file that is shorter than it says would end the process at the first page that is not there.

    Raises:
        UserError: it is no LMDB environment, or cut short.
    """
    size = regular(data).st_size
    if size < _LAID_OUT:  # a kill before it was laid out: LMDB does that anew
        return
    with data.open("rb") as file:
        first = file.read(_META.size)
        page = _META.unpack(first)[2] if len(first) == _META.size else 0
        if not 512 <= page <= 1 << 16:
            raise UserError(f"cache {data.parent.parent}: {data} is damaged: {ANEW}")
        file.seek(page)
        metas = [_META.unpack(one) for one in (first, file.read(_META.size)) if len(one) == _META.size]
    sound = [meta for meta in metas if meta[0] == _MAGIC]
    if not sound:
        raise UserError(f"cache {data.parent.parent}: {data} is damaged: {ANEW}")
    last = max(sound, key=lambda meta: meta[4])[3]
    if (last + 1) * page > size:
        raise UserError(
            f"cache {data.parent.parent}: {data} is cut short: {size:,} bytes of {(last + 1) * page:,}: {ANEW}"
        )


def _environment(path: Path, writes: bool) -> lmdb.Environment:
    there = _OPEN.get(path)
    if there is not None and there.process == os.getpid() and (there.writes or not writes):
        return there.environment
    _close(path)
    if (path / DATA).exists():
        _check_size(path / DATA)
    if writes:
        path.mkdir(parents=True, exist_ok=True)
        environment = lmdb.open(str(path), map_size=FIRST_SIZE, max_readers=READERS)
    else:
        environment = _reader(path)
    _OPEN[path] = _Open(os.getpid(), (path / DATA).stat().st_ino, environment, writes)
    return environment


def _close(path: Path) -> None:
    there = _OPEN.pop(path, None)
    if there is not None and there.process == os.getpid():
        there.environment.close()


def _forget_deleted() -> None:
    """A store that was deleted and made anew is another one."""
    for path, there in list(_OPEN.items()):
        data = path / DATA
        if not data.is_file() or data.stat().st_ino != there.inode:
            _close(path)


def _reader(path: Path) -> lmdb.Environment:
    try:
        return lmdb.open(str(path), readonly=True, create=False, max_readers=READERS)
    except (lmdb.ReadonlyError, PermissionError, lmdb.LockError):  # nobody can be writing there
        return lmdb.open(str(path), readonly=True, create=False, lock=False)


def _laid_out(path: Path) -> bool:
    data = path / DATA
    return data.is_file() and data.stat().st_size >= _LAID_OUT


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One run at a time fills a store; the lock goes with the process that holds it, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    except OSError as error:
        raise UserError(f"cache {folder}: cannot be written: {error.strerror}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        clear(folder, below=True)
        yield
