"""Cells as processes of ``xmodal-kd run``, several at once; what is finished is reused, what was stopped goes on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import IO, Protocol

from ..run.run_folder import STATE, read_state
from ..runtime.checkpoint import disk_errors
from ..runtime.child import python, with_package
from .plan import Cell, read, shared_cache
from .progress import Progress

POLL = 0.1
#: Status of a cell whose node is gone, and how often such a one is started again.
LOST, AGAIN = 75, 3


class Process(Protocol):
    """What of `subprocess.Popen` is used."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...


class Stopped(Exception):
    """Ctrl-C or SIGTERM; the cells that ran have left checkpoints."""


@dataclass(frozen=True)
class Settings:
    """What all cells are started with."""

    out: Path
    jobs: int = 1
    device: str = "auto"
    imports: tuple[str, ...] = ()
    quiet: bool = False
    export: bool = False
    """Whether every cell exports its student, of which a comparison reads nothing."""


Launch = Callable[[Sequence[str], IO[bytes], dict[str, str], int], Process]


def process(arguments: Sequence[str], log: IO[bytes], env: dict[str, str], lock: int) -> Process:
    """``xmodal-kd`` with `arguments`, in a session of its own: Ctrl-C reaches it through us, once.

    It inherits the lock, so that a cell whose comparison was killed stays its own until it ends.
    """
    command = python("-m", "xmodal_kd", *arguments)
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=with_package(env),
        pass_fds=(lock,), start_new_session=True,
    )  # fmt: skip


@dataclass
class Pool:
    """Runs cells, those that others stand on first. ``failed`` has a line for each cell that did not finish."""

    settings: Settings
    launch: Launch = process
    failed: dict[str, str] = field(default_factory=dict)

    def folder(self, cell: Cell) -> Path:
        """Where a cell is or will be: named for people, found by its key."""
        cells = self.settings.out / "cells"
        kept = "".join(letter if letter.isalnum() or letter in "._=-" else "-" for letter in cell.name.replace(",", ""))
        return next(iter(sorted(cells.glob(f"*-{cell.key}"))), cells / f"{kept[:60]}-{cell.key}")

    def finished(self, cell: Cell) -> bool:
        folder = self.folder(cell)
        if cell.only_teacher:
            return (folder / STATE).is_file() and "teacher" in read_state(folder)["roles"]
        return (folder / "report.json").is_file()

    def arguments(self, cell: Cell) -> list[str]:
        """Of the command line of a cell, but for ``--resume``."""
        s = self.settings
        words = ["run", cell.recipe, "--out", str(self.folder(cell)), "--device", s.device, "--quiet"]
        words += [word for package in s.imports for word in ("--allow-import", package)]
        words += ["--only", "teacher"] if cell.only_teacher else [] if s.export else ["--no-export"]
        return words + [word for item in self.sets(cell) for word in ("--set", item)]

    def sets(self, cell: Cell) -> list[str]:
        shared = shared_cache(cell)
        more = [] if shared is None else [f"cache.path={(self.settings.out / 'cache' / shared).absolute()}"]
        more.append("on={}")  # a comparison is watched as a whole
        if cell.teacher is None:
            return [*cell.sets, *more]
        path = (self.folder(cell.teacher) / "teacher").absolute()
        return [*cell.sets, *more, f"teacher={json.dumps({'path': str(path)})}"]

    def run(self, cells: Sequence[Cell]) -> None:
        """Run what is not finished, teachers first. Raises `Stopped` after all that ran have stopped."""
        wanted: dict[str, Cell] = {}
        for cell in cells:
            for one in (cell.teacher, cell):
                if one is not None:
                    wanted.setdefault(one.key, one)
        todo = sorted((c for c in wanted.values() if not self.finished(c)), key=lambda c: not c.only_teacher)
        for cell in todo:
            self.failed.pop(cell.key, None)
        with Progress(len(wanted) - len(todo), todo, self.folder, self.settings.quiet) as shown, _signals() as caught:
            _Round(self, todo, shown, caught).go()


class _Round:
    """One pass over the cells that are left."""

    def __init__(self, pool: Pool, todo: list[Cell], shown: Progress, caught: list[int]) -> None:
        self.pool, self.todo, self.shown, self.caught = pool, todo, shown, caught
        self.running: dict[str, tuple[Cell, Process, int]] = {}
        self.lost: Counter[str] = Counter()

    def go(self) -> None:
        told = False
        while self.todo or self.running:
            if self.caught and not told:
                self._tell(signal.SIGTERM)
                told, self.todo = True, []
            elif len(self.caught) > 1:
                self._tell(signal.SIGKILL)
            self._collect()
            while self.todo and len(self.running) < self.pool.settings.jobs and self._start():
                pass
            self.shown.update([cell for cell, _, _ in self.running.values()])
            if self.running or self.todo:
                sleep(POLL)
        if self.caught:
            raise Stopped

    def _tell(self, number: int) -> None:
        for _, one, _ in self.running.values():
            one.send_signal(number)

    def _start(self) -> bool:
        """Start the next cell that can; whether there was one."""
        for cell in list(self.todo):
            teacher = cell.teacher
            if teacher is not None and teacher.key in self.pool.failed:
                self.todo.remove(cell)
                self._fail(cell, f"its teacher failed ({teacher.name})")
                continue
            if teacher is not None and not self.pool.finished(teacher):
                continue
            if (lock := _lock(self.pool.folder(cell))) is None:
                self.shown.waits(cell)
                continue
            self.todo.remove(cell)
            if self.pool.finished(cell):
                os.close(lock)
                self.shown.done(cell)
                continue
            self.running[cell.key] = (cell, self._process(cell, lock), lock)
            self.shown.started(cell)
            return True
        return False

    def _process(self, cell: Cell, lock: int) -> Process:
        folder, words = self.pool.folder(cell), self.pool.arguments(cell)
        if (folder / STATE).is_file():
            recipe = read(cell.recipe, self.pool.sets(cell)).recipe
            if read_state(folder)["fingerprint"] == recipe.fingerprint():
                words.append("--resume")
            else:  # of equal content but begun elsewhere: the whole comparison was moved
                shutil.rmtree(folder)
        threads = str(cell.loaded.recipe.threads)
        env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with disk_errors(folder), log_of(folder).open("ab") as log:
            log.write(f"$ xmodal-kd {shlex.join(words)}\n".encode())
            log.flush()
            return self.pool.launch(words, log, env, lock)

    def _collect(self) -> None:
        for key, (cell, one, lock) in list(self.running.items()):
            status = one.poll()
            if status is None:
                continue
            del self.running[key]
            os.close(lock)
            self.lost[key] += status == LOST
            if self.pool.finished(cell):
                self.shown.done(cell)
            elif status == LOST and self.lost[key] <= AGAIN and not self.caught:
                self.todo.insert(0, cell)  # it goes on from its last checkpoint
            elif not self.caught:
                self._fail(cell, f"exit status {status}: {last_line(log_of(self.pool.folder(cell)))}")

    def _fail(self, cell: Cell, line: str) -> None:
        self.pool.failed[cell.key] = line
        self.shown.failed(cell, line)


def log_of(folder: Path) -> Path:
    """What a cell printed, beside its folder."""
    return folder.with_name(folder.name + ".log")


def last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []
    return lines[-1].strip() if lines else "nothing was printed"


def _lock(folder: Path) -> int | None:
    """A lock on a cell that its process inherits, or None where another holds it."""
    import fcntl

    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(folder.with_name(folder.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return None
    return number


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect Ctrl-C, SIGTERM and hang-up inside the block instead of dying of them."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda n, _: caught.append(n)) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
