"""`check` on the few-step methods of the diffusion room: stages, averages, losses of their own, a saved teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xmodal_kd.check import Finding, check
from xmodal_kd.check.subject import prepare
from xmodal_kd.recipe.recipe import load

SMALL = ("teacher.params={channels: [8]}", "train.batch_size=8", "teacher.train.batch_size=8")


def wrong(found: list[Finding]) -> list[str]:
    return [f"{f.status} {f.check}: {f.found}" for f in found if f.status != "pass"]


@pytest.mark.parametrize(("method", "term"), [
    pytest.param("{name: progressive, params: {end: 2}}", "progressive", marks=pytest.mark.full),
    pytest.param("{name: consistency, params: {grid: 64}}", "consistency", marks=pytest.mark.full),
    pytest.param("{name: ect, params: {grid: 64}}", "ect", marks=pytest.mark.full),
])  # fmt: skip
def test_few_step_methods_pass(method: str, term: str) -> None:
    found = check(load("smoke/diffusion", [*SMALL, f"method={method}"]), "cpu")
    assert wrong(found) == []
    assert any(f.check == "overfit" and f.found.startswith(term) for f in found)
    [time] = [f.found for f in found if f.check == "time"]
    assert "control" not in time, "the control of these methods is not trained"
    assert f"student {120 if term == 'progressive' else 30} steps" in time


def test_a_scheduler_with_traps(tmp_path: Path) -> None:
    subject = prepare(load("smoke/diffusion", SMALL), "cpu")
    subject.adapter.save("teacher", subject.roles["teacher"], tmp_path / "teacher")
    folder = tmp_path / "teacher"
    assert list(subject.adapter.lint(folder)) == []
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"timestep_spacing": "leading"}))
    [(status, what, advice)] = subject.adapter.lint(folder)
    assert status == "warn" and what.startswith("timestep_spacing 'leading'") and "trailing" in advice


def test_what_a_sampler_declares(tmp_path: Path) -> None:
    adapter = prepare(load("smoke/diffusion", SMALL), "cpu").adapter
    assert adapter.declared(tmp_path) == {}
    facts = {"role": "teacher", "metrics": {"teacher": {"fd_clf": 2.0}, "student": {"fd_clf": 3.0}}}
    (tmp_path / "sampler.json").write_text(json.dumps({"facts": facts}))
    assert adapter.declared(tmp_path) == {"fd_clf": 2.0}
