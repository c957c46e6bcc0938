"""The quickstart: its recipes run with the teachers in assets, its teachers have cards, a second call is quick."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.report import model_cards as cards
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.random_streams import Streams

ROOT = Path(__file__).parents[2]
TEACHERS = ROOT / "assets/teachers"
MODALITIES = ("diffusion", "points", "speech")
#: Keys that make a run of seconds of the quickstart's.
SMALL = ("data.compose.utterances={train: 16, dev: 4, test: 4}", "train.batch_size=4", "train.steps=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The speech part with few steps, as make calls it: in the repository's root."""
    folder, before = tmp_path_factory.mktemp("quickstart"), Path.cwd()
    sets = [part for setting in SMALL for part in ("--set", setting)]
    os.chdir(ROOT)
    try:
        command = ["run", "quickstart/speech", "--resume", "--out", str(folder / "speech"), "--quiet", "--json", *sets]
        assert call(command) == 0
    finally:
        os.chdir(before)
    return folder


def test_one_table_and_one_page_show_the_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["report", "--index", str(runs)]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("speech", "teacher", "control", "student", "gain", "wer ↓"))
    assert str(runs / "index.html") in said.replace("\n", "")
    page = (runs / "index.html").read_text()
    assert 'href="speech/report.html"' in page and "wer on test, less is better" in page
    assert call(["report", "--index", str(runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"index": str(runs / "index.html")}


def test_the_student_carries_a_card(runs: Path) -> None:
    student, report = runs / "speech/student", read_json(runs / "speech/report.json")
    text, value = (student / cards.README).read_text(), report["roles"]["student"]["metrics"]["wer"]
    assert f"{value:.4f}" in text and "| control |" in text and "quickstart/speech" in text
    assert cards.licences(student) == ["apache-2.0"] and "inherited from its teacher: apache-2.0" in text
    assert "xmodal-kd transcribe" in text and read_json(student / "card.json")["metrics"]["wer"] == value


@pytest.mark.parametrize("name", MODALITIES)
def test_a_teacher_is_what_its_recipe_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    loaded = load(f"quickstart/{name}")
    assert loaded.recipe.out == Path("runs/quickstart") / name
    streams, teacher = Streams(loaded.recipe.seed), loaded.recipe.teacher
    assert teacher is not None and teacher.path == Path("assets/teachers") / name
    adapter = make_adapter(loaded, streams)
    saved = adapter.load("teacher", teacher.path)
    fresh = adapter.build("teacher", str(teacher.model), teacher.params)
    assert {k: v.shape for k, v in saved.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}


@pytest.mark.parametrize("name", MODALITIES)
def test_teachers_are_small_and_say_how_they_were_made(name: str) -> None:
    folder = TEACHERS / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1_000_000
    text = (folder / cards.README).read_text()
    assert f"xmodal-kd run quickstart/{name} --set teacher.path=null --only teacher" in text
    assert "SHA-256" in text and cards.licences(folder) == [load(f"quickstart/{name}").recipe.data["license"]]


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make here")
    for name in ("Makefile", "pyproject.toml", "setup.py", "requirements/lock.txt", "tools/install.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.installed").touch()
    (tmp_path / "runs/quickstart/speech").mkdir(parents=True)
    (tmp_path / "runs/quickstart/speech/report.html").touch()

    def planned() -> str:
        done = subprocess.run([make, "-n", "quickstart"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    first = planned()
    assert "run quickstart/points --resume" in first and "run quickstart/speech" not in first
    for name in MODALITIES:
        (tmp_path / "runs/quickstart" / name).mkdir(exist_ok=True)
        (tmp_path / "runs/quickstart" / name / "report.html").touch()
    assert " run " not in planned() and "report runs/quickstart --index" in planned()
