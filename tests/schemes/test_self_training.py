"""The second control: the first one, frozen, teaches the student's twin on the student's batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import RECIPE, ToyAdapter

from xmodal_kd.adapter.adapter import ControlSpec, NoControl
from xmodal_kd.check import check
from xmodal_kd.cli.main import call
from xmodal_kd.compare.plan import Plan
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import self_training_spec
from xmodal_kd.runtime.checkpoint import digest, read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.registry import allowed_imports
from xmodal_kd.training.method import METHODS, Distil

if "test_single" not in METHODS:

    class Staged(Distil):
        """A method of another name."""

    METHODS.add("test_single", Staged)


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    yield


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE.replace("test_ce", "ce"))
    return str(path)


def run(recipe: str, out: Path, *sets: str) -> int:
    words = [word for one in sets for word in ("--set", one)]
    return call(["run", recipe, "--out", str(out), "--allow-import", "toy", "--quiet", *words])


def twin(recipe: str, *sets: str, scarce: bool = True) -> Any:
    return self_training_spec(load(recipe, sets).recipe, scarce)


def test_self_training_takes_the_terms_of_answers(recipe: str) -> None:
    """The hint compares features, which the control has of another kind."""
    assert twin(recipe) == ControlSpec(("ce", "kd"))
    assert twin(recipe, scarce=False) is None and twin(recipe, "self_training=false") is None
    assert twin(recipe, "self_training=true", scarce=False) == ControlSpec(("ce", "kd"))


@pytest.mark.parametrize(("sets", "reason"), [
    (["objective=[{loss: ce}, {loss: hint, on: body}]"], "no term compares what student and teacher answer"),
    (["objective=[{loss: ce}, {loss: kd, weight: 0}]"], "no term compares"),
    (["objective=[{loss: kd}]"], "no control to learn from"),
    (["control=false"], "no control to learn from (control: false)"),
    (["teacher=null"], "without a teacher"),
    (["method=test_single"], "is not distil"),
])  # fmt: skip
def test_where_there_can_be_none_it_says_why(recipe: str, sets: list[str], reason: str) -> None:
    found = twin(recipe, *sets)
    assert isinstance(found, NoControl) and reason in found.reason
    with pytest.raises(UserError, match="self_training: "):
        twin(recipe, *sets, "self_training=true")


def test_the_control_teaches_the_students_twin(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the student's batches, frozen, by its own name; and a killed run goes on to the same report."""
    sets = ("labels=6", "student.params={width: 8}")
    monkeypatch.setattr("xmodal_kd.run.rehearsal.Rehearsal.go", lambda self: None)  # it steps copies, too
    before, batches = dict[str, str](), dict[str, list[list[int]]]()
    losses = Distil.losses

    def watched(self: Distil, batch: Any, models: Any, ctx: Any) -> Any:
        if self.role in ("student", "self_training"):
            batches.setdefault(self.role, []).append(batch["ids"].tolist())
        if self.role == "self_training":
            assert self.teacher == "control" and set(models) - {"average"} == {"self_training", "control"}
            assert not models["control"].training
            now = digest(models["control"].state_dict().items())
            assert before.setdefault("control", now) == now
        return losses(self, batch, models, ctx)

    monkeypatch.setattr(Distil, "losses", watched)
    assert run(recipe, tmp_path / "run", *sets) == 0
    found = read_json(tmp_path / "run" / "report.json")
    assert list(found["roles"]) == ["teacher", "control", "self_training", "student"]
    assert found["self_training"] == {"terms": ["ce", "kd"]}
    assert found["labels"]["self_training"] == found["labels"]["student"]
    assert found["gain_over_self_training"]["interval"] is not None
    assert found["cost"]["self_training"]["flops_per_step"] > found["cost"]["control"]["flops_per_step"]
    assert batches["student"] == batches["self_training"]
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| self_training |" in text and "Self-training less student" in text and "with the control as" in text

    killed = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyAdapter, "save", _dies_at("self_training", ToyAdapter.save))
        with pytest.raises(SystemExit):
            run(recipe, killed, *sets)
    words = [word for one in sets for word in ("--set", one)]
    assert call(["run", recipe, "--out", str(killed), "--allow-import", "toy", "--quiet", "--resume", *words]) == 0
    again = read_json(killed / "report.json")
    assert {k: v["metrics"] for k, v in again["roles"].items()} == {k: v["metrics"] for k, v in found["roles"].items()}


def _dies_at(role: str, save: Any) -> Any:
    def dying(self: Any, who: str, *rest: Any) -> None:
        if who == role:
            raise SystemExit
        save(self, who, *rest)

    return dying


def test_check_rehearses_it(recipe: str) -> None:
    found = check(load(recipe, ["labels=6"]), "cpu")
    assert [(one.check, one.found) for one in found if one.status == "fail"] == []
    [time] = [one.found for one in found if one.check == "time"]
    assert "self_training 8 steps" in time


def test_a_comparison_has_no_such_arm(recipe: str) -> None:
    plan = Plan(recipe, ["labels=6", "self_training=true"], methods="kd", seeds=1)
    [arm] = plan.arms
    cell, control = plan.cell(arm, 3), plan.control(arm, 3)
    assert control is not None and cell.teacher is not None
    assert not any(one.loaded.recipe.self_training for one in (cell, control, cell.teacher))
    assert [one.loaded.recipe.labels for one in (cell, control, cell.teacher)] == [6, 6, None]
