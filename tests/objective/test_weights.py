"""Rows that weigh more than others, and rows that the teacher is not sure of: a term over some rows of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toy import adapter, engine, roles

from xmodal_kd.losses import LOSSES, blocks, loss
from xmodal_kd.objective.objective import Objective
from xmodal_kd.objective.parts import Part
from xmodal_kd.recipe.recipe import Optimizer, Term, Train
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.method import Distil

NAN = float("nan")
LAYOUT = Layout.padded("frame", torch.tensor([3, 2]), 3)

if "test_counted" not in LOSSES:

    @loss("test_counted", reduction="rows", family="test", paper="", year=2026)
    def counted(student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of the rows whose label is not 0."""
        keep = labels > 0
        return F.cross_entropy(student, labels, reduction="none") * keep, keep


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def says(seed: int, weights: Tensor | None = None) -> Signals:
    """Five valid rows of four classes, the sixth is padding; labels of rows of weight 0 are no classes."""
    rows, labels = randn(6, 4, seed=seed), torch.tensor([0, 1, 2, 3, 1, -7])
    rows[5] = NAN
    if weights is not None:
        rows[weights == 0], labels = NAN, torch.where(weights == 0, -1, labels)
    out = Signals().add("logits", rows.requires_grad_(), LAYOUT).add("labels", labels, LAYOUT)
    return out if weights is None else out.add("w", weights, LAYOUT)


def part(student: Signals, teacher: Signals | None = None, **term: Any) -> Part:
    [found] = Objective([Term(**term)])(student, teacher).parts.values()
    return found


W = torch.tensor([2.0, 0.0, 0.5, 1.0, 3.0, NAN])
KEPT = torch.tensor([0, 2, 3, 4])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ce_is_torchs(smoothing: float) -> None:
    logits, labels = randn(7, 5).requires_grad_(), torch.arange(7) % 5
    got = LOSSES["ce"].fn(logits, labels, smoothing=smoothing)
    expected = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(got, expected)
    assert Objective([Term(loss="ce")]).terms[0].params == {"smoothing": 0.0}


@pytest.mark.parametrize("block", [blocks.BLOCK, 4])
def test_a_weighted_mean_in_which_rows_of_weight_0_may_hold_anything(monkeypatch: Any, block: int) -> None:
    """Taken out of the batch, or in chunks where they lie."""
    monkeypatch.setattr(blocks, "BLOCK", block)
    student = says(0, W)
    got = part(student, loss="ce", weights="w")
    rows, labels = student.rows("logits")[KEPT], student.rows("labels")[KEPT]
    values = F.cross_entropy(rows, labels, reduction="none")
    torch.testing.assert_close(got.total / got.count, (W[KEPT] * values).sum() / W[KEPT].sum())
    assert float(got.count) == 6.5
    [grad] = torch.autograd.grad(got.total, student.rows("logits"))
    assert grad.isfinite().all() and not grad[[1, 5]].any() and grad[KEPT].abs().sum(dim=1).all()


def test_weights_and_counted_rows_of_a_loss_multiply() -> None:
    student = says(0, W)
    got = part(student, loss="test_counted", weights="w")
    values = F.cross_entropy(student.rows("logits")[KEPT], student.rows("labels")[KEPT], reduction="none")
    torch.testing.assert_close(got.total, (W[KEPT] * values)[1:].sum())
    assert float(got.count) == 4.5, "the first row is not counted"


def test_the_teachers_weights_come_first_where_the_loss_has_a_teacher() -> None:
    mine, theirs = says(0, W), says(1, torch.tensor([1.0, 0.0, 1.0, 0.0, 5.0, NAN]))
    assert float(part(mine, theirs, loss="kd", weights="w").count) == 7.0
    assert float(part(mine, theirs, loss="ce", weights="w").count) == 6.5
    assert float(part(mine, says(1), loss="kd", weights="w").count) == 6.5


def test_equal_weights_are_none() -> None:
    plain, even = says(0), says(0).add("w", torch.full((6,), 0.25), LAYOUT)
    weighted, without = part(even, says(1), loss="kd", weights="w"), part(plain, says(1), loss="kd")
    torch.testing.assert_close(weighted.total / weighted.count, without.total / without.count)
    assert weighted.unit != without.unit


