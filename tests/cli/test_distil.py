"""``distil``: the recipe that ``new`` writes is kept, checked and run; what stops it says how to go on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from refusals import Capture
from source_files import ROOT

from xmodal_kd.check import Finding
from xmodal_kd.cli.main import call

ASSETS = ROOT / "assets"
COMMAND = [
    "distil",
    "speech",
    "--teacher",
    str(ASSETS / "teachers/speech"),
    "--data",
    str(ASSETS / "digits"),
    "--small",
]
#: A report as far as the program shows it.
REPORT = {"metric": {"name": "wer"}, "roles": {}, "gap_closed": None, "reason": "nothing was trained"}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, Any]]]:
    """Recipes and options of the runs that were asked for, none of which is run."""
    asked: list[tuple[Any, Any]] = []

    class Run:
        main = True

        def __init__(self, loaded: Any, options: Any) -> None:
            asked.append((loaded, options))

        def execute(self) -> dict[str, Any]:
            return REPORT

    monkeypatch.setattr("xmodal_kd.run.runner.Run", Run)
    monkeypatch.setattr("xmodal_kd.check.check", lambda loaded, device: [Finding("build", "pass", "")])
    yield asked


def test_new_check_run(tmp_path: Path, runs: list[tuple[Any, Any]], capfd: Capture) -> None:
    out = tmp_path / "run"
    assert call([*COMMAND, "--out", str(out), "--set", "train.steps=3", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == REPORT
    [(loaded, options)] = runs
    assert loaded.source == out / "draft.yaml" and loaded.recipe.train.steps == 3 and options.out == out
    assert "taught by" in loaded.source.read_text()
    assert call([*COMMAND, "--out", str(out)]) == 2
    assert "--out starts another" in capfd.readouterr().err
    assert call([*COMMAND, "--out", str(out), "--resume"]) == 0 and runs[-1][1].resume


def test_what_check_finds_stops_it(
    tmp_path: Path, runs: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setattr("xmodal_kd.check.check", lambda loaded, device: [Finding("labels", "fail", "none")])
    assert call([*COMMAND, "--out", str(tmp_path / "run")]) == 1 and not runs
    assert f"then: xmodal-kd run {tmp_path / 'run/draft.yaml'}" in capfd.readouterr().err.replace("\n", " ")


def test_a_folder_of_something_else_stays_as_it_is(tmp_path: Path, runs: list[tuple[Any, Any]], capfd: Capture) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert call([*COMMAND, "--out", str(tmp_path)]) == 2 and not runs
    assert "not empty and not a run" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


SAMPLER = ASSETS / "teachers/diffusion"
#: Of diffusion a network that learns features first, then two stages; samples and evaluations as few as can be.
FEW = ["method.params.features=2", "data.samples=12", "data.draws=1", "data.sampling.steps=8"]


@pytest.mark.full
@pytest.mark.parametrize(("what", "sets", "card"), [
    (COMMAND[1:], [], "card.json"),
    (["diffusion", "--teacher", str(SAMPLER), "--data", "digits", "--small"], FEW, "sampler.json"),
    (["images", "--data", "digits", "--small"], ["teacher.train.steps=4"], "card.json"),
], ids=["speech", "diffusion", "images"])  # fmt: skip
def test_a_whole_one(what: list[str], sets: list[str], card: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = [part for s in ["train.steps=4", "train.batch_size=8", *sets] for part in ("--set", s)]
    assert call(["distil", *what, "--out", str(out), "--quiet", *settings]) == 0
    report = json.loads((out / "report.json").read_text())
    assert {"teacher", "control", "student"} <= report["roles"].keys()
    assert all(math.isfinite(role["metrics"][report["metric"]["name"]]) for role in report["roles"].values())
    assert (out / "draft.yaml").is_file() and (out / "student" / card).is_file() and (out / "report.html").is_file()
