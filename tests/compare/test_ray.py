"""Cells on a local Ray: run, found again, and refused with a line where ray is missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy import RECIPE

from xmodal_kd.cli.main import call
from xmodal_kd.compare.cluster import LOST, Remote
from xmodal_kd.runtime.checkpoint import read_json

SETS = ("train.steps=2", "teacher.train.steps=2", "trackers=[]", "student.params.dropout=0.0")


def words(recipe: Path, out: Path, *more: str) -> list[str]:
    sets = [word for item in SETS for word in ("--set", item)]
    return ["compare", str(recipe), "--methods", "kd", "--seeds", "1", "--out", str(out), "--allow-import", "toy",
            "--quiet", *sets, *more]  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return tmp_path / "toy.yaml"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is missing: pip install 'xmodal-kd[ray]'")
def test_cells_run_on_a_local_ray(recipe: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)
    arguments = words(recipe, tmp_path / "out", "--launcher", "ray", "--jobs", "2")
    done = subprocess.run([sys.executable, "-m", "xmodal_kd", *arguments], env=env, cwd=tmp_path, capture_output=True,
                          text=True, check=False, timeout=600)  # fmt: skip
    if "Ray did not start (The current node timed out" in done.stderr:
        pytest.skip("the machine is too busy: Ray gives its own processes 30 s to start")
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "out" / "compare.json")
    assert {c["name"]: c["status"] for c in found["cells"]} == {
        "teacher, seed 3": "done", "control, seed 3": "done", "kd, seed 3": "done"
    }  # fmt: skip
    assert list((tmp_path / "out" / "cells").glob("*.held")), "on the node each cell holds its lock"


def test_without_ray_it_is_refused(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", None)
    assert call(words(recipe, tmp_path / "out", "--launcher", "ray")) == 2
    assert "--launcher ray needs ray: pip install 'xmodal-kd[ray]'" in capfd.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--launcher", "slurm"), ("--equal", "flops")])
def test_unknown_choices_are_refused(option: str, value: str, recipe: Path, tmp_path: Path,
                                     capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert call(words(recipe, tmp_path / "out", option, value)) == 2
    assert f"{option} '{value}': choose one of" in capfd.readouterr().err


def test_what_an_actor_holds_is_started_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray: the process on the node prints into the log, has the pool's threads, and keeps others out."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@" $OMP_NUM_THREADS\nexec sleep 60\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    log = tmp_path / "cell.log"
    first = Remote(["run", "toy"], str(log), {"OMP_NUM_THREADS": "2"}, str(tmp_path))
    second = Remote(["run", "toy"], str(log), {"OMP_NUM_THREADS": "2"}, str(tmp_path))
    assert first.poll() is None and second.poll() == LOST
    first.tell(9)
    assert first.child is not None and first.child.wait(60) == first.poll() == -9
    assert "an earlier comparison left behind still runs this cell" in log.read_text()
    third = Remote(["run", "toy"], str(log), {"OMP_NUM_THREADS": "2"}, str(tmp_path))
    assert third.poll() is None, "its place is free again"
    third.tell(9)
    assert third.child is not None and third.child.wait(60) == -9
