"""Cells on a local Ray: run, found again, and refused with a line where ray is missing."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

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


RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is missing: pip install 'xmodal-kd[ray]'")
DONE = {"teacher, seed 3": "done", "control, seed 3": "done", "kd, seed 3": "done"}


def environment(**more: str) -> dict[str, str]:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", **more}


def statuses(out: Path) -> dict[str, str]:
    return {cell["name"]: cell["status"] for cell in read_json(out / "compare.json")["cells"]}


@RAY
def test_cells_run_on_a_local_ray(recipe: Path, tmp_path: Path) -> None:
    arguments = words(recipe, tmp_path / "out", "--launcher", "ray", "--jobs", "2")
    done = subprocess.run([sys.executable, "-m", "xmodal_kd", *arguments], env=environment(), cwd=tmp_path,
                          capture_output=True, text=True, check=False, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path / "out") == DONE
    assert list((tmp_path / "out" / "cells").glob("*.held")), "on the node each cell holds its lock"


@RAY
@pytest.mark.full
def test_a_node_is_lost(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two nodes with a processor each, one dies while a cell runs on either; its cell goes on on the other."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # the nodes'
    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        second = cluster.add_node(**small)
        arguments = words(recipe, tmp_path / "out", "--launcher", "ray", "--jobs", "2", "--set", "train.steps=2000")
        with (tmp_path / "said").open("wb") as said:
            running = subprocess.Popen([sys.executable, "-m", "xmodal_kd", *arguments], cwd=tmp_path, stderr=said,
                                       env=environment(RAY_ADDRESS=cluster.address))  # fmt: skip
        cells = tmp_path / "out" / "cells"
        logs = lambda: [log for log in cells.glob("*.log.held") if "teacher" not in log.name]  # noqa: E731
        wait_for(lambda: len(logs()) == 2 or running.poll() is not None)
        assert running.poll() is None, (tmp_path / "said").read_text()
        cluster.remove_node(second, allow_graceful=False)

        def ended() -> bool:
            for process in left_behind(cells):  # a machine takes its processes with it, as late releases of Ray do
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            return running.poll() is not None

        wait_for(ended)
        assert running.returncode == 0, (tmp_path / "said").read_text()
        assert statuses(tmp_path / "out") == DONE
        told = [log.read_text() for log in cells.glob("*.log") if "Ray lost this cell" in log.read_text()]
        assert len(told) == 1 and told[0].count("$ xmodal-kd run") == 2
    finally:
        cluster.shutdown()


def left_behind(cells: Path) -> list[int]:
    """Processes of cells whose actor is gone."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            above = Path("/proc", parent, "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if "-m\0xmodal_kd\0run" in words and f"{cells.name}/" in words and str(cells.parents[1]) in words:
            found += [] if "ray::" in above else [int(folder.name)]
    return found


def wait_for(done: Callable[[], bool], seconds: float = 900.0) -> None:
    end = monotonic() + seconds
    while not done():
        assert monotonic() < end
        sleep(0.2)


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
