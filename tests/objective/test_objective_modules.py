"""What the objective owns: projectors, modules of losses; precision, parameters, what roles must capture."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from objective_small import (
    ROWS,
    features,
    randn,
    says,
    single,
)
from torch import nn

from xmodal_kd.losses import LOSSES
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Optimizer, Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import allowed_imports
from xmodal_kd.signals.signals import Layout
from xmodal_kd.training.optim import build_optimizer


def test_a_projector_is_made_where_widths_differ() -> None:
    objective = Objective([Term(loss="hint", on="f")]).build(features(3), features(5, 1), Streams(1))
    assert [tuple(p.shape) for p in objective.parameters()] == [(5, 3), (5,)]
    objective(features(3), features(5, 1)).value().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


@pytest.mark.parametrize(
    ("term", "widths", "made"),
    [
        (Term(loss="hint", on="f"), (4, 4), False),
        (Term(loss="hint", on="f", projector="linear"), (4, 4), True),
        (Term(loss="hint", on="f", projector="none"), (3, 4), False),
        (Term(loss="cka", on="f"), (3, 4), False),
        (Term(loss="cka", on="f", projector="linear"), (3, 4), True),
    ],
)
def test_when_a_projector_is_made(term: Term, widths: tuple[int, int], made: bool) -> None:
    objective = Objective([term]).build(features(widths[0]), features(widths[1]), Streams(1))
    assert (next(iter(objective)).projector is not None) is made


def test_differing_classes_are_never_projected_silently() -> None:
    s, t = features(3, name="logits"), features(4, name="logits")
    objective = Objective([Term(loss="kd")]).build(s, t, Streams(1))
    assert not list(objective.parameters())
    with pytest.raises(UserError, match="differ in shape"):
        objective(s, t)


def test_one_more_projector_leaves_other_initialisations_alone() -> None:
    streams = Streams(1)
    s = features(3).add("g", randn(8, 2), Layout.samples(8))
    t = features(5, 1).add("g", randn(8, 7), Layout.samples(8))
    last = Term(loss="hint", on="f", name="last")
    alone = Objective([last]).build(s, t, streams)
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    both = Objective([Term(loss="hint", on="g", name="first"), last]).build(s, t, streams)
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(next(iter(alone)).parameters(), list(both)[1].parameters(), strict=True):
        assert torch.equal(a, b)
    first = next(next(iter(both)).parameters())
    assert not torch.equal(first.flatten()[:4], next(list(both)[1].parameters()).flatten()[:4])


def test_modules_of_losses_are_owned_trained_and_saved() -> None:
    """Trap 8: what a loss learns sat in a plain dict and no optimizer saw it."""
    s, t = features(3), features(5, 1)
    terms = [Term(loss="test_scorer", on="f", params={"start": 3.0})]
    objective = Objective(terms).build(s, t, Streams(1))
    names = {name for name, _ in objective.named_parameters()}
    assert {n.rpartition("terms.0.")[2] for n in names} == {
        "projector.weight", "projector.bias", "module.scale", "module.mix.weight", "module.mix.bias",
    }  # fmt: skip
    before = copy.deepcopy(objective.state_dict())
    optimizer = build_optimizer(Optimizer(lr=0.01), {"objective": objective})
    values = []
    for _ in range(20):
        value = objective(s, t).value()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    assert values[-1] < values[0]
    after = objective.state_dict()
    learnt = after.keys() - {"terms.0.resampling"}  # the choice of a way, which stays
    assert after.keys() == before.keys() and all(not torch.equal(after[k], before[k]) for k in learnt)
    restored = Objective(terms).build(s, t, Streams(2))
    restored.load_state_dict(after)
    assert torch.equal(restored(s, t).value(), objective(s, t).value())


def test_a_module_that_was_not_built_says_so() -> None:
    with pytest.raises(UserError, match="call build"):
        Objective([Term(loss="test_scorer", on="f")])(features(3), features(3))


def test_the_teacher_gets_no_gradient() -> None:
    """Traps 2 and 15, even where the teacher's signals carry a graph and a module stands in between."""
    teacher = nn.Linear(4, 5)
    t = says(teacher(randn(8, 4)), Layout.samples(8), "f")
    objective = Objective([Term(loss="hint", on="f"), Term(loss="test_scorer", on="f"), Term(loss="cka", on="f")])
    leaf = randn(8, 3).requires_grad_()
    s = says(leaf, Layout.samples(8), "f")
    objective.build(s, t, Streams(1))(s, t).value().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", [*ROWS, "test_scorer"])
