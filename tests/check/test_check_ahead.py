"""What `check` says of files and places, whatever else fails: grouped, never cut, written where it is asked to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy

from xmodal_kd.adapter.listed import Listed
from xmodal_kd.check import Finding, ahead, check, merged
from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.listed_files import look
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.registry import allowed_imports


@pytest.fixture(autouse=True)
def around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(toy.RECIPE)
    return path


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Twenty files that toy samples stand on, and what was opened of them."""
    folder = tmp_path / "a folder with a name as long as the ones that people really have on their disks" / "recordings"
    folder.mkdir(parents=True)
    paths = [folder / f"sample-{i:02d}.txt" for i in range(20)]
    for path in paths:
        path.write_text("sound")

    def files(cls: type, data: Any) -> Iterable[Listed]:
        return [Listed(path.stem, path, _sound) for path in paths]

    monkeypatch.setattr(toy.ToyAdapter, "files", classmethod(files))
    return paths


def _sound(path: Path) -> None:
    if path.read_text() != "sound":
        raise UserError(f"{path}: it is not sound")


def failed(found: list[Finding]) -> list[str]:
    return [f"{f.check}: {f.found}" for f in found if f.status == "fail"]


def test_files_are_grouped_by_what_is_wrong_and_listed(
    recipe: Path, listed: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in listed[:12]:
        path.unlink()
    for path in listed[12:14]:
        path.write_text("broken")
    listed[14].write_text("")
    bad = tmp_path / "bad.txt"
    command = ["check", str(recipe), "--allow-import", "toy", "--device", "cpu", "--bad", str(bad)]
    assert call([*command, "--json"]) == 1
    found = [f for f in json.loads(capsys.readouterr().out) if f["status"] == "fail"]
    assert [f["check"] for f in found] == ["files"] * 3
    assert found[0]["found"].startswith(f"12 files: no such file: {listed[0]}, ") and "and 2 more" in found[0]["found"]
    assert found[0]["found"].count("sample-") == 10
    assert found[1]["found"] == f"2 files: it is not sound: {listed[12]}, {listed[13]}"
    assert found[2]["found"] == f"sample sample-14: {listed[14]}: empty: it holds no bytes"
    assert all("data.skip" in f["advice"] for f in found)
    assert bad.read_text().splitlines() == [path.stem for path in listed[:15]]
    assert call(command) == 1
    table = "".join(capsys.readouterr().out.split())
    assert "…" not in table and table.count("sample-") >= 13
    assert call([*command[:-1], str(tmp_path / "no" / "such" / "folder" / "bad.txt")]) == 1
    assert "--bad" in capsys.readouterr().out


def test_a_path_is_folded_not_cut(
    recipe: Path, listed: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    listed[3].unlink()
    assert call(["check", str(recipe), "--allow-import", "toy", "--device", "cpu", "--set", "student.model=mpl"]) == 1
    rows = [line.split("│")[3] for line in capsys.readouterr().out.splitlines() if line.count("│") >= 4]
    assert "".join(str(listed[3]).split()) in "".join("".join(rows).split())


def test_each_says_what_it_finds_whatever_the_others_do(recipe: Path, listed: list[Path], tmp_path: Path) -> None:
    listed[0].unlink()
    (tmp_path / "file").write_text("")
    sets = ["cache={path: file/inside}", "student.model=mpl"]
    found = failed(check(load(str(recipe), sets), "cpu"))
    assert [line.partition(":")[0] for line in found] == ["places", "files", "build"]
    found = failed(check(load(str(recipe), ["objective.2.on=bodi", "cache={path: file/inside}"]), "cpu"))
    assert {line.partition(":")[0] for line in found} == {"places", "files", "modules", "cache"}


def test_the_rehearsal_goes_on_with_what_does_not_hang_on_a_failure(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = toy.ToyAdapter.evaluate

    def broken(self: Any, role: str, *args: Any) -> Any:
        if role != "control":
            raise TypeError(f"no {role} today")
        return original(self, role, *args)

    monkeypatch.setattr(toy.ToyAdapter, "evaluate", broken)
    found = failed(check(load(str(recipe)), "cpu"))
    assert len(found) == 2 and "no teacher today" in found[0] and "no student today" in found[1]
    assert all(line.startswith("rehearsal: ") for line in found)


def test_equal_findings_stand_once() -> None:
    one, other = Finding("a", "fail", "broken"), Finding("b", "fail", "broken", "mend it")
    sound = [Finding("c", "pass", "well"), Finding("d", "pass", "well")]
    assert merged([one, *sound, other, other]) == [
        Finding("a", "fail", "broken (3 times: also b)", "mend it"), *sound
    ]  # fmt: skip


def test_what_was_sound_is_not_opened_again(listed: list[Path]) -> None:
    opened: list[Path] = []

    def counting(path: Path) -> None:
        opened.append(path)
        _sound(path)

    def again() -> tuple[int, int, int]:
        opened.clear()
        found = look([Listed(path.stem, path, counting) for path in listed])
        return found.files, len(opened), len(found.bad)

    assert again() == (20, 20, 0)
    assert again() == (20, 0, 0)
    listed[3].write_text("broken")
    listed[4].unlink()
    assert again() == (20, 1, 2)
    assert again() == (20, 1, 2), "what is bad is looked at every time"
    listed[3].write_text("sound")
    assert again() == (20, 1, 1)


def test_a_memory_that_cannot_be_kept_costs_time_alone(
    listed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert look([Listed(path.stem, path, _sound) for path in listed]).opened == 20
    (tmp_path / "user" / "xmodal-kd").mkdir(parents=True)
    (tmp_path / "user" / "xmodal-kd" / "files.sqlite").write_bytes(b"no database" * 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert look([Listed(path.stem, path, _sound) for path in listed]).opened == 20


def test_where_a_run_would_be_written(recipe: Path) -> None:
    assert ahead.folder_of(load(str(recipe))) == Path("runs/toy")
    assert ahead.folder_of(load(str(recipe), ["out=elsewhere"])) == Path("elsewhere")
