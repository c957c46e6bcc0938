"""Labels of a part of the samples: which, in what batches, and that nothing looks at the others'."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import RECIPE, ToyAdapter, adapter, engine, roles

from xmodal_kd.check import check
from xmodal_kd.cli.main import call
from xmodal_kd.losses import LOSSES, loss
from xmodal_kd.modalities.speech.losses.ctc import ctc
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Term, Train, load
from xmodal_kd.recipe.schedules import Schedule
from xmodal_kd.report.content import ORDER
from xmodal_kd.run.roles import labelled_by, training_source
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.interrupt import Interrupted
from xmodal_kd.runtime.registry import allowed_imports
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.label_budget import LabelBudget, chosen
from xmodal_kd.training.loader import steps
from xmodal_kd.training.method import METHODS, Distil

NAN = float("nan")

if "test_longest" not in LOSSES:

    @loss("test_longest", reduction="items", family="test", paper="", year=2026)
    def longest(student: Tensor, item: Tensor, items: int, labels: Tensor) -> Tensor:
        """One more than an item's rows."""
        return 1.0 + torch.bincount(item, minlength=items) + 0 * student.sum()


if "test_stages" not in METHODS:

    class Staged(Distil):
        """A method of another name."""

    METHODS.add("test_stages", Staged)


# ---------------------------------------------------------------- which


def test_the_smaller_choice_is_part_of_the_larger_for_every_seed() -> None:
    source = adapter().data("train")
    few, more = set(chosen(source, 6, "labels")), set(chosen(source, 12, "labels"))
    assert (len(few), len(more)) == (6, 12) and few < more
    assert few == set(chosen(adapter(seed=99).data("train"), 6, "labels"))
    assert few == set(chosen(source, "25%", "labels"))
    assert list(chosen(source, None, "labels")) == list(range(24)) == chosen(source, "100%", "labels")
    assert len(chosen(source, "1%", "labels")) == 1


def test_it_picks_among_those_that_have_labels() -> None:
    source = adapter(unlabelled=14).data("train")
    assert list(chosen(source, None, "labels")) == list(range(10))
    assert len(chosen(source, "50%", "labels")) == 5 and max(chosen(source, "50%", "labels")) < 10


