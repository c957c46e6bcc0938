"""Cells of a comparison: one that fails, is stopped, is waited for."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any

import pytest
from cells_inside import SHORT, Ended, Inside, pool

from xmodal_kd.cli.main import call
from xmodal_kd.compare import Plan, Pool, Stopped
from xmodal_kd.compare import cells as cells_module
from xmodal_kd.compare.cells import process
from xmodal_kd.runtime.checkpoint import read_json, read_tensors

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("toy_allowed")


def test_a_failing_cell_is_named_and_the_others_go_on(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    launch = Inside()

    def breaks(arguments: Sequence[str], log: IO[bytes], env: dict[str, str], lock: int) -> Any:
        if "control-seed-3" in arguments[3]:
            log.write(b"first\nerror: the disk is full\n")
            return Ended(1)
        return launch(arguments, log, env, lock)

    monkeypatch.setattr("xmodal_kd.compare.command.Pool", lambda settings: Pool(settings, breaks))
    words = ["compare", recipe, "--methods", "kd", "--seeds", "1", "--out", str(tmp_path / "out"), "--quiet"]
    words += ["--allow-import", "toy", *(w for item in SHORT for w in ("--set", item))]
    assert call(words) == 1
    assert "1 cell(s) failed: exit status 1: error: the disk is full" in capfd.readouterr().err
    found = read_json(tmp_path / "out" / "compare.json")
    assert [c["status"] for c in found["cells"]] == ["done", "failed", "done"]
    assert found["against_control"][0]["difference"] is None and found["arms"][0]["by_seed"].keys() == {"3"}
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "- control, seed 3: exit status 1: error: the disk is full" in text
    monkeypatch.setattr("xmodal_kd.compare.command.Pool", lambda settings: Pool(settings, launch))
    before = len(launch.commands)
    assert call(words) == 0, "it is tried again"
    assert len(launch.commands) == before + 1


def test_without_its_teacher_no_cell_starts(recipe: str, tmp_path: Path) -> None:
    plan, started = Plan(recipe, SHORT, methods="kd,dist", seeds=2), []

    def breaks(arguments: Sequence[str], log: IO[bytes], env: dict[str, str], lock: int) -> Any:
        started.append(arguments)
        return Ended(1)

    mine = pool(tmp_path / "out", breaks)
    mine.run([plan.cell(arm, seed) for seed in plan.seeds for arm in plan.arms])
    assert len(started) == 1 and len(mine.failed) == 5
    assert "its teacher failed (teacher, seed 3)" in mine.failed.values()


def test_stopping_tells_the_cells_and_the_next_call_goes_on(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal ends those that run; a second call resumes them from their checkpoints, to the same bit."""
    plan = Plan(recipe, [*SHORT, "train.steps=8"], methods="kd", seeds=1)
    cell, inside = plan.cell(plan.arms[0], 3), Inside()
    whole = pool(tmp_path / "whole", inside)
    whole.run([cell])
    mine = pool(tmp_path / "out", inside)
    assert cell.teacher is not None
    mine.run([cell.teacher])
    caught: list[int] = []

    def partly(arguments: Sequence[str], log: IO[bytes], env: dict[str, str], lock: int) -> Any:
        inside([*arguments, "--max-minutes", "0"], log, env, lock)  # a checkpoint after the first step
        caught.append(2)
        return Ended(None)

    class Caught:
        def __enter__(self) -> list[int]:
            return caught

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(cells_module, "_signals", Caught)
    mine.launch = partly
    with pytest.raises(Stopped):
        mine.run([cell])
    assert not mine.finished(cell) and not mine.failed
    caught.clear()
    mine.launch = inside
    mine.run([cell])
    assert inside.commands[-1][-1] == "--resume"
    weights = [read_tensors(p.folder(cell) / "student" / "model.safetensors") for p in (whole, mine)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_a_cell_that_another_comparison_runs_is_waited_for(recipe: str, tmp_path: Path) -> None:
    plan = Plan(recipe, SHORT, methods="kd", seeds=1)
    control, teacher = plan.control(plan.arms[0], 3), plan.teacher(plan.arms[0], 3)
    assert control is not None and teacher is not None
    inside = Inside()
    mine = pool(tmp_path / "out", inside)
    held = cells_module._lock(mine.folder(control))
    assert held is not None and cells_module._lock(mine.folder(control)) is None

    def let_go(arguments: Sequence[str], log: IO[bytes], env: dict[str, str], lock: int) -> Any:
        done = inside(arguments, log, env, lock)
        if "teacher" in arguments:
            os.close(held)
        return done

    mine.launch = let_go
    mine.run([control, teacher])
    assert [words[3].rpartition("/")[2][:7] for words in inside.commands] == ["teacher", "control"]


def test_a_process_inherits_its_lock_and_hears_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@" $OMP_NUM_THREADS\nread line < "${0%/*}/pipe"\n')
    (tmp_path / "python").chmod(0o755)
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    lock = cells_module._lock(tmp_path / "cell")
    assert lock is not None
    with (tmp_path / "log").open("wb") as log:
        child = process(["run", "toy"], log, os.environ | {"OMP_NUM_THREADS": "2"}, lock)
    os.close(lock)
    assert child.poll() is None
    assert cells_module._lock(tmp_path / "cell") is None, "locked while its process lives, whoever started it"
    until = monotonic() + 60
    while not (tmp_path / "log").read_text() and monotonic() < until:
        sleep(0.02)
    assert (tmp_path / "log").read_text() == "-P -m xmodal_kd run toy 2\n"
    child.send_signal(signal.SIGTERM)
    while child.poll() is None and monotonic() < until:
        sleep(0.02)
    assert child.poll() == -signal.SIGTERM
    assert cells_module._lock(tmp_path / "cell") is not None
