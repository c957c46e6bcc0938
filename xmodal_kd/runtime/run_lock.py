"""One process at a time in a run folder.

The lock is the system's (``flock``), which goes with the process that holds it, however that ends; the file says who.
On a network folder whose server knows no such locks, and between machines whose kernels do not tell each other, the
file decides: its holder touches it every few seconds, and one that is not touched any more is stale.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import threading
import weakref
from pathlib import Path
from time import sleep, time
from typing import Any

from .bounded_files import read_bytes
from .errors import UserError
from .leftovers import alive

NAME = ".lock"
#: Seconds between two signs of life, and for which another machine's are waited for.
BEAT, WAIT = 5.0, 12.0
#: Seconds without a sign of life after which a lock that is only looked at counts as left behind.
SILENT = 60.0
#: What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

#: What this process holds, by folder: a second `RunLock` of it is the same lock.
_HELD: weakref.WeakValueDictionary[Path, _Held] = weakref.WeakValueDictionary()


class _Held:
    """The open file and the thread that shows that its process lives."""

    def __init__(self, path: Path, file: int) -> None:
        self.path, self.file, self.process = path, file, os.getpid()
        self.stop = threading.Event()
        threading.Thread(target=_beat, args=(path, self.stop), daemon=True).start()
        # a forked worker would keep the lock of a process that is gone
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _let_go(reference))
        self.close = weakref.finalize(self, _close, path, file, self.process, self.stop)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        try:
            os.utime(path)
        except OSError:
            return


def _let_go(reference: weakref.ref[_Held]) -> None:
    if (held := reference()) is not None:
        held.close.detach()
        os.close(held.file)


def _close(path: Path, file: int, process: int, stop: threading.Event) -> None:
    stop.set()
    if process == os.getpid():
        path.unlink(missing_ok=True)
        os.close(file)


class RunLock:
    """The lock of a run folder, held until `release`, or until nothing refers to it any more.

    Raises:
        UserError: another process is at work there; it says which, and where.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.absolute() / NAME
        held = _HELD.get(self.path)
        if held is None or held.process != os.getpid() or not held.close.alive:
            held = _HELD[self.path] = _Held(self.path, _taken(self.path))
        self._held: _Held | None = held

    def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()


def at_work(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder, as far as looking on can tell: nothing is waited for."""
    path = folder / NAME
    try:
        holder = json.loads(read_bytes(path, 1000))
        silent = abs(time() - path.stat().st_mtime) > SILENT
    except (OSError, ValueError, RecursionError, UserError):
        return False
    return isinstance(holder, dict) and not silent and not _gone(holder)


def _taken(path: Path) -> int:
    """The open and locked file, with our name in it."""
    while True:
        try:
            file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise UserError(f"cannot write {path}: it is no file: remove it")
            locked, holder = _flock(file), _holder(file)
            if _busy(path, locked, holder):
                raise UserError(_refusal(path, holder))
            if locked and not _still(path, file):  # its holder removed it between our two calls
                os.close(file)
                continue
            content = json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode()
            os.ftruncate(file, 0)
            os.pwrite(file, content, 0)
            return file
        except BaseException:
            os.close(file)
            raise


def _flock(file: int) -> bool | None:
    """Whether the system gave the lock; None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise


def _busy(path: Path, locked: bool | None, holder: dict[str, Any]) -> bool:
    if locked is False:
        return not _gone(holder)
    if _elsewhere(holder):
        return _lives(path)
    return locked is None and bool(holder) and not _gone(holder) and holder.get("process") != os.getpid()


def _still(path: Path, file: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _holder(file: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(file, 1000, 0))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is dead: a child of it may have kept the lock."""
    process = holder.get("process")
    return holder.get("host") == socket.gethostname() and isinstance(process, int) and not alive(process)


def _elsewhere(holder: dict[str, Any]) -> bool:
    return "host" in holder and holder["host"] != socket.gethostname()


def _lives(path: Path) -> bool:
    """Whether another machine's process shows a sign of life while we wait."""
    before, waited = path.stat().st_mtime_ns, 0.0
    while waited < WAIT:
        sleep(0.5)
        waited += 0.5
        try:
            if path.stat().st_mtime_ns != before:
                return True
        except FileNotFoundError:
            return False
    return False


def _refusal(path: Path, holder: dict[str, Any]) -> str:
    by = f"process {holder['process']} on {holder['host']}" if {"process", "host"} <= holder.keys() else "a process"
    return f"{path.parent} is in use by {by}: wait until it ends, or stop it, then --resume"


__all__ = ["NAME", "RunLock", "at_work"]