@pytest.mark.parametrize(("unlabelled", "wanted", "message"), [
    (0, 25, "labels: 25 of 24 samples with labels: give 1 to 24"),
    (20, 5, "labels: 5 of 4 samples with labels"),
    (0, "0%", "labels: 0% of 24"),
    (24, None, "no sample of the train split has a label"),
])  # fmt: skip
def test_labels_that_there_are_not(unlabelled: int, wanted: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(adapter(unlabelled=unlabelled).data("train"), wanted, "labels")


# ---------------------------------------------------------------- in what batches


def scarce(batch_size: int, pool: bool, seed: int = 3) -> LabelBudget:
    made = adapter(batch_size, seed)
    return LabelBudget(made.data("train"), [2, 5, 11], batch_size, made.streams, pool=pool)


def test_labelled_samples_and_the_pool_take_turns_in_full_batches() -> None:
    source = scarce(5, pool=True)
    plan = [batch for epoch in range(6) for batch in source.plan(epoch)]
    assert len(source.plan(0)) == 24 // 5 and {len(batch) for batch in plan} == {5}
    first = [number % 24 for batch in plan for number in batch[::2]]
    assert set(first) == {2, 5, 11}
    assert all(set(first[i : i + 3]) == {2, 5, 11} for i in range(0, len(first), 3)), "pass after pass"
    others = [number % 24 for batch in plan for number in batch[1::2]]
    assert Counter(others[:24]) == Counter(range(24)) and others[:24] != others[24:48]
    assert len(set(chain.from_iterable(plan))) == sum(map(len, plan)), "each pass has numbers of its own"


def test_without_a_pool_all_are_labelled() -> None:
    plan = [batch for epoch in range(3) for batch in scarce(4, pool=False).plan(epoch)]
    assert {len(batch) for batch in plan} == {4}
    assert {number % 24 for number in chain.from_iterable(plan)} == {2, 5, 11}


def test_the_plan_is_a_function_of_epoch_and_seed() -> None:
    used = scarce(5, pool=True)
    before = [used.plan(epoch) for epoch in (4, 0, 2)]
    assert before == [scarce(5, pool=True).plan(epoch) for epoch in (4, 0, 2)]
    assert before != [scarce(5, pool=True, seed=4).plan(epoch) for epoch in (4, 0, 2)]


def test_a_sample_that_comes_again_is_augmented_anew() -> None:
    source = scarce(4, pool=False)
    numbers = [n for epoch in range(2) for batch in source.plan(epoch) for n in batch if n % 24 == 5]
    seen = [source.sample(number, 0) for number in numbers[:2]]
    assert [shown.sample.index for shown in seen] == [5, 5]
    assert not torch.equal(seen[0].sample.x, seen[1].sample.x)
    again = source.sample(numbers[0], 7)
    assert torch.equal(again.sample.x, seen[0].sample.x), "whatever the epoch"


def test_a_batch_says_who_is_labelled() -> None:
    [batch] = next(steps(scarce(6, pool=True)))
    assert batch["labelled"].tolist() == [int(i) in {2, 5, 11} for i in batch["ids"]]
    assert batch["labelled"][::2].all() and not batch["labelled"].all()


def test_a_cut_into_micro_batches_keeps_the_balance() -> None:
    for _, micros in zip(range(5), steps(scarce(12, pool=True), accumulate=3), strict=False):
        assert [len(micro["ids"]) for micro in micros] == [4, 4, 4]
        assert all(int(micro["labelled"].sum()) >= 2 for micro in micros)


def test_half_of_one_sample_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.batch_size"):
        scarce(1, pool=True)


# ---------------------------------------------------------------- what looks at labels


LAYOUT = Layout.padded("frame", torch.tensor([3, 2, 1]), 3)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def says(seed: int, hidden: Tensor | None = None) -> Signals:
    """Three items, of which the second has no labels where `hidden` stands in their place."""
    rows, labels = randn(9, 4, seed=seed), torch.arange(9) % 4
    rows[~LAYOUT.mask] = NAN
    out = Signals()
    if hidden is not None:
        labels, out.labelled = torch.where(LAYOUT.item == 1, hidden, labels), torch.tensor([True, False, True])
    return out.add("logits", rows.requires_grad_(), LAYOUT).add("labels", labels, LAYOUT)


@pytest.mark.parametrize("name", ["ce", "dkd", "wsld", "intra_kd"])
def test_losses_of_labels_leave_out_the_items_without(name: str) -> None:
    """As labels of rows, and as regions; what stands in their place changes nothing."""
    terms = Objective([Term(loss=name)])
    student, same = says(0, torch.tensor(-7)), says(0, torch.tensor(2))
    out, other = (terms(given, says(1)).parts[name] for given in (student, same))
    torch.testing.assert_close(out.total, other.total)
    assert float(out.count) == float(other.count) == (4 if name != "intra_kd" else 2)
    [grad] = torch.autograd.grad(out.total, student.rows("logits"))
    assert not grad[LAYOUT.item == 1].any() and grad[0].any()


def test_an_item_without_labels_is_not_counted_whatever_the_loss_says() -> None:
    """A loss that returns values alone: its value of an empty item is no share of the mean."""
    part = Objective([Term(loss="test_longest")])(says(0, torch.tensor(-7))).parts["test_longest"]
    assert (float(part.total.detach()), float(part.count)) == (4 + 2, 2)


def test_losses_without_labels_see_all_rows() -> None:
    assert float(Objective([Term(loss="kd")])(says(0, torch.tensor(-7)), says(1)).parts["kd"].count) == 6


def test_regions_that_are_no_labels_are_seen_everywhere() -> None:
    student, regions = says(0, torch.tensor(-7)), torch.zeros(9, dtype=torch.long)
    student.add("cells", regions, LAYOUT)
    term = Term(loss="ifvd", regions="cells")
    assert float(Objective([term])(student, says(1)).parts["ifvd"].count) == 6


def test_ctc_does_not_count_items_without_labels() -> None:
    assert ctc.spec is LOSSES["ctc"]
    tokens = Layout.padded("token", torch.tensor([1, 1, 1]), 1)

    def value(labelled: list[bool], hidden: int) -> tuple[Tensor, float, Tensor]:
        out = Signals()
        out.labelled = torch.tensor(labelled)
        labels = torch.tensor([1, hidden, 3])
        out.add("logits", randn(9, 4).requires_grad_(), LAYOUT).add("labels", labels, tokens)
        part = Objective([Term(loss="ctc")])(out).parts["ctc"]
        [grad] = torch.autograd.grad(part.total, out.rows("logits"))
        return part.total.detach(), float(part.count), grad

    total, count, grad = value([True, False, True], hidden=-5)
    assert count == 2 and grad[0].any() and not grad[LAYOUT.item == 1].any()
    whole, _, _ = value([True, True, True], hidden=2)
    assert 0 < float(total) < float(whole)
    nothing, none, grad = value([False, False, False], hidden=-5)
    assert (float(nothing), none) == (0.0, 0.0) and not grad.any()


def test_weights_of_items_without_labels_may_be_anything() -> None:
    student = says(0, torch.tensor(-7))
    student.add("w", torch.where(LAYOUT.item == 1, NAN, 2.0), LAYOUT)
    assert float(Objective([Term(loss="ce", weights="w")])(student).parts["ce"].count) == 8


# ---------------------------------------------------------------- in training


def made(folder: Path, *, accumulate: int = 1, workers: int = 0, dropout: float = 0.3) -> Engine:
    few = adapter(batch_size=6, unlabelled=20)
    source = LabelBudget(few.data("train"), range(4), 6, few.streams, pool=True)
    few.data = lambda split: source  # type: ignore[assignment, method-assign, return-value]
    train = Train(
        steps=6, batch_size=6, accumulate=accumulate, workers=workers, optimizer=Optimizer(name="sgd", lr=0.1),
        schedule=Schedule(), checkpoint_every=1,
    )  # fmt: skip
    terms = [Term(loss="ce"), Term(loss="kd"), Term(loss="test_items")]
    return engine(folder, train, toy=few, models=roles(few, student={"dropout": dropout}), terms=terms)


def weights(built: Engine) -> dict[str, Tensor]:
    return dict(built.roles["student"].state_dict())


def test_micro_batches_give_what_one_gives(tmp_path: Path) -> None:
    built = [made(tmp_path / str(n), accumulate=n, dropout=0.0) for n in (1, 2, 3)]
    whole, *parts = [(one.fit(), weights(one))[1] for one in built]
    for part in parts:
        for name, value in whole.items():
            torch.testing.assert_close(part[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_to_the_bit(tmp_path: Path, workers: int) -> None:
    whole = made(tmp_path / "whole")
    whole.fit()
    stopped = made(tmp_path / "stopped", workers=workers)
    step = stopped._step

    def patched(*args: Any) -> None:
        step(*args)
        if stopped.at.total == 3:
            os.kill(os.getpid(), signal.SIGINT)

    stopped._step = patched  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        stopped.fit()
    again = made(tmp_path / "stopped", workers=workers)
    again.fit(resume=True)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


# ---------------------------------------------------------------- in a run


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


def test_who_saw_what_is_in_the_report(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[int]] = []
    monkeypatch.setattr(ToyAdapter, "begin", lambda self, role, labelled: told.append(list(labelled)))
    assert run(recipe, tmp_path / "run", "labels=25%", "teacher.labels=12") == 0
    found = read_json(tmp_path / "run" / "report.json")
    assert found["labels"]["teacher"] == {"labelled": 12, "samples": 24, "unlabelled": False}
    assert found["labels"]["control"] == {"labelled": 6, "samples": 24, "unlabelled": False}
    assert found["labels"]["student"] == {"labelled": 6, "samples": 24, "unlabelled": True}
    assert {role: cost["samples"] for role, cost in found["cost"].items() if isinstance(cost, dict)} == dict.fromkeys(
        found["roles"], 48
    )
    assert [len(one) for one in told][:3] == [12, 6, 6] and set(told[1]) < set(told[0])
    text = (tmp_path / "run" / "report.md").read_text()
    assert "teacher 12 of 24 samples, control 6 of 24 samples" in text and "student also saw all samples" in text


def test_with_all_labels_nothing_is_said(recipe: str) -> None:
    loaded = load(recipe, ["labels=24"]).recipe
    source = training_source(adapter(), loaded, "student")
    assert not isinstance(source, LabelBudget) and labelled_by(source, loaded, "student") == list(range(24))


def test_which_role_sees_the_pool(recipe: str) -> None:
    loaded = load(recipe, ["labels=6"]).recipe
    found = {role: training_source(adapter(), loaded, role) for role in ("teacher", "control", "student")}
    assert not isinstance(found["teacher"], LabelBudget), "it has all labels"
    assert [(one.pool, one.batch_size) for one in found.values() if isinstance(one, LabelBudget)] == [
        (False, 6),
        (True, 6),
    ]
    alone = training_source(adapter(), load(recipe, ["labels=6", "teacher=null"]).recipe, "student")
    assert isinstance(alone, LabelBudget) and not alone.pool


def test_a_source_may_say_itself_who_has_labels(recipe: str, tmp_path: Path) -> None:
    """Where the others hold no classes at all."""
    sets = ("data.unlabelled=20", "train.steps=2", "teacher.train.steps=2")
    assert run(recipe, tmp_path / "run", *sets) == 0
    labels = read_json(tmp_path / "run" / "report.json")["labels"]
    assert {role: one["labelled"] for role, one in labels.items()} == dict.fromkeys(ORDER, 4)


def test_check_looks_at_the_same_batches(recipe: str) -> None:
    found = check(load(recipe, ["data.unlabelled=20"]), "cpu")
    assert [(one.check, one.found) for one in found if one.status == "fail"] == []
    assert any(one.check == "splits" and "24 (4 labelled)" in one.found for one in found)
    [counts] = [one.found for one in found if one.check == "counts"]
    ce, kd = (int(part.split()[1]) for part in counts.split(", ")[:2])
    assert 0 < ce < kd


@pytest.mark.parametrize(("sets", "message"), [
    (["labels=25"], "labels: 25 of 24 samples"),
    (["teacher.labels=30"], "teacher.labels: 30 of 24 samples"),
    (["labels=6", "method=test_stages"], "cannot learn from samples without labels"),
    (["labels=6", "objective=[{loss: logit_mse}]"], "no term of the objective reads labels"),
    (["labels=0"], "labels: a number of samples is expected, or a share of all as in 10%, got 0"),
    (["labels=10 %"], "share of all as in 10%, got '10 %'"),
    (["labels=6", "train.batch_size=1"], "half of a batch"),
])  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_trained(
    recipe: str, tmp_path: Path, sets: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe, tmp_path / "run", *sets) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
