"""The built wheel holds everything that running by name needs, and nothing that belongs to the repository only."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Of the smoke recipe's data and models, a little.
SMALL = (
    "data.compose.utterances={train: 24, dev: 4, test: 4}", "teacher.params={width: 8}", "train.batch_size=6",
    "teacher.train.batch_size=8", "student.params={width: 8, dilations: [1]}",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"  # a copy, so that the build leaves nothing in the repository
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in tracked.decode().split("\0"):
        if name and not name.startswith(("assets/", "benchmarks/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_the_modalities_and_recipes_under_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "xmodal_kd/modalities/speech/adapter.py" in names and "xmodal_kd/recipes/speech/fsdd.yaml" in names
    assert {
        "xmodal_kd/py.typed",
        "xmodal_kd/report/page.css",
        "xmodal_kd/report/page.js",
        "xmodal_kd/watch/watch.js",
    } <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"xmodal_kd"}


def test_installed_wheel_runs_by_name_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments: str) -> str:
        command = [sys.executable, str(site / "bin/xmodal-kd"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "speech/fsdd" in run("list", "recipes", "--json")
    where = "from importlib.util import find_spec; print(find_spec('xmodal_kd.modalities.speech').origin)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert str(site) in found.stdout
    sets = [word for one in (*SMALL, f"data.path={ROOT / 'assets/digits'}") for word in ("--set", one)]
    checked = run("check", "smoke/speech", "--json", *sets)
    assert '"fail"' not in checked
