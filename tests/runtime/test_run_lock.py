"""One process at a time in a folder, whatever became of the others."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from xmodal_kd.runtime import run_lock
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.leftovers import clear, scratch
from xmodal_kd.runtime.run_lock import NAME, RunLock

FORK = multiprocessing.get_context("spawn")


def hold(folder: Path, ready: Any, children: bool) -> None:
    kept = RunLock(folder)
    if children and os.fork() == 0:
        time.sleep(60)
    ready.set()
    time.sleep(60)
    kept.release()


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    made = []

    def start(children: bool = False) -> Any:
        ready = FORK.Event()
        process = FORK.Process(target=hold, args=(tmp_path, ready, children))
        process.start()
        made.append(process)
        assert ready.wait(60)
        return process

    yield start
    for process in made:
        process.kill()
        process.join()


def dead_process() -> int:
    if (number := os.fork()) == 0:
        os._exit(0)
    os.waitpid(number, 0)
    return number


def test_a_second_process_is_told_who_is_there(tmp_path: Path, holder: Any) -> None:
    process = holder()
    with pytest.raises(UserError) as refused:
        RunLock(tmp_path)
    assert f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()}" in str(refused.value)
    assert json.loads((tmp_path / NAME).read_text())["process"] == process.pid, "the refused one changed nothing"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("children", [False, True])
def test_a_killed_process_holds_nothing(tmp_path: Path, holder: Any, children: bool) -> None:
    """Nor do the workers that it forked and that live on."""
    process = holder(children)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / NAME).exists()
    kept = RunLock(tmp_path)
    assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    kept.release()
    assert not (tmp_path / NAME).exists()


def test_what_is_released_or_forgotten_is_free(tmp_path: Path) -> None:
    first, again = RunLock(tmp_path), RunLock(tmp_path)
    first.release()
    again.release()
    kept = RunLock(tmp_path)
    assert (tmp_path / NAME).exists()
    del kept
    assert not (tmp_path / NAME).exists()


def no_locks(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(
    ("host", "process", "free"),
    [("here", "dead", True), ("here", "alive", False), ("elsewhere", "dead", True), ("elsewhere", "alive", False)],
)
def test_without_locks_the_file_decides(
    host: str, process: str, free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network folder: another machine's holder is known by its signs of life."""
    monkeypatch.setattr(run_lock.fcntl, "flock", no_locks)
    monkeypatch.setattr(run_lock, "WAIT", 1.0)
    number = dead_process() if (host, process) == ("here", "dead") else os.getppid()
    name = socket.gethostname() if host == "here" else "another.machine"
    (tmp_path / NAME).write_text(json.dumps({"host": name, "process": number}))
    os.utime(tmp_path / NAME, (1, 1))
    timer = threading.Timer(0.3, os.utime, [tmp_path / NAME])
    if (host, process) == ("elsewhere", "alive"):
        timer.start()
    if free:
        RunLock(tmp_path).release()
    else:
        with pytest.raises(UserError, match=f"in use by process {number} on {name}"):
            RunLock(tmp_path)
    timer.cancel()


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*\.lock"):
        RunLock(tmp_path / "nowhere")


def test_leftovers_of_the_dead_are_cleared(tmp_path: Path) -> None:
    dead, old = dead_process(), time.time() - 3600
    (tmp_path / "below").mkdir()
    names = {f".a.{dead}.tmp", f".b.{os.getpid()}.tmp", f".c.{dead}.tmp", "note.tmp", f"below/.d.{dead}.tmp"}
    for name in names:
        (tmp_path / name).write_text("")
        if name != f".c.{dead}.tmp":  # which is young
            os.utime(tmp_path / name, (old, old))
    assert [path.name for path in clear(tmp_path)] == [f".a.{dead}.tmp"]
    clear(tmp_path, below=True, ours=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"note.tmp"}


def test_a_scratch_folder_is_cleared_where_its_process_was_killed(tmp_path: Path) -> None:
    with scratch(tmp_path / "model.onnx") as folder:
        (folder / "half").write_text("")
        assert clear(tmp_path, ours=True) == [folder]
    with scratch(tmp_path / "model.onnx") as folder:
        (folder / "model.onnx").write_text("whole")
        (folder / "model.onnx").replace(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
