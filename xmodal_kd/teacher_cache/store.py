"""Entries on disk: an LMDB environment for each rank that writes, all of them open in every process that reads.

LMDB commits whole transactions or nothing, so a process that is killed leaves what it had committed, and the next one
goes on from there. Not for network file systems, which do not keep LMDB's promises.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from ..errors import UserError

#: An environment's first size; it grows by doubling. Files are sparse: what is not used costs nothing.
FIRST_SIZE = 1 << 28
#: Processes that read at once.
READERS = 1024
#: What an environment has on the disk once LMDB has laid it out; a kill may leave less.
_LAID_OUT = 8192


class Store:
    """Bytes by key in the environments of a folder.

    Handles are opened in the process that uses them: LMDB's must not go through a fork. One process opens an
    environment once only, so a `Store` that writes is closed before another one reads.

    Args:
        rank: whose environment this process writes; None for none.
    """

    def __init__(self, folder: Path, rank: int | None = None) -> None:
        self.folder, self.rank = folder, rank
        self._process = -1
        self._open: list[lmdb.Environment] = []

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "rank": self.rank, "_process": -1, "_open": []}

    # ---------------------------------------------------------------- reading

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where no environment has it."""
        found: list[bytes | None] = [None] * len(keys)
        for environment in self._environments():
            with self._begin(environment) as transaction:
                for i, key in enumerate(keys):
                    if found[i] is None and (value := transaction.get(key)) is not None:
                        found[i] = bytes(value)
            if None not in found:
                break
        return found

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
        if self._process != os.getpid():
            self._process, self._open = os.getpid(), []
            own = None if self.rank is None else self._path(self.rank)
            with self._errors():
                if own is not None:
                    own.mkdir(parents=True, exist_ok=True)
                    self._open.append(lmdb.open(str(own), map_size=FIRST_SIZE, max_readers=READERS))
                for path in sorted(self.folder.glob("rank-*")):
                    data = path / "data.mdb"
                    if path != own and data.is_file() and data.stat().st_size >= _LAID_OUT:
                        self._open.append(_reader(path))
        return self._open

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}"

    # ---------------------------------------------------------------- writing

    def put(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Write all items or, if the process dies, none. On return they are on the disk."""
        items = list(items)
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
        if self._process == os.getpid():
            for environment in self._open:
                environment.close()
        self._process, self._open = -1, []

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"cache {self.folder}: {text}; what was committed before is untouched") from error


def _reader(path: Path) -> lmdb.Environment:
    try:
        return lmdb.open(str(path), readonly=True, create=False, max_readers=READERS)
    except (lmdb.ReadonlyError, PermissionError, lmdb.LockError):  # nobody can be writing there
        return lmdb.open(str(path), readonly=True, create=False, lock=False)


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
        yield
