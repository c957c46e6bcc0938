"""Installing, testing the ends of the ranges, and checking a release: what they say, without installing anything."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [
    Requirement(line) for line in (ROOT / "requirements/lock.txt").read_text().splitlines() if line[:1] not in ("#", "")
]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install, versions, release_check = tool("install"), tool("versions"), tool("release_check")


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lists = [
        PROJECT["dependencies"],
        *(extras[name] for name in ("speech", "decode", "diffusion", "points", "gpu", "dev")),
    ]
    return [Requirement(line) for lines in lists for line in lines]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_has_one_version_within_the_range_of_each_requirement(python: str) -> None:
    platform = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    for wanted in requirements():
        if wanted.marker and not wanted.marker.evaluate(platform):
            continue
        pins = [
            pin for pin in PINS if pin.name == wanted.name.lower() and (not pin.marker or pin.marker.evaluate(platform))
        ]
        assert len(pins) == 1, f"{wanted}: {len(pins)} pins for Python {python}; make lock"
        assert wanted.specifier.contains(next(iter(pins[0].specifier)).version), f"{wanted}, but {pins[0]}: make lock"


def test_lock_names_no_address() -> None:
    assert not re.search(r"://|--(index|find|extra|trusted)", (ROOT / "requirements/lock.txt").read_text())


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no space left: "),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(... "
            "Temporary failure in name resolution)'\nERROR: No matching distribution found for torch",
            "the package index cannot be reached: ",
        ),
        ("ERROR: No matching distribution found for open3d>=0.20", "the package index has no open3d>=0.20 for Python "),
        (
            "a\nERROR: ResolutionImpossible: for help visit\nb",
            "ERROR: ResolutionImpossible: for help visit; all of it: ",
        ),
        ("", "nothing was printed; "),
    ],
)
def test_a_failed_installation_is_one_line(
    output: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "free_gb", lambda folder: 9.0)
    line = install.why(output, tmp_path / "venv")
    assert line.startswith(said) and "\n" not in line


def test_a_full_disk_is_named_even_where_pip_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "free_gb", lambda folder: 0.01)
    assert "0.0 GB are free at" in install.why("ERROR: something odd", tmp_path / "venv")


def steps(monkeypatch: pytest.MonkeyPatch, *, runs: bool) -> list[str]:
    called: list[str] = []
    monkeypatch.setattr(install, "call", lambda venv, command: called.append(" ".join(command)))
    monkeypatch.setattr(install, "runs", lambda python: runs)
    return called


def test_an_environment_that_runs_is_gone_on_with_and_torn_packages_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "venv/lib/python3.11/site-packages"
    (site / "whole-1.dist-info").mkdir(parents=True)
    (site / "whole-1.dist-info/RECORD").touch()
    (site / "torn-1.dist-info").mkdir()
    called = steps(monkeypatch, runs=True)
    assert install.main([str(tmp_path / "venv"), "lock.txt", "."]) == 0
    assert [path.name for path in site.iterdir()] == ["whole-1.dist-info"]
    assert "torn-1.dist-info was cut off" in capsys.readouterr().out
    assert len(called) == 2 and all("--constraint lock.txt" in command for command in called)


def test_an_environment_that_does_not_run_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "venv").mkdir()
    called = steps(monkeypatch, runs=False)
    assert install.main([str(tmp_path / "venv"), "lock.txt", "."]) == 0
    assert called[0].endswith(f"-m venv --clear {tmp_path / 'venv'}") and len(called) == 3


def test_a_broken_interpreter_does_not_run(tmp_path: Path) -> None:
    assert not install.runs(tmp_path / "python")
    (tmp_path / "python").symlink_to(tmp_path / "gone")
    assert not install.runs(tmp_path / "python")


def test_a_failing_step_says_why_and_keeps_its_words_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "free_gb", lambda folder: 9.0)
    with pytest.raises(install.InstallError, match="no x==1"):
        install.call(
            tmp_path / "venv", [sys.executable, "-c", "print('No matching distribution found for x==1'); exit(1)"]
        )
    assert "No matching distribution" in (tmp_path / "venv.log").read_text()
    with pytest.raises(install.InstallError, match="ended by signal 9"):
        install.call(tmp_path / "venv", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    monkeypatch.setattr(install, "sys", SimpleNamespace(version_info=(3, 10, 2), stderr=sys.stderr))
    assert install.main([str(tmp_path / "venv"), "lock.txt", "."]) == 1
    assert capsys.readouterr().err == "make install: Python 3.10 is not supported: needs 3.11, 3.12 or 3.13\n"


def test_make_passes_over_a_python_that_is_found_and_does_not_run(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    for name in ("python3.11", "python3.12", "python3.13", "python3", "python"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
        (tmp_path / name).chmod(0o755)
    command = ["make", "--silent", "--eval", "which: ; @echo chosen=$(PYTHON)", "which"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    none = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "chosen=\n" in none
    (tmp_path / "python3.13").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "chosen=python3.13" in found


RESULTS = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_x[1]"><failure message="assert 1 == 2&#10;more">trace</failure></testcase>
<testcase classname="tests.test_a" name="test_y"><skipped message="no GPU"/></testcase>
<testcase classname="tests.test_b" name="test_z"/>
<testcase classname="tests.test_b" name="test_w"><error message=""/></testcase>
</testsuite></testsuites>"""


