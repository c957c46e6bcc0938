"""Whole runs in processes of their own, killed at chosen writes, and whether two of them are the same."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch import FORKS

from xmodal_kd.cli.main import call
from xmodal_kd.runtime.checkpoint import read_json


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return ["run", str(recipe), "--out", str(out), "--allow-import", "toy", "--device", "cpu", "--quiet", *more]


def run(arguments: list[str], before: Callable[..., None] | None = None, *args: Any) -> int:
    """The command line in a process of its own: its status, or minus the signal that killed it."""
    return said(arguments, before, *args)[0]


def said(arguments: list[str], before: Callable[..., None] | None = None, *args: Any) -> tuple[int, str]:
    """As `run`, with what it wrote to stderr."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=child, args=(theirs, arguments, before, args))
    process.start()
    theirs.close()
    try:
        text = ours.recv()
    except EOFError:  # killed
        text = ""
    process.join(100)
    assert process.exitcode is not None
    return process.exitcode, text


def child(pipe: Any, arguments: list[str], before: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    if before is not None:
        before(*args)
    sys.stderr, sys.stdout = io.StringIO(), io.StringIO()
    status = call(arguments)
    pipe.send(sys.stderr.getvalue())
    os._exit(status)


def kill_at(number: int) -> None:
    """SIGKILL in place of the `number`-th write to the disk: half of them inside a checkpoint."""
    import xmodal_kd.runtime.whole_files as module

    fsync, calls = os.fsync, 0

    def killing(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    module.os.fsync = killing


def kill_with(checkpoint: Path) -> None:
    """SIGKILL at the first write to the disk after a checkpoint."""
    import xmodal_kd.runtime.whole_files as module

    fsync = os.fsync

    def killing(file: int) -> None:
        if checkpoint.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    module.os.fsync = killing


def same(out: Path, whole: Path) -> None:
    for role in ("teacher", "control", "student"):
        one, other = (folder / role / "model.safetensors" for folder in (out, whole))
        assert one.read_bytes() == other.read_bytes(), role
    mine, theirs = read_json(out / "report.json"), read_json(whole / "report.json")
    assert {k: v["metrics"] for k, v in mine["roles"].items()} == {k: v["metrics"] for k, v in theirs["roles"].items()}
    assert mine["gap_closed"] == theirs["gap_closed"]
    assert {k: v["samples"] for k, v in mine["cost"].items() if isinstance(v, dict)} == {
        k: v["samples"] for k, v in theirs["cost"].items() if isinstance(v, dict)
    }
