"""A student that follows a sequence: what it learns from and when, what it remembers, what is said of it, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.scheme_teachers import tkd_rate
from scheme_runs import content, engine, resumed, weights
from toy import RECIPE, adapter

from xmodal_kd.cli.main import call
from xmodal_kd.losses import LOSSES
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.registry import allowed_imports
from xmodal_kd.schemes.temporal import Following, InOrder, mean_iou, next_rate
from xmodal_kd.training.engine import Engine


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    yield


# ---------------------------------------------------------------- the loss and the rate


#: github.com/mfarhadi/TKD-Cloud, cc9a291, loss_preparation.py, of two scales of a detector's outputs: the loss, and the
#: first entries of its gradient in each.
RELEASED = [
    (12.086284284043648, [0.01002476921806099, 0.0033185764047191], [0.0013800781405722139, -0.0119274412460222]),
    (12.292318136132874, [0.00461652003829498, -0.0035859475183188], [-0.015229772668241354, 0.003596611273046641]),
]


@pytest.mark.parametrize("seed", range(len(RELEASED)))
def test_tkd_says_what_its_release_says(seed: int) -> None:
    draw, sides = np.random.RandomState(seed), []
    for _ in ("student", "teacher"):
        sides.append([torch.from_numpy(draw.randn(2, 3, 4 // n, 4 // n, 9) * 2).reshape(-1, 9) for n in (1, 2)])
    scales = [(student.requires_grad_(), teacher) for student, teacher in zip(*sides, strict=True)]
    one = [torch.zeros(len(student), dtype=torch.long) for student, _ in scales]
    found = sum(LOSSES["tkd"].fn(*rows, item, 1, objectness=4).sum() for rows, item in zip(scales, one, strict=True))
    expected, *firsts = RELEASED[seed]
    assert float(found.detach()) == pytest.approx(expected, rel=1e-10)
    found.backward()
    for (student, _), first in zip(scales, firsts, strict=True):
        assert student.grad is not None and student.grad.flatten()[:2].tolist() == pytest.approx(first, rel=1e-8)


def test_tkd_within_its_bound_has_a_value_and_no_gradient() -> None:
    student = torch.tensor([[0.5, 0.0], [2.0, 0.0]], requires_grad=True)
    values = LOSSES["tkd"].fn(student, torch.zeros(2, 2), torch.tensor([0, 1]), 2, bound=0.3)
    assert values.tolist() == [0.125, 2.0]
    values.sum().backward()
    assert student.grad is not None and student.grad.tolist() == [[0.0, 0.0], [2.0, 0.0]]


def test_tkd_has_no_such_column() -> None:
    with pytest.raises(ValueError, match="objectness is column 2 of 2, which count from 0"):
        LOSSES["tkd"].fn(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), 1, objectness=2)


@pytest.mark.parametrize("rate", [10, 11, 30, 49, 50, 89, 90, 100])
@pytest.mark.parametrize(("loss", "before"), [(1.0, 1.05), (1.0, 1.2), (2.2, 1.0), (1.5, 1.0)])
def test_rate_is_the_oracles(rate: float, loss: float, before: float) -> None:
    assert next_rate(rate, loss, before, Following()) == tkd_rate(rate, loss, before)


def test_the_first_key_frame_counts_as_a_change() -> None:
    assert next_rate(40, 1.0, None, Following()) == tkd_rate(40, 1.0, 99999.0) == 80


def test_mean_iou_by_hand() -> None:
    """Class 0: 2 of 2 + 1; class 1: 0 of 1; class 2 is nowhere."""
    assert mean_iou(torch.tensor([[2, 0, 0], [1, 0, 0], [0, 0, 0]])) == pytest.approx((2 / 3 + 0) / 2)


# ---------------------------------------------------------------- a training


def following(folder: Path, *, lr: float = 2e-2, bound: float = 0.0, **params: Any) -> Engine:
    """Eight steps of four frames, by the loss `tkd` alone."""
    made = content("tkd", steps=8, batch_size=4, optimizer={"lr": lr, "weight_decay": 0.01})
    made["scheme"]["params"] = params
    built = engine(folder, made)
    method: Any = built.method
    method.objective = method.objectives["student"] = Objective([Term(loss="tkd", params={"bound": bound})], steps=8)
    return built


def watched(built: Engine, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[int]]]:
    """Which frames each role is given, step by step."""
    seen: dict[str, list[list[int]]] = {"teacher": [], "student": []}
    method: Any = built.method
    signals = method.adapter.signals

    def told(role: str, model: Any, batch: Any, features: Any = ()) -> Any:
        seen[role].append(batch["ids"].tolist())
        return signals(role, model, batch, features)

    monkeypatch.setattr(method.adapter, "signals", told)
    return seen


def test_the_teacher_sees_key_frames_alone_and_the_student_all_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = following(tmp_path, every=3, times=2)
    seen = watched(built, monkeypatch)
    built.fit()
    clips = [list(range(4 * step, 4 * step + 4)) for step in range(8)]
    dry, *looked = seen["teacher"]  # the objective is built of a first batch
    assert dry == clips[0] and looked == [clips[0], clips[3], clips[6]]
    expected = [clips[0], *(clip for step, clip in enumerate(clips) for _ in range(1 if step % 3 else 3))]
    assert seen["student"] == expected, "one prediction a frame, two steps on a key frame"
    state: Any = built.method.state_dict()
    assert (state["frames"], state["key_frames"], state["updates"]) == (32, 12, 6)


def test_within_the_bound_is_no_step(tmp_path: Path) -> None:
    """Whatever Adam remembers, and whatever decays."""
    built = following(tmp_path, bound=1e9, every=2)
    before = weights(built)["student"]
    built.fit()
    state: Any = built.method.state_dict()
    assert state["key_frames"] == 16 and state["updates"] == 0 and state["loss"] > 0
    assert weights(built)["student"] == before


def test_the_rate_follows_the_loss(tmp_path: Path) -> None:
    built = following(tmp_path, times=1, drop=1e9, rise=1e9)
    built.fit()
    state: Any = built.method.state_dict()
    assert state["rate"] == 100 - (state["key_frames"] // 4 - 1), "the first key frame changes, the others do not"


def test_predicts_before_it_learns(tmp_path: Path) -> None:
    """Of a student that hardly moves, what it says of the sequence is what it would have said of it before."""
    built = following(tmp_path, lr=1e-12, every=1)
    built.fit()
    method: Any = built.method
    for model in built.roles.values():
        model.eval()
    said = method.facts(built.roles, {})
    for name in ("accuracy, before learning", "miou, before learning"):
        assert set(said[name]) == {"as it was", "student", "teacher"}
        assert said[name]["student"] == said[name]["as it was"] != said[name]["teacher"]
    assert said["sequence"] == {"frames": 32, "teacher ran on": 32, "updates": 24, "teacher's share": 1.0}


def test_remembers_to_the_bit(tmp_path: Path) -> None:
    """Rate, losses, what was predicted: all but seconds."""

    def told(built: Engine) -> dict[str, Any]:
        return {key: value for key, value in built.method.state_dict().items() if key != "seconds"}

    whole = following(tmp_path / "whole", drop=0.01)
    whole.fit()
    again = resumed(lambda: following(tmp_path / "stopped", drop=0.01), 5)
    assert told(again) == told(whole) and told(whole)["confusion"] is not None
    assert weights(again) == weights(whole)


def test_order() -> None:
    source = InOrder(adapter(train=7).data("train"), 3)
    assert source.plan(0) == source.plan(1) == [[0, 1, 2], [3, 4, 5], [6]] and len(source) == 7


# ---------------------------------------------------------------- whole runs


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE.replace("test_ce", "ce").replace("  - {loss: hint, on: body}\n", ""))
    return str(path)


def run(recipe: str, out: Path, *sets: str) -> dict[str, Any]:
    listed = [word for one in sets for word in ("--set", one)]
    assert call(["run", recipe, "--out", str(out), "--allow-import", "toy", "--quiet", *listed]) == 0
    return dict(read_json(out / "report.json"))


FOLLOW = ("scheme={name: tkd, params: {every: 2}}", "objective=[{loss: tkd, params: {bound: 0.0}}]",
          "train={steps: 10, batch_size: 1, optimizer: {lr: 1e-2}, schedule: {}}")  # fmt: skip


@pytest.mark.parametrize("unlabelled", [0, 24])
def test_a_trained_student_follows_a_sequence(recipe: str, tmp_path: Path, unlabelled: int) -> None:
    first = tmp_path / "first"
    run(recipe, first, "control=false")
    start = f"compress=[{{name: pretrained, params: {{path: {first / 'student'}}}}}]"
    data = f"data={{unlabelled: {unlabelled}, noise: 0.5}}"
    found = run(recipe, tmp_path / "next", *FOLLOW, start, data, f"teacher={{path: {first / 'teacher'}}}")
    assert list(found["roles"]) == ["teacher", "student"] and found["roles"]["student"]["parameters"]
    said = found["taught"]["student"]
    assert said["sequence"]["frames"] == 10 and said["sequence"]["teacher's share"] == 0.5
    before = read_json(first / "report.json")["roles"]["student"]["metrics"]["error"]
    assert said["test, as it was"] == {"error": before}, "the student of the first run"
    assert ("miou, before learning" in said) == (not unlabelled)
    assert "teacher's share 0.5" in (tmp_path / "next" / "report.md").read_text()


@pytest.mark.parametrize(("sets", "reason"), [
    (["train.steps=25"], "train.steps: 25 steps of 1 frames, and the sequence has 24, which are seen once: give at"),
    (["train.accumulate=2"], "the frames of a step are seen together: leave train.accumulate out"),
    (["labels=3"], "scheme tkd: a sequence is followed with all its labels or none: leave labels out"),
    (["train.ema=0.9"], "the student that predicts is the one that is saved: leave train.ema out"),
    (["data={unlabelled: 4}"], "scheme tkd: a term reads labels, which some"),
    (["scheme={name: tkd, params: {every: 0}}"], r"scheme\.params\.every"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(recipe: str, tmp_path: Path, sets: list[str], reason: str,
                                             capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    first = "objective=[{loss: ce}, {loss: tkd}]"  # by which the teacher learns
    listed = [w for one in [*FOLLOW, first, "teacher.train.steps=1", *sets] for w in ("--set", one)]
    assert call(["run", recipe, "--out", str(tmp_path / "run"), "--allow-import", "toy", "--quiet", *listed]) == 2
    said = capfd.readouterr().err.strip()
    with pytest.raises(UserError, match=reason):
        raise UserError(said)
    assert "\n" not in said and not (tmp_path / "run").exists()
