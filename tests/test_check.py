"""`check` passes a sound recipe, and finds each thing that was broken in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor, nn

from xmodal_kd.check import Finding, check
from xmodal_kd.cli import call
from xmodal_kd.losses import LOSSES, loss
from xmodal_kd.recipe import load
from xmodal_kd.registry import allowed_imports

if "test_rising" not in LOSSES:

    @loss("test_rising", reduction="rows", family="test", paper="none", year=2026)
    def rising(student: Tensor) -> Tensor:
        """Its gradient has the wrong sign."""
        return (2 * student.detach() - student).square().mean(dim=1)


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("xmodal_kd.registry.allowed_imports", allowed_imports | {"toy"})
    yield


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(toy.RECIPE)
    return path


def findings(recipe: Path, *sets: str) -> list[Finding]:
    return check(load(str(recipe), sets), "cpu")


def failed(found: list[Finding]) -> list[str]:
    return [f"{f.check}: {f.found}" for f in found if f.status == "fail"]


def test_a_sound_recipe_passes(recipe: Path) -> None:
    found = findings(recipe)
    assert failed(found) == []
    names = {f.check for f in found}
    assert names == {
        "build", "signals", "classes", "class order", "padding", "frozen teacher", "gradients", "overfit", "left out",
    }  # fmt: skip


def test_checking_changes_no_result(recipe: Path) -> None:
    state = torch.random.get_rng_state()
    findings(recipe)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_teacher_that_trains(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = toy.ToyAdapter.signals

    def signals(self: Any, role: str, model: nn.Module, *args: Any) -> Any:
        return said(self, role, model.train(), *args)  # the trap: BatchNorm drifts even under no_grad

    monkeypatch.setattr(toy.ToyAdapter, "signals", signals)
    found = failed(findings(recipe, "teacher.params.batch_norm=true"))
    assert "frozen teacher: its weights or buffers moved; a module of it is in training mode" in found


def test_a_parameter_without_gradient(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = toy.ToyAdapter.build

    def build(self: Any, role: str, *args: Any) -> nn.Module:
        net = built(self, role, *args)
        if role == "student":
            net.unused = nn.Linear(2, 2)
        return net

    monkeypatch.setattr(toy.ToyAdapter, "build", build)
    [found] = failed(findings(recipe))
    assert found.startswith("gradients: 2 of ") and found.endswith("the first is student.unused.weight")


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_padding_that_leaks(recipe: Path, role: str) -> None:
    found = failed(findings(recipe, f"{role}.model=leaky"))
    assert len(found) == 1 and found[0].startswith(f"padding: {role}: a sample's logits move by")


def test_class_order(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ("red", "blue", "green", "black")
    monkeypatch.setattr(toy.ToyAdapter, "class_names", lambda self, role: other if role == "teacher" else toy.NAMES)
    [found] = failed(findings(recipe))
    assert found == "class order: class 1 is ('blue',) for the teacher, ('green',) for the student"


def test_number_of_classes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = toy.ToyAdapter.build

    def build(self: Any, role: str, *args: Any) -> nn.Module:
        net = built(self, role, *args)
        if role == "teacher":
            net.head = nn.Linear(24, 5)
        return net

    monkeypatch.setattr(toy.ToyAdapter, "build", build)
    assert "classes: teacher 5 classes, student 4" in failed(findings(recipe))


def test_nan(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = toy.adapter().data("train").plan(0)[0][0]
    found = failed(findings(recipe, f"data.nan={index}"))
    assert any(f.startswith("signals: student.logits") and f.endswith("NaN or Inf in valid rows") for f in found)


def test_a_term_that_does_not_fall(recipe: Path) -> None:
    found = failed(findings(recipe, "objective.1={loss: test_rising}"))
    assert len(found) == 1 and found[0].startswith("overfit: test_rising: ")


def test_a_term_of_weight_nought_is_named(recipe: Path) -> None:
    found = findings(recipe, "objective.1.weight=0")
    assert not failed(found)
    assert [f.found for f in found if f.status == "warn"] == [
        "kd: its weight is 0 at the first step, so it was not tried"
    ]


def test_unknown_module(recipe: Path) -> None:
    [found] = failed(findings(recipe, "objective.2.on=bodi"))
    assert found.startswith("signals: no module 'bodi' in Net (nearest: body")


def test_status_and_json(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", str(recipe), "--allow-import", "toy", "--device", "cpu", "--json"]
    assert call(command) == 0
    sound = json.loads(capsys.readouterr().out)
    assert {"check", "status", "found", "advice"} == sound[0].keys()
    assert call([*command, "--set", "student.model=leaky"]) == 1
    assert "fail" in [f["status"] for f in json.loads(capsys.readouterr().out)]
    assert call([*command[:-1], "--set", "student.model=leaky"]) == 1
    assert "mask what the model sees" in " ".join(capsys.readouterr().out.replace("│", " ").split())
