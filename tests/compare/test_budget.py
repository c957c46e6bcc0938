"""Comparisons at equal time: what is measured, what it makes of the steps, and that it is measured once."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import RECIPE

from xmodal_kd.compare import Plan, Pool, Settings, budget, compare
from xmodal_kd.recipe.recipe import Loaded
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.registry import allowed_imports

SHORT = ("train.steps=12", "teacher.train.steps=3", "trackers=[]")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return str(tmp_path / "toy.yaml")


def pool(out: Path) -> Pool:
    def never(*_: object) -> None:
        raise AssertionError("nothing is to be trained here")

    return Pool(Settings(out, device="cpu", quiet=True), never)  # type: ignore[arg-type]


def test_steps_are_what_fits_into_the_controls_time(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def times(arm: Loaded, control: Loaded, device: str) -> tuple[float, float]:
        losses = [term.loss for term in arm.recipe.objective]
        asked.append(losses)
        assert control.recipe.teacher is None and control.recipe.train.steps == 12
        return (0.004 if "kd" in losses else 0.025), 0.002

    monkeypatch.setattr(budget, "times", times)
    plan, mine = Plan(recipe, SHORT, methods="kd,hint@body", seeds=2), pool(tmp_path)
    kd, hint = budget.paced(plan, mine, plan.arms)
    assert (kd.steps, hint.steps, kd.pace) == (6, 1, (4.0, 2.0))
    assert [plan.cell(kd, seed).loaded.recipe.train.steps for seed in plan.seeds] == [6, 6]
    assert plan.control(kd, 3) == plan.control(plan.arms[0], 3), "the control keeps the recipe's"
    assert plan.teacher(kd, 3) == plan.teacher(plan.arms[0], 3), "and so does the teacher"
    again = budget.paced(Plan(recipe, SHORT, methods="kd,hint@body"), mine, plan.arms)
    assert again == [kd, hint] and len(asked) == 2, "the same command finds the same steps"
    budget.paced(Plan(recipe, [*SHORT, "train.batch_size=4"], methods="kd"), mine, plan.arms[:1])
    assert len(asked) == 3 and len(read_json(tmp_path / budget.FILE)) == 2 + 1, "other content is measured anew"


def test_a_slow_teacher_costs_steps(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on the engine: an arm pays for its teacher's forward pass."""
    from time import sleep

    from toy import ToyAdapter

    signals = ToyAdapter.signals

    def slow(self: ToyAdapter, role: str, *rest: object) -> object:
        sleep(0.05 if role == "teacher" else 0)
        return signals(self, role, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ToyAdapter, "signals", slow)
    monkeypatch.setattr(budget, "TURNS", 1)
    plan = Plan(recipe, SHORT, methods="kd", seeds=1)
    control = plan.control(plan.arms[0], 3)
    assert control is not None
    ours, theirs = budget.times(plan.cell(plan.arms[0], 3).loaded, control.loaded, "cpu")
    assert ours > theirs + 0.02 > 0.02


def test_an_arm_whose_control_has_no_time_is_refused(recipe: str, tmp_path: Path) -> None:
    plan = Plan(recipe, [*SHORT, "objective=[{loss: kd}]"], axes=["train.ema=0.5,0.9"])
    with pytest.raises(UserError, match=r"train\.ema=0\.5: its control is not trained, so it has no time"):
        compare(plan, pool(tmp_path), equal="time")
    cached = Plan(recipe, [*SHORT, "cache={path: there}"], methods="kd")
    with pytest.raises(UserError, match="a cached teacher's time"):
        compare(cached, pool(tmp_path), equal="time")


def test_the_page_says_what_was_equal() -> None:
    from xmodal_kd.compare.report import _budget

    arm = {"name": "kd", "steps": 1200, "pace_ms": [5.0, 2.0]}
    text = _budget({"equal": "time", "arms": [arm]})
    assert "kd 1,200 (2.50 times the control's step)" in text and "as many fewer samples" in text
    assert _budget({"equal": "steps", "arms": []}) == ""
