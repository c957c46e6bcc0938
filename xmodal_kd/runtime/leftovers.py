"""What killed processes leave behind: files and folders called ``.<name>.<process>.tmp``."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time

_NAMED = re.compile(r"^\..+\.(\d+)\.tmp$")
#: Seconds for which another machine's process, which cannot be seen from here, may still be writing.
PATIENCE = 600


def temporary(path: Path) -> Path:
    """Where this process writes what is to be `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """An empty folder of this process beside `path`, on whose disk it is; gone in the end."""
    folder = temporary(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear(folder: Path, *, below: bool = False, ours: bool = False) -> list[Path]:
    """Remove what dead processes left in `folder`; returns what it was.

    Args:
        below: in its folders too.
        ours: nobody else may write there now (the folder is locked), so that whatever is left is dead. Else what is
            younger than ten minutes stays: it may be another machine's.
    """
    found = []
    for path in list(_candidates(folder, below)):
        if ours or _dead(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            found.append(path)
    return found


def _candidates(folder: Path, below: bool) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        named = [name for name in (*folders, *files) if _NAMED.match(name)]
        yield from (Path(place) / name for name in named)
        folders[:] = [name for name in folders if name not in named] if below else []


def _dead(path: Path) -> bool:
    match = _NAMED.match(path.name)
    try:
        return match is not None and not alive(int(match[1])) and time() - path.stat().st_mtime > PATIENCE
    except OSError:
        return False


def alive(process: int) -> bool:
    """Whether a process of this machine is there, whosever it is."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process > 0


__all__ = ["alive", "clear", "scratch", "temporary"]
