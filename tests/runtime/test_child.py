"""Processes that we start find our packages, and none that lie where they are called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import xmodal_kd
from xmodal_kd.cli import main as cli
from xmodal_kd.runtime.child import python, with_package


def test_what_lies_in_the_current_folder_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('mine ran')")
    (tmp_path / "xmodal_kd").mkdir()
    (tmp_path / "xmodal_kd" / "__init__.py").write_text("raise SystemExit('mine ran')")
    words = python("-c", "import json, xmodal_kd; print(xmodal_kd.__file__)")
    done = subprocess.run(words, cwd=tmp_path, env=with_package(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).samefile(xmodal_kd.__file__)


def test_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/before")
    root = str(Path(xmodal_kd.__file__).parents[1])
    assert with_package()["PYTHONPATH"] == os.pathsep.join([root, "/before"])
    assert with_package({"A": "b"}) == {"A": "b", "PYTHONPATH": root}


def test_a_package_that_may_be_imported_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file of the current folder stands in for no installed package."""
    monkeypatch.setattr("sys.path", ["/first"])
    cli._allow(["mynet"])
    assert cli.sys.path == ["/first", ""]