def test_half_precision_signals_are_computed_in_float32(name: str, autocast: bool) -> None:
    objective = single(name)
    s16, t16 = randn(8, 5).bfloat16(), randn(8, 5, seed=1).bfloat16()
    s, t = says(s16, Layout.samples(8)), says(t16, Layout.samples(8))
    objective.build(s, t, Streams(1))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        part = objective(s, t).parts[name]
    assert part.total.dtype == torch.float32
    exact = objective(says(s16.float(), Layout.samples(8)), says(t16.float(), Layout.samples(8))).parts[name]
    torch.testing.assert_close(part.total, exact.total, rtol=1e-6, atol=1e-6)


def test_double_signals_stay_double() -> None:
    s, t = (says(randn(8, w).double(), Layout.samples(8), "f") for w in (3, 5))
    objective = Objective([Term(loss="hint", on="f"), Term(loss="test_scorer", on="f")]).build(s, t, Streams(1))
    assert objective(s, t).value().dtype == torch.float64


# ---------------------------------------------------------------- names


def test_parameters_of_losses_are_checked() -> None:
    with pytest.raises(UserError, match=r"loss 'kd' has no parameter 'temprature' \(nearest: temperature\)"):
        single("kd", temprature=2.0)
    with pytest.raises(UserError, match=r"loss 'kd', parameter 'temperature'.*valid number"):
        single("kd", temperature="hot")
    with pytest.raises(UserError, match=r"unknown loss 'kdd' \(nearest: kd"):
        single("kdd")


def test_every_loss_builds_with_its_defaults() -> None:
    """Trap 4. A batch is the recipe's, so that the loss that is built for one is told it."""
    told = {"semckd": {"batch": 4}}
    for name in (name for name in LOSSES if not name.startswith("test_")):
        given, fields = told.get(name, {}), LOSSES[name].params.model_fields
        assert next(iter(single(name, **given))).params == {k: v.default for k, v in fields.items()} | given


def test_building_from_one_term_changes_nothing_in_it() -> None:
    """Trap 7."""
    terms = [Term(loss="kd", params={"temperature": 2}), Term(loss="hint", on="f", name="h")]
    before = copy.deepcopy(terms)
    s, t = (features(w, name="logits").add("f", randn(8, v), Layout.samples(8)) for w, v in ((4, 3), (4, 5)))
    values = {Objective(terms).build(s, t, Streams(1))(s, t).value().item() for _ in range(3)}
    assert terms == before and len(values) == 1


def test_what_each_role_must_capture() -> None:
    terms = [
        Term(loss="kd"), Term(loss="hint", on={"student": "a.*", "teacher": "b:input"}), Term(loss="cka", on="c"),  # type: ignore[arg-type]
        Term(loss="test_row_ce", on="d"),
    ]  # fmt: skip
    objective = Objective(terms)
    assert objective.features("student") == ["a.*", "c", "d"]
    assert objective.features("teacher") == ["b:input", "c"], "a term without a teacher asks nothing of it"
    assert objective.needs_teacher and not single("test_row_ce").needs_teacher


def test_a_glob_names_one_signal() -> None:
    s = features(3, name="blocks.0.norm")
    assert single("hint")(s.add("logits", randn(8, 3), Layout.samples(8)), s).value() == 0
    term = Term(loss="hint", on="blocks.*.norm")
    assert Objective([term])(s, s).value() == 0
    s.add("blocks.1.norm", randn(8, 3), Layout.samples(8))
    with pytest.raises(UserError, match=r"'blocks.\*.norm' names 2 signals"):
        Objective([term])(s, s)
    with pytest.raises(UserError, match="no signal 'block'"):
        Objective([Term(loss="hint", on="block")])(s, s)


def test_a_missing_teacher_is_named() -> None:
    with pytest.raises(UserError, match="term 'kd' compares with a teacher"):
        single("kd")(features(3, name="logits"))


def test_a_loss_by_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of one's own package, decorated or not."""
    theirs: Any = ModuleType("their_package")
    theirs.mine, theirs.plain = LOSSES["test_row_ce"].fn, lambda student: student
    monkeypatch.setitem(__import__("sys").modules, "their_package", theirs)
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"their_package"})
    assert next(iter(single("their_package:mine"))).spec is LOSSES["test_row_ce"]
    with pytest.raises(UserError, match="not decorated"):
        single("their_package:plain")