def test_a_loss_of_several_signals_has_one_weight_a_row() -> None:
    students, teachers = (Signals(), Signals())
    for i, signals in ((0, students), (10, teachers)):
        for layer in range(3):
            signals.add(f"layer.{layer}", randn(6, 4, seed=i + layer), LAYOUT)
    students.add("w", W, LAYOUT)
    got = part(students, teachers, loss="pkd", on="layer.*", weights="w")
    plain = [[one.rows(f"layer.{i}")[KEPT] for i in range(3)] for one in (students, teachers)]
    torch.testing.assert_close(got.total, (W[KEPT] * LOSSES["pkd"].fn(*plain)).sum())
    assert float(got.count) == 6.5


def test_no_row_has_a_weight() -> None:
    student = says(0, torch.zeros(6))
    got = part(student, loss="ce", weights="w")
    assert (float(got.total.detach()), float(got.count)) == (0.0, 0.0) and got.total.requires_grad


@pytest.mark.parametrize(("weights", "message"), [
    (torch.tensor([1.0, -1.0, 1, 1, 1, 1]), "below 0, NaN or Inf"),
    (torch.tensor([1.0, NAN, 1, 1, 1, 1]), "below 0, NaN or Inf"),
    (torch.ones(6, 1), r"of shape \(6, 1\) are not one for each of the student's 6 frame rows"),
])  # fmt: skip
def test_weights_that_are_none(weights: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        part(says(0).add("w", weights, LAYOUT), loss="ce", weights="w")


def test_other_rows_have_no_weights_here() -> None:
    student = says(0).add("w", torch.ones(2), Layout.samples(2))
    with pytest.raises(UserError, match="not one for each of the student's 6 frame rows"):
        part(student, loss="ce", weights="w")


@pytest.mark.parametrize(("term", "message"), [
    ({"loss": "at", "on": "body", "weights": "w"}, "'at' gives one an item"),
    ({"loss": "dist", "weights": "w"}, "'dist' gives one a batch"),
    ({"loss": "ce", "min_confidence": 0.5}, "compare with a teacher's logits"),
    ({"loss": "hint", "on": "body", "min_confidence": 0.5}, "compare with a teacher's logits"),
])  # fmt: skip
def test_terms_that_cannot_choose_rows(term: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Objective([Term(**term)])


@pytest.mark.parametrize("block", [blocks.BLOCK, 4])
def test_rows_that_the_teacher_is_not_sure_of_are_left_out(monkeypatch: Any, block: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    student, teacher = says(0), says(1)
    rows = teacher.rows("logits")[:5].detach()
    sure = rows.softmax(dim=1).amax(dim=1)
    least = float(sure.sort().values[2])
    got = part(student, teacher, loss="kd", min_confidence=least)
    assert float(got.count) == 3
    keep = (sure >= least).nonzero().squeeze(1)
    torch.testing.assert_close(got.total, LOSSES["kd"].fn(student.rows("logits")[keep], rows[keep]).sum())
    assert float(part(student, teacher, loss="kd", min_confidence=1.0).count) == 0
    units = [part(student, teacher, loss="kd", **more).unit for more in ({}, {"min_confidence": 0.5})]
    assert units[0] != units[1]


@pytest.mark.parametrize("accumulate", [2, 3])
def test_micro_batches_give_the_same_weighted_mean(tmp_path: Path, accumulate: int) -> None:
    terms = [
        Term(loss="ce", weights="rarity"),
        Term(loss="kd", weights="rarity"),
        Term(loss="kd", name="sure", min_confidence=0.3),
        Term(loss="ce", name="plain"),
    ]

    def trained(micros: int) -> dict[str, Tensor]:
        toy = adapter(batch_size=6)
        models = roles(toy)
        train = Train(
            steps=3, batch_size=6, accumulate=micros, optimizer=Optimizer(name="sgd", lr=0.1), schedule=Schedule()
        )
        engine(tmp_path / str(micros), train, toy=toy, models=models, terms=terms).fit()
        return models["student"].state_dict()

    whole, parts = trained(1), trained(accumulate)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)


def test_another_role_teaches() -> None:
    """The adapter is asked by that role's name, and gives what the terms compare of a teacher."""
    toy, asked = adapter(), list[str]()
    models = roles(toy)
    models["control"] = models.pop("teacher")
    says_ = toy.signals
    toy.signals = lambda role, *rest: asked.append(role) or says_(role, *rest)  # type: ignore
    train = Train(steps=2, batch_size=6)
    objective = Objective([Term(loss="kd"), Term(loss="hint", on="body")], steps=2)
    method = Distil(toy, objective, train, Streams(3), teacher="control")
    batch = toy.data("train").collate([toy.data("train").sample(i, 0) for i in range(4)])
    method.begin(method.stages()[0], models, batch)
    assert asked == ["student", "control"]
    assert objective.terms[1].projector.out_features == 24, "the other role's width"
