"""`check` passes a sound recipe; each fault is found by the check that is there for it, and by no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from check_findings import findings, wrong
from torch import Tensor, nn
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.check import check, rehearsal, terms
from xmodal_kd.check.subject import prepare
from xmodal_kd.losses import LOSSES, loss
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.recipe.recipe import load
from xmodal_kd.signals.signals import Signals
from xmodal_kd.training.method import METHODS, Context, Distil, Ema, NoParams, Roles, Stage

if "test_rising" not in LOSSES:

    @loss("test_rising", reduction="rows", family="test", paper="none", year=2026)
    def rising(student: Tensor) -> Tensor:
        """Its gradient has the wrong sign."""
        return (2 * student.detach() - student).square().mean(dim=1)

    @loss("test_blank", reduction="rows", family="test", paper="none", year=2026)
    def with_blank(student: Tensor, labels: Tensor, *, blank: int = 0) -> Tensor:
        """A cross entropy that knows of a blank."""
        return toy.ce(student, labels)  # type: ignore[no-any-return]


class Two(Distil):
    """Two stages, the second without the objective, towards an average; a frozen judge looks on."""

    touched, split, forgotten = False, False, False

    def stages(self) -> list[Stage]:
        follow = {"follower": Ema("student", 0.5)}
        first = Stage("first", self.train.steps, frozenset({"student"}))
        return [first, Stage("second", 2 * self.train.steps, frozenset({"student"}), ema=follow)]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        if stage.name == "first":
            roles["judge"] = nn.BatchNorm1d(4).eval().requires_grad_(False)
            found = dict(super().begin(stage, roles, batch))
            if self.split:
                found["again"] = torch.optim.SGD(roles["student"].head.parameters(), lr=1e-3)  # type: ignore[union-attr, arg-type]
            return found
        student = roles["student"]
        kept = [p for name, p in student.named_parameters() if not (self.forgotten and name.startswith("head"))]
        return {"student": torch.optim.SGD(kept, lr=1e-2)}

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        if ctx.stage.name == "first":
            yield from super().losses(batch, roles, ctx)
            return
        rows, layout = self.forward_role("student", roles, batch)["logits"]
        with torch.no_grad():
            aim = self.forward_role("teacher", roles, batch).rows("logits")[layout.mask]
            roles["judge"].train(self.touched)(aim)
            assert self.forward_role("follower", roles, batch, of="student").rows("logits").shape == rows.shape
        yield "student", LossOut.mean("nearer", (rows[layout.mask] - aim).square().mean(dim=1))


if "test_two" not in METHODS:
    METHODS.add("test_two", Two)
    Two.Params = NoParams


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Any], None]], None]:
    """``built(role, change)``: what the adapter builds for a role is changed."""
    original = toy.ToyAdapter.build

    def patch(who: str, change: Callable[[Any], None]) -> None:
        def build(self: Any, role: str, *args: Any) -> nn.Module:
            net = original(self, role, *args)
            if role == who:
                change(net)
            return net

        monkeypatch.setattr(toy.ToyAdapter, "build", build)

    return patch


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Signals]], None]:
    """``said(change)``: ``change(role, model, signals)`` is what the adapter says instead."""
    original = toy.ToyAdapter.signals

    def patch(change: Callable[[str, nn.Module, Signals], Signals]) -> None:
        def signals(self: Any, role: str, model: nn.Module, *args: Any) -> Signals:
            return change(role, model, original(self, role, model, *args))

        monkeypatch.setattr(toy.ToyAdapter, "signals", signals)

    return patch


# ---------------------------------------------------------------- what is sound


def test_a_sound_recipe_passes(recipe: Path) -> None:
    loaded = load(str(recipe))
    before, state = loaded.recipe.model_copy(deep=True), torch.random.get_rng_state()
    found = check(loaded, "cpu")
    assert wrong(found) == []
    assert [*dict.fromkeys(f.check for f in found)] == [
        "places", "build", "modules", "splits", "signals", "classes", "labels", "counts", "class order", "left out",
        "padding", "masked rows", "overfit", "balance", "optimizers", "gradients", "frozen roles", "memory", "time",
        "rehearsal",
    ]  # fmt: skip
    assert loaded.recipe == before
    assert torch.equal(torch.random.get_rng_state(), state), "checking draws from the caller's randomness"


def test_a_method_of_several_stages_passes(recipe: Path) -> None:
    found = findings(recipe, "method=test_two")
    assert wrong(found) == []
    by = {(f.check, f.found.partition(":")[0]): f.found for f in found}
    assert "nearer: " in by["overfit", "nearer"] and "kd: " in by["overfit", "kd"]
    assert by["frozen roles", "judge, teacher"] == "judge, teacher: identical to the bit after 4 steps"
    [time] = [f.found for f in found if f.check == "time"]
    assert "student 24 steps" in time and "control 24 steps" not in time and "teacher 8 steps" in time


# ---------------------------------------------------------------- what cannot start


def test_build(recipe: Path) -> None:
    [_, found] = findings(recipe, "student.model=mpl")
    assert (found.check, found.status) == ("build", "fail") and "mlp" in found.found


def test_unknown_module(recipe: Path) -> None:
    [found] = wrong(findings(recipe, "objective.2.on=bodi"))
    assert found.startswith("fail modules: objective, teacher: no module 'bodi' in Net (nearest: body")


def test_a_sample_that_cannot_be_read(recipe: Path) -> None:
    index = toy.adapter().data("train").plan(0)[0][0]
    assert wrong(findings(recipe, f"data.broken={index}")) == [f"fail splits: toy-{index}: cannot be read"]


def test_nan(recipe: Path) -> None:
    index = toy.adapter().data("train").plan(0)[0][0]
    found = findings(recipe, f"data.nan={index}")
    [line] = wrong(found)
    assert line.startswith("fail signals: teacher.logits") and line.endswith("NaN or Inf in valid rows")
    assert [f.advice for f in found if f.status == "fail"] == [
        "look at the data or the weights; what hangs on it was not tried"
    ]


@pytest.mark.parametrize(("roles", "problem"), [
    (("teacher",), "teacher 5 classes, student 4 classes"),
    (("teacher", "student"), "teacher: 5 outputs and 4 names of classes"),
])  # fmt: skip
def test_classes(recipe: Path, monkeypatch: pytest.MonkeyPatch, roles: tuple[str, ...], problem: str) -> None:
    original = toy.ToyAdapter.build

    def build(self: Any, role: str, *args: Any) -> nn.Module:
        net = original(self, role, *args)
        if role in roles:
            net.head = nn.Linear(net.head.in_features, 5)
        return net

    monkeypatch.setattr(toy.ToyAdapter, "build", build)
    assert wrong(findings(recipe)) == [f"fail classes: {problem}"]


def test_label_range(recipe: Path, said: Callable[..., None]) -> None:
    said(lambda role, model, signals: signals.add("labels", signals.rows("labels") + 2, signals.layout("labels")))
    assert wrong(findings(recipe)) == ["fail labels: labels from 2 to 5, the student's classes are 0 to 3"]


# ---------------------------------------------------------------- what the data say


def test_class_order(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ("red", "blue", "green", "black")
    monkeypatch.setattr(toy.ToyAdapter, "class_names", lambda self, role: other if role == "teacher" else toy.NAMES)
    assert wrong(findings(recipe)) == [
        "fail class order: class 1 is ('blue',) for the teacher, ('green',) for the student"
    ]


@pytest.mark.parametrize(("blank", "term", "problem"), [
    (1, "test_blank", "test_blank: blank 0, where class 1 is the blank"),
    (0, "test_blank", "a label of this batch is the blank, class 0"),
    (None, "test_blank", "test_blank: class 0 is the blank, and this modality has none"),
])  # fmt: skip
def test_blank(recipe: Path, monkeypatch: pytest.MonkeyPatch, blank: int | None, term: str, problem: str) -> None:
    monkeypatch.setattr(toy.ToyAdapter, "blank", blank, raising=False)
    assert wrong(findings(recipe, f"objective.0.loss={term}")) == [f"fail blank: {problem}"]


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_padding_that_leaks(recipe: Path, role: str) -> None:
    [found] = wrong(findings(recipe, f"{role}.model=leaky"))
    assert found.startswith(f"fail padding: {role}: a sample's logits move by")


def test_masked_rows_that_count(recipe: Path, said: Callable[..., None]) -> None:
    def full(role: str, model: nn.Module, signals: Signals) -> Signals:
        for name in list(signals):
            rows, layout = signals[name]
            rows = rows.clamp(min=0) if name == "labels" else torch.nan_to_num(rows)
            signals.add(name, rows, replace(layout, full=True))  # the trap: padding passes for rows
        return signals

    said(full)
    [found] = wrong(findings(recipe))
    assert found.startswith("fail masked rows: ") and "with NaN in masked rows" in found


def test_left_out(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {"samples": 24, "left_out": 6, "left_out_examples": [{"key": "toy-3", "reason": "too short"}]}
    monkeypatch.setattr(toy.ToyAdapter, "describe", lambda self: {"train": lost})
    assert wrong(findings(recipe)) == [
        "warn left out: train: 6 of 30 samples (20.0 %) cannot be used, the first: toy-3: too short"
    ]


# ---------------------------------------------------------------- what the terms do


def test_items_that_cannot_be_scored(recipe: Path) -> None:
    [found] = wrong(findings(recipe, "objective.1={loss: test_items}"))
    assert found.startswith("warn counts: test_items: ") and found.endswith("cannot be scored")


def test_a_term_that_does_not_fall(recipe: Path) -> None:
    [found] = wrong(findings(recipe, "objective.1={loss: test_rising}"))
    assert found.startswith("fail overfit: test_rising: ")


@pytest.mark.parametrize("term", [1, 2])
def test_a_term_of_weight_nought_is_named(recipe: Path, term: int) -> None:
    name = ("kd", "hint")[term - 1]
    assert wrong(findings(recipe, f"objective.{term}.weight=0")) == [
        f"warn overfit: {name}: it has no part in the first step, so it was not tried"
    ]


@pytest.mark.parametrize("weight", [1e5, 1e-5])
def test_a_weight_that_is_orders_of_magnitude_off(recipe: Path, weight: float) -> None:
    found = findings(recipe, f"objective.1.weight={weight}")
    [line] = [f for f in found if f.status != "pass"]
    assert (line.check, line.status) == ("balance", "warn") and line.found.startswith("kd: weighted gradient ")
    better = float(line.advice.split()[3])
    assert 1e-2 < better < 1e2
    again = list(terms.balance(prepare(load(str(recipe), [f"objective.1.weight={better}"]), "cpu")))
    assert [f.status for f in again] == ["pass"] * 3
    assert float(again[1].found.split(", ")[1].split()[0]) == pytest.approx(1, rel=0.1)


# ---------------------------------------------------------------- what a few steps do


def test_a_teacher_that_trains(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = toy.ToyAdapter.signals

    def signals(self: Any, role: str, model: nn.Module, *args: Any) -> Any:
        model.train(model.training or role == "teacher")  # the trap: BatchNorm drifts even under no_grad
        return original(self, role, model, *args)

    monkeypatch.setattr(toy.ToyAdapter, "signals", signals)
    found = wrong(findings(recipe, "teacher.params.batch_norm=true"))
    frozen = "fail frozen roles: teacher: a module is in training mode; teacher: weights or buffers moved"
    assert frozen in found
    assert all(line.startswith(("fail padding: teacher", "fail frozen roles")) for line in found)


def test_a_buffer_that_moves(recipe: Path, said: Callable[..., None]) -> None:
    def count(role: str, model: Any, signals: Signals) -> Signals:
        if role == "teacher":
            model.body[1].num_batches_tracked += 1
        return signals

    said(count)
    assert wrong(findings(recipe, "teacher.params.batch_norm=true")) == [
        "fail frozen roles: teacher: weights or buffers moved"
    ]


def test_a_frozen_role_that_is_no_teacher(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Two, "touched", True)
    assert wrong(findings(recipe, "method=test_two")) == [
        "fail frozen roles: judge: a module is in training mode; judge: weights or buffers moved"
    ]


def test_a_student_put_into_eval_mode(recipe: Path, said: Callable[..., None]) -> None:
    def lull(role: str, model: nn.Module, signals: Signals) -> Signals:
        model.eval()
        return signals

    said(lull)
    assert wrong(findings(recipe)) == [
        f"fail modes: {role}: in eval mode after a training step" for role in ("teacher", "student")
    ]


def test_a_parameter_in_two_optimizers(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Two, "split", True)
    [found] = wrong(findings(recipe, "method=test_two"))
    assert found.startswith("fail optimizers: 2 of ") and found.endswith("the first, student.head.weight, is in 2")


def test_a_parameter_in_no_optimizer(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Two, "forgotten", True)
    [found] = wrong(findings(recipe, "method=test_two"))
    assert found.startswith("fail optimizers: 2 of ") and found.endswith("the first, student.head.weight, is in 0")


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_parameter_without_gradient(recipe: Path, built: Callable[..., None], role: str) -> None:
    built(role, lambda net: net.add_module("unused", nn.Linear(2, 2)))
    [found] = wrong(findings(recipe))
    assert found.startswith("fail gradients: 2 of ") and found.endswith(f"the first is {role}.unused.weight")


def test_a_run_that_breaks_off(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = toy.adapter().data("train").plan(0)[2][0]  # the first batch is sound
    found = wrong(findings(recipe, f"data.nan={index}"))
    assert found == [f"fail training: sample toy-{index}: its x hold NaN or Inf (seen at step 2)"]


def test_memory(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "memory_of", lambda device: 2**20)
    [found] = wrong(findings(recipe))
    assert found.startswith("warn memory: ") and found.endswith("1 MiB there are")


STEPS = {"teacher": "7,000", "control": "1,000", "student": "1,000"}


def test_time_to_finish(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_kd.check.trial.Seen.step_seconds", property(lambda self: 0.5))
    found = findings(recipe, "train.steps=1000", "teacher.train.steps=7000")
    [time] = [f for f in found if f.check == "time"]
    each = ", ".join(f"{role} {steps} steps of 500.0 ms" for role, steps in STEPS.items())
    assert time.found == f"about 75 min: {each}"
    assert time.advice == "evaluation and export come on top"