def test_what_broke_is_noted_in_place_of_what_was_noted_before() -> None:
    result, failed = versions.counted(ElementTree.fromstring(RESULTS))
    assert result == "1 passed, 2 failed, 1 skipped"
    assert failed == ["`tests.test_a::test_x[1]`: assert 1 == 2", "`tests.test_b::test_w`: no message"]
    text = versions.section("lowest", {"torch": "2.14.1", "idna": "3"}, ["tests/a", "-k", "x y"], result, failed)
    assert "- torch 2.14.1\n" in text and "`tests/a -k 'x y'`" in text and "**1 passed, 2 failed, 1 skipped**" in text
    page = versions.noted("# Versions\n\nHead.\n", text)
    other = versions.section("latest", {}, [], "5 passed, 0 failed, 0 skipped", [])
    again = versions.noted(versions.noted(page, other), versions.section("lowest", {}, [], "6 passed", []))
    assert again.startswith("# Versions\n\nHead.\n\n## latest, ") and again.count("\n## ") == 2
    assert "**6 passed**" in again and "test_x" not in again and "\n\n\n" not in again


def test_the_line_that_tells() -> None:
    text = "  × Failed\n  ╰─▶ it returned an error\n       ImportError: Cannot import `y`.\n  Wants 2\n\nhint: see"
    assert versions.telling_line(text) == "ImportError: Cannot import `y`."
    assert versions.telling_line("a\nhint: b\n") == "a" and versions.telling_line("") == "nothing was printed"


def test_versions_agree_or_the_line_says_which_does_not(tmp_path: Path) -> None:
    release_check.agreed(ROOT)
    (tmp_path / "xmodal_kd").mkdir()
    texts = {
        "pyproject.toml": '[project]\nversion = "1.2"\n',
        "xmodal_kd/__init__.py": '__version__ = "1.2"\n',
        "CITATION.cff": "cff-version: 1.2.0\nversion: 1.2\n",
        "CHANGELOG.md": "# C\n\n## Unreleased\n\n## 1.1 - 2026-01-01\n",
    }

    def agreed(**changed: str) -> str:
        for name, text in {**texts, **changed}.items():
            (tmp_path / name).write_text(text)
        return str(release_check.agreed(tmp_path))

    assert agreed() == "1.2"
    assert agreed(**{"CHANGELOG.md": "## [1.2] - 2026-02-01\n## 1.1 - 2026-01-01\n"}) == "1.2"
    for name, text, line in [
        ("xmodal_kd/__init__.py", '__version__ = "1.1"\n', "__init__.py has version 1.1"),
        ("CITATION.cff", "cff-version: 1.2.0\n", "CITATION.cff has version none"),
        ("CHANGELOG.md", "## Unreleased\n## 1.2 - 2026-02-01\n", "changes after 1.2"),
        ("CHANGELOG.md", "## 1.1 - 2026-02-01\n", "nothing of 1.2"),
        ("CHANGELOG.md", "## 1.2\n", "no date for 1.2"),
    ]:
        with pytest.raises(release_check.ReleaseError, match=re.escape(line)):
            agreed(**{name: text})
