"""What check says of a saved teacher, and how it says all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy
from check_findings import findings, wrong

from xmodal_kd.check import saved
from xmodal_kd.check.subject import prepare
from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.runtime.checkpoint import digest
from xmodal_kd.runtime.random_streams import Streams

# ---------------------------------------------------------------- a saved teacher


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A saved teacher; its card declares what it reaches."""
    made = toy.adapter()
    with Streams(1).forked("teacher"):
        net = made.build("teacher", "mlp", {"width": 24})
    error = made.evaluate("teacher", net.eval(), "test").metrics["error"]
    net.card["metrics"] = {"error": error}
    made.save("teacher", net, tmp_path / "run" / "teacher")
    return tmp_path / "run" / "teacher"


def test_teacher_folder(recipe: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = findings(recipe, f"teacher.path={teacher}")
    assert wrong(sound) == [] and "teacher folder" in {f.check for f in sound}
    [time] = [f.found for f in sound if f.check == "time"]
    assert "teacher" not in time, "a saved teacher takes no time"
    monkeypatch.setattr(toy.ToyAdapter, "lint", lambda self, folder: [("warn", "a trap", "step aside")], raising=False)
    found = findings(recipe, f"teacher.path={teacher}")
    assert wrong(found) == [f"warn teacher folder: {teacher}: a trap"]


def test_gate(recipe: Path, teacher: Path) -> None:
    def gated(*sets: str) -> list[str]:
        return wrong(list(saved.gate(prepare(load(str(recipe), sets), "cpu"))))

    path = f"teacher.path={teacher}"
    assert gated(path) == []
    card = json.loads((teacher / "card.json").read_text())
    reached = card["metrics"].pop("error")
    (teacher / "card.json").write_text(json.dumps(card | {"metrics": {"error": reached / 2}}))
    problem = f"fail gate: error {reached:.4g} on test, its card declares {reached / 2:.4g}"
    assert gated(path) == [problem]
    assert wrong(findings(recipe, path)) == [], "only on demand"
    assert wrong(findings(recipe, path, gate=True)) == [problem]
    (teacher / "card.json").write_text(json.dumps(card))
    assert gated(path) == [f"fail gate: {teacher} declares no error"]
    for name, share in (("state.json", 2), ("report.json", 3)):  # the report wins
        report = {"roles": {"teacher": {"metrics": {"error": reached / share}}}}
        (teacher.parent / name).write_text(json.dumps(report))
        assert gated(path) == [f"fail gate: error {reached:.4g} on test, run/{name} declares {reached / share:.4g}"]
    assert gated() == ["fail gate: the recipe has no saved teacher to measure"]


def test_checking_leaves_the_teacher(recipe: Path, teacher: Path) -> None:
    files = {p.name: p.read_bytes() for p in teacher.iterdir()}
    before = digest(toy.adapter().load("teacher", teacher).state_dict().items())
    findings(recipe, f"teacher.path={teacher}", gate=True)
    assert {p.name: p.read_bytes() for p in teacher.iterdir()} == files
    assert digest(toy.adapter().load("teacher", teacher).state_dict().items()) == before


def test_status_and_json(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", str(recipe), "--allow-import", "toy", "--device", "cpu", "--json"]
    assert call(command) == 0
    sound = json.loads(capsys.readouterr().out)
    assert {"check", "status", "found", "advice"} == sound[0].keys()
    assert call([*command, "--gate"]) == 1
    assert "fail" in [f["status"] for f in json.loads(capsys.readouterr().out)]
    assert call([*command[:-1], "--set", "student.model=leaky"]) == 1
    assert "mask what the model sees" in " ".join(capsys.readouterr().out.replace("│", " ").split())
