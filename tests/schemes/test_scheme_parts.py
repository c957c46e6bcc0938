"""Pairs of a class, two views, students that share modules."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from scheme_runs import content, engine, loaded
from torch import nn
from toy import Data, ToyAdapter, ToySource, adapter, roles

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.objective.objective import Objective
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.recipe.recipe import Optimizer, Term
from xmodal_kd.run.roles import make_adapter, make_method, models_of, role_plans, training_source
from xmodal_kd.runtime.checkpoint import digest
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.schemes.batches import OTHER, Pairs, several_views
from xmodal_kd.schemes.self_distillation import partners
from xmodal_kd.schemes.sharing import share, together
from xmodal_kd.training.label_budget import LabelBudget
from xmodal_kd.training.loader import steps
from xmodal_kd.training.method import Context, Method


def test_pairs_are_of_a_class_and_an_epoch_holds_every_sample() -> None:
    inner = ToySource(Data(train=37, single=True), "train", Streams(3), 8)
    kinds = inner.classes
    assert kinds is not None
    pairs, orders = Pairs(inner), []
    for epoch in range(3):
        plan = [list(batch) for batch in pairs.plan(epoch)]
        assert all(len(batch) % 2 == 0 and len(batch) <= 8 for batch in plan)
        flat = [index for batch in plan for index in batch]
        seen = Counter(flat)
        odd = sum(count % 2 for count in Counter(kinds).values())
        assert set(seen) == set(range(37)) and len(flat) == 37 + odd and max(seen.values()) <= 2
        assert all(kinds[a] == kinds[b] for a, b in zip(flat[::2], flat[1::2], strict=True))
        orders.append(flat)
    assert orders[0] != orders[1] and Pairs(inner).plan(1) == pairs.plan(1)


def test_samples_of_several_classes_keep_their_batches() -> None:
    inner = ToySource(Data(train=16), "train", Streams(3), 8)
    assert Pairs(inner).plan(2) == inner.plan(2)


def test_partners() -> None:
    item = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 4])
    labels = torch.tensor([1, 0, 1, 1, 2, 0, 0, 0, 1])
    known = torch.ones(9, dtype=torch.bool)
    assert partners(labels, item, known).tolist() == [3, -1, 3, 0, -1, 7, 7, 5, -1]
    known[3] = False
    assert partners(labels, item, known).tolist() == [-1, -1, -1, -1, -1, 7, 7, 5, -1]
    assert partners(labels, item, torch.zeros_like(known)).tolist() == [-1] * 9
    # the second of a class meets the second, and the third the first again
    item, labels = torch.tensor([0, 0, 0, 1, 1]), torch.zeros(5, dtype=torch.int64)
    assert partners(labels, item, torch.ones(5, dtype=torch.bool)).tolist() == [3, 4, 3, 0, 1]


def test_a_row_without_a_partner_learns_from_its_label_alone(tmp_path: Path) -> None:
    built = engine(tmp_path, content("cs_kd"))
    [batch] = next(steps(built.source))
    said = built.method.forward_role("student", built.roles, batch)
    taught = built.method.teacher_signals("student", built.roles, batch, said)
    labels, layout = said["labels"]
    there = taught.layout("logits").mask
    items = [set(labels[layout.mask & (layout.item == i)].tolist()) for i in range(layout.items)]
    for row in range(len(labels)):
        i = int(layout.item[row])
        assert bool(there[row]) == (bool(layout.mask[row]) and int(labels[row]) in items[i ^ 1])
    assert not there.all() and there.any()
    assert torch.equal(taught.layout("labels").mask, layout.mask)


def test_parts_of_a_batch_that_cut_a_pair_are_refused(tmp_path: Path) -> None:
    made = content("cs_kd", batch_size=6, accumulate=2)
    with pytest.raises(UserError, match="give a multiple of 4"):
        engine(tmp_path, made).fit()


def test_rows_without_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyAdapter, "output", "body.0")
    with pytest.raises(UserError, match="scheme cs_kd: rows have no classes of their own"):
        built = engine(tmp_path, content("cs_kd"))
        original = built.method.forward_role

        def without(*args: object, **more: object) -> object:
            said = original(*args, **more)
            said._signals.pop("labels")
            said.add("body.0", *said["logits"])
            return said

        monkeypatch.setattr(built.method, "forward_role", without)
        built.fit()


def test_scarce_labels_make_no_pairs(tmp_path: Path) -> None:
    made = content("cs_kd") | {"labels": 4}
    recipe = loaded(tmp_path, made)
    toy = make_adapter(recipe, Streams(3))
    with pytest.raises(UserError, match="leave labels out"):
        training_source(toy, recipe.recipe, "student")


def test_two_views_of_the_same_samples() -> None:
    inner = ToySource(Data(train=8), "train", Streams(3), 4)
    source = several_views(inner)
    assert len(source) == 8 and source.plan(1) == inner.plan(1)
    [batch] = next(steps(source))
    [plain] = next(steps(inner))
    assert torch.equal(batch["x"], plain["x"])
    other = batch[OTHER]
    assert torch.equal(other["ids"], batch["ids"]) and torch.equal(other["labels"], batch["labels"])
    assert other["x"].shape == batch["x"].shape and not torch.equal(other["x"], batch["x"])


def test_two_views_where_labels_are_scarce(tmp_path: Path) -> None:
    inner = ToySource(Data(train=8), "train", Streams(3), 4)
    source = several_views(LabelBudget(inner, [1, 2], 4, Streams(3), pool=True))
    [batch] = next(steps(source))
    assert batch["labelled"].tolist()[::2] == [True, True], "by turns a labelled one and any"
    assert not torch.equal(batch[OTHER]["x"], batch["x"]) and "labelled" not in batch[OTHER]
    made = content("ddgsd") | {"labels": 4, "objective": [{"loss": "test_ce"}, {"loss": "kd"}]}
    engine(tmp_path, made).fit()


def test_the_control_of_two_views_sees_both(tmp_path: Path) -> None:
    """Its loss is the sum of the plain ones of either view, so that the student has seen no more."""
    recipe = loaded(tmp_path, content("ddgsd"))
    streams = Streams(3)
    toy = make_adapter(recipe, streams)
    role_plan = next(one for one in role_plans(recipe, toy) if one.role == "control")
    models = models_of(toy, recipe, role_plan, streams, {})
    [batch] = next(steps(training_source(toy, recipe.recipe, "control")))
    method = make_method(recipe, toy, role_plan, streams)
    method.begin(method.stages()[0], models, batch)
    parts = {
        name: float(part.total.detach()) for _, out in seen(method, models, batch) for name, part in out.parts.items()
    }
    plain = Objective([Term(loss="test_ce")])
    for name, view in (("test_ce", batch), ("other/test_ce", batch[OTHER])):
        expected = plain(toy.signals("control", models["control"], view)).parts["test_ce"].total.item()
        assert parts[name] == pytest.approx(expected)


def seen(method: Method, models: dict[str, nn.Module], batch: Batch) -> list[tuple[str, LossOut]]:
    ctx = Context(method.stages()[0], 0, 0, Streams(3), StepTimer(torch.device("cpu")), Ranks())
    return list(method.losses(batch, models, ctx))


def test_views_whose_rows_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyAdapter, "views_differ", lambda self: "data.shake moves rows: leave it out")
    with pytest.raises(UserError, match="scheme ddgsd: two views of a sample have no rows in common: data"):
        engine(tmp_path, content("ddgsd"))


def test_shared_modules_are_one_and_their_parameters_are_held_once() -> None:
    students = [roles(adapter(seed=seed))["student"] for seed in (1, 2, 3)]
    own = digest(students[0].state_dict().items())
    share(students[0], students[1:], ["body.0", "body.1"])
    assert students[1].body[0] is students[0].body[0] and students[2].head is not students[0].head  # type: ignore[union-attr,index]
    assert digest(students[0].state_dict().items()) == own
    config = Optimizer(weight_decay=0.1, lr_scale={"student.head.*": 0.5})
    optimizer = together(config, [{"student": student} for student in students])
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == 4 + 3 * 2
    halved = [p for group in optimizer.param_groups if group["lr"] == 5e-4 for p in group["params"]]
    assert {id(p) for p in halved} == {id(p) for student in students for p in student.head.parameters()}  # type: ignore[union-attr]


def test_modalities_whose_rows_have_no_classes_are_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attribute, value in (("blank", 0), ("output", "prediction")):
        monkeypatch.setattr(ToyAdapter, attribute, value)
        with pytest.raises(UserError, match="scheme cs_kd: rows have no classes of their own"):
            engine(tmp_path, content("cs_kd"))
        monkeypatch.undo()


@pytest.mark.parametrize(("paths", "reason"), [
    (["body.9"], "no module 'body.9'"), (["body", "body.0"], "lies inside another"),
    (["body", "head"], "all of the model"),
])  # fmt: skip
def test_what_cannot_be_shared(paths: list[str], reason: str) -> None:
    one, other = (roles(adapter(seed=seed))["student"] for seed in (1, 2))
    with pytest.raises(UserError, match=reason):
        share(one, [other], paths)


def test_branches_stay_shared_through_a_resume(tmp_path: Path) -> None:
    made = content("okddip branches", steps=3)
    engine(tmp_path, made).fit()
    again = engine(tmp_path, content("okddip branches", steps=3))
    again.fit(resume=True)
    student, peer = again.roles["student"], again.roles["peer-1"]
    assert peer.body[0] is student.body[0]  # type: ignore[union-attr,index]
    assert not torch.equal(peer.head.weight, student.head.weight)  # type: ignore[union-attr]


def test_an_ensemble_has_no_features(tmp_path: Path) -> None:
    made = content("one")
    made["objective"].append({"loss": "hint", "on": "body"})
    with pytest.raises(UserError, match="term 'hint': an ensemble of answers has no features"):
        engine(tmp_path, made)


def test_peers_are_trained_from_weights_of_their_own(tmp_path: Path) -> None:
    built = engine(tmp_path, content("okddip"))
    prints = {digest(built.roles[role].state_dict().items()) for role in built.method.learners}
    assert len(prints) == 4
    planned = role_plans(
        loaded(tmp_path, content("okddip")), make_adapter(loaded(tmp_path, content("okddip")), Streams(3))
    )
    assert planned[-1].peers == ("peer-1", "peer-2", "peer-3")


@pytest.mark.parametrize(("example", "key", "value"), [
    ("one", "on", "bodi"), ("okddip", "shared", ["bodi"]), ("byot", "exits", ["bodi"]), ("byot", "feature", "bodi"),
    ("ddgsd", "on", "bodi"),
])  # fmt: skip
def test_misspelt_modules_are_found_before_anything_is_trained(
    tmp_path: Path, example: str, key: str, value: object
) -> None:
    made = content(example)
    made["scheme"] = made["scheme"] | {"params": made["scheme"]["params"] | {key: value}}
    with pytest.raises(UserError, match=r"scheme.* no module 'bodi' in Net.*nearest: body"):
        engine(tmp_path, made)
