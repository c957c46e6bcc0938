"""What a long list says of its lines, as arrays in the user's cache that are mapped into memory: made once, then found.

A process that maps an array holds no more of it than it looks at, and all processes of a machine hold that together.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from time import time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .leftovers import clear, temporary

Array = NDArray[Any]
#: What a column is given to, by its name.
Keep = Callable[[str, Array], None]
By = Literal["content", "times"]

#: Of what a folder of columns holds: another number, and it is made anew.
VERSION = 1
#: Seconds for which a file may change again without its time telling.
GRAIN = 2.0
BLOCK = 1 << 22


class Columns(Mapping[str, Array]):
    """Arrays by name, and what was worked out from them.

    Args:
        folder: where they lie as ``<name>.npy``; None: in memory.
    """

    def __init__(self, folder: Path | None, arrays: Mapping[str, Array]) -> None:
        self.folder, self._arrays = folder, dict(arrays)

    @classmethod
    def of(cls, folder: Path) -> Columns:
        """Raises `OSError` or `ValueError` where something is missing or cut."""
        names = json.loads((folder / "columns.json").read_text())
        return cls(folder, {name: _mapped(folder / f"{name}.npy") for name in names})

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> Any:
        """Another process maps what this one maps."""
        return (Columns, (None, self._arrays)) if self.folder is None else (Columns.of, (self.folder,))

    def remembered(self, name: str, make: Callable[[], Array]) -> Array:
        """What `make` gives, from the last time where it has been asked for already.

        Args:
            name: it says all that the answer hangs on, besides the columns.
        """
        key = blake2b(name.encode(), digest_size=12).hexdigest()
        if key in self._arrays:
            return self._arrays[key]
        made: Array | None = None
        if self.folder is not None:
            file = self.folder / f"{key}.npy"
            try:
                made = _mapped(file)
            except (OSError, ValueError):
                _write(file, make())
                made = _mapped(file)
        self._arrays[key] = make() if made is None else made
        return self._arrays[key]


def columns_of(
    files: Path | Sequence[Path], salt: str, build: Callable[[Keep], None], *, by: By = "content"
) -> Columns:
    """The columns of a file, or of several: found by what is in them, made where they are not there.

    Args:
        files: they must be there.
        salt: what else they hang on, as where relative paths in it lead.
        build: calls what it is given with the name and content of each column.
        by: how a change is seen: by the content, or by size and times alone, for files that are too large to be read.
    """
    files = [files] if isinstance(files, Path) else files
    try:
        base = cache_folder() / "columns"
        base.mkdir(parents=True, exist_ok=True)
        names = "\0".join(os.path.abspath(file) for file in files)  # noqa: PTH100 - a link is a name
        where = _hash(names)
        with _alone(base / f".{where}.lock"):
            made = [VERSION, salt]
            for file in files:
                record = base / f"{where if len(files) == 1 else f'{where}.{_hash(str(file))}'}.json"
                made.append(_digest(file, record, salt) if by == "content" else _seen(file))
            folder = base / f"{where}-{made[2] if by == 'content' and len(files) == 1 else _hash(json.dumps(made))}"
            found = _found(folder)
            if found is None:
                for old in base.glob(f"{where}-*"):  # of what the file was before
                    shutil.rmtree(old, ignore_errors=True)
                clear(base, ours=False)
                _make(folder, build)
                found = Columns.of(folder)
            return found
    except (OSError, RuntimeError):  # no home, no room, no permission: it costs time and memory, and nothing else
        held: dict[str, Array] = {}
        build(lambda name, content: held.update({name: np.array(content)}))
        return Columns(None, held)


def cache_folder() -> Path:
    """This program's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xmodal-kd"


def _found(folder: Path) -> Columns | None:
    try:
        return Columns.of(folder)
    except (OSError, ValueError):
        return None


def _make(folder: Path, build: Callable[[Keep], None]) -> None:
    half = temporary(folder)
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    names: list[str] = []

    def keep(name: str, content: Array) -> None:
        names.append(name)
        np.save(half / f"{name}.npy", content)

    try:
        build(keep)
        (half / "columns.json").write_text(json.dumps(names))
        shutil.rmtree(folder, ignore_errors=True)
        half.rename(folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _write(file: Path, content: Array) -> None:
    half = temporary(file)
    try:
        with half.open("wb") as out:
            np.save(out, content)
        half.replace(file)
    finally:
        half.unlink(missing_ok=True)


def _mapped(file: Path) -> Array:
    try:
        found: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except EOFError as error:
        raise ValueError(f"{file} is empty") from error
    return found


def _digest(file: Path, record: Path, salt: str) -> str:
    """Of the file's content; from `record` while size, times and number of the file are what they were."""
    there = file.stat()
    seen = [*_seen(file), salt, VERSION]
    try:
        known = json.loads(record.read_text())
        if known["seen"] == seen and known["at"] - max(there.st_mtime, there.st_ctime) > GRAIN:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    hasher = blake2b(f"{VERSION} {salt}".encode(), digest_size=16)
    with file.open("rb") as content:
        while block := content.read(BLOCK):
            hasher.update(block)
    half = temporary(record)
    half.write_text(json.dumps({"seen": seen, "at": time(), "digest": hasher.hexdigest()}))
    half.replace(record)
    return hasher.hexdigest()


def _seen(file: Path) -> list[int]:
    there = file.stat()
    return [there.st_size, there.st_mtime_ns, there.st_ctime_ns, there.st_ino, there.st_dev]


def _hash(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process lists, the others of its machine wait and find it done."""
    number = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


__all__ = ["By", "Columns", "Keep", "cache_folder", "columns_of"]
