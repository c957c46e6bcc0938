"""Schemes of several teachers in the engine: what teaches, who is frozen, resume, processes, whole runs, refusals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import several_teachers as worker
import torch
from torch import Tensor, nn
from toy import RECIPE, ToyAdapter

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.check import check
from xmodal_kd.cli.main import call
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, load
from xmodal_kd.run.roles import make_adapter, role_plans
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import allowed_imports
from xmodal_kd.schemes import aggregate
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.loader import steps


class Seers(ToyAdapter):
    """Of which the thin teacher sees no first rows, and the wide one no last row of an item."""

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        said = super().signals(role, model, batch, features)
        place = torch.arange(batch["x"].shape[1]).repeat(len(batch["ids"]))
        blind = {"teacher-thin": place == 0, "teacher-wide": place == 4}.get(role)
        out = Signals(said.ids)
        for name in said:
            rows, layout = said[name]
            mask = layout.mask if blind is None else layout.mask & ~blind
            hidden = torch.where(
                mask.reshape(-1, *[1] * (rows.ndim - 1)), rows, torch.nan if blind is not None else rows
            )
            out.add(name, hidden if rows.is_floating_point() else rows, Layout(layout.kind, mask, *_rest(layout)))
        return out


def _rest(layout: Layout) -> tuple[Tensor, int, Any]:
    return layout.item, layout.items, layout.grid


class Learned(ToyAdapter):
    """Of which the thin teacher does not know the last class."""

    def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
        said = super().signals(role, model, batch, features)
        if role == "teacher-thin":
            said.rows("logits")[:, 3] = -torch.inf
        return said


def first_batch(toy: Any) -> Batch:
    [batch] = next(steps(toy.data("train")))
    return batch


@pytest.mark.parametrize("name", ["average", "ca_mkd", "ae_kd"])
def test_a_row_is_taught_by_those_who_see_it(tmp_path: Path, name: str) -> None:
    """Teachers that do not see a row may say NaN of it; its mixture is that of the others."""
    built = worker.made(name, tmp_path, kind=Seers)
    toy, method, roles = built.method.adapter, built.method, built.roles
    batch = first_batch(toy)
    with torch.no_grad():
        said = method.forward_role("student", roles, batch)
        taught = method.teacher_signals("student", roles, batch, said)
        each = {role: toy.signals(role, roles[role].eval(), batch) for role in worker.TEACHERS}
    logits, layout = taught["logits"]
    assert torch.equal(layout.mask, each["teacher"].layout("logits").mask), "the first one sees all"
    assert logits[layout.mask].isfinite().all()
    weights = torch.stack([taught.rows(f"{n}/weight") for n in ("teacher", "wide", "thin")])
    torch.testing.assert_close(weights.sum(dim=0)[layout.mask], torch.ones(int(layout.mask.sum())))
    for weight, one in zip(weights, each.values(), strict=True):
        assert not weight[~one.layout("logits").mask].any()
    expected = sum(
        torch.where((w > 0)[:, None], w[:, None] * torch.softmax(one.rows("logits") / 2.0, dim=-1), 0.0)
        for w, one in zip(weights, each.values(), strict=True)
    )
    torch.testing.assert_close(torch.softmax(logits / 2.0, dim=-1)[layout.mask], expected[layout.mask])
    built.fit()


def test_confidence_is_asked_of_shown_labels_only(tmp_path: Path) -> None:
    """Of a sample whose labels may not be looked at, all teachers weigh the same."""
    built = worker.made("ca_mkd", tmp_path)
    batch = dict(first_batch(built.method.adapter))
    batch["labelled"] = torch.arange(len(batch["ids"])) % 2 == 0
    with torch.no_grad():
        said = built.method.forward_role("student", built.roles, batch)
        taught = built.method.teacher_signals("student", built.roles, batch, said)
    weight, layout = taught["wide/weight"]
    hidden = layout.mask & ~batch["labelled"][layout.item]
    torch.testing.assert_close(weight[hidden], torch.full((int(hidden.sum()),), 1 / 3))
    assert (weight[layout.mask & ~hidden] - 1 / 3).abs().min() > 1e-6


def test_weights_of_a_transcript_are_those_of_its_likelihood(tmp_path: Path) -> None:
    """Frames without labels of their own: CTC per symbol, one weight for the frames of an item."""

    class Transcribed(ToyAdapter):
        blank = 0

        def signals(self, role: str, model: nn.Module, batch: Batch, features: Sequence[str] = ()) -> Signals:
            said = super().signals(role, model, batch, features)
            targets = torch.tensor([[1, 2]] * len(batch["ids"]))
            lengths = torch.tensor([2, 1] * (len(batch["ids"]) // 2))
            return said.add("labels", targets.reshape(-1), Layout.padded("token", lengths, 2))

    built = worker.made("ca_mkd", tmp_path, kind=Transcribed)
    toy, roles, batch = built.method.adapter, built.roles, first_batch(built.method.adapter)
    with torch.no_grad():
        said = built.method.forward_role("student", roles, batch)
        taught = built.method.teacher_signals("student", roles, batch, said)
        each = [toy.signals(role, roles[role], batch) for role in worker.TEACHERS]
    ce = torch.stack([
        aggregate.transcript_entropy(
            one.rows("logits").nan_to_num().reshape(12, -1, 4), batch["lengths"], torch.tensor([[1, 2]] * 12),
            torch.tensor([2, 1] * 6), 0,
        )
        for one in each
    ])  # fmt: skip
    expected = aggregate.by_confidence(ce, torch.ones_like(ce, dtype=torch.bool))
    weight, layout = taught["wide/weight"]
    torch.testing.assert_close(weight[layout.mask], expected[1][layout.item][layout.mask])


def test_teachers_of_other_classes_need_their_own_loss(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="teacher 'thin' knows 3 of the student's classes, and a mixture needs all"):
        worker.made("average", tmp_path / "a", kind=Learned).fit()
    built = worker.made("uhc", tmp_path / "b", kind=Learned)
    batch = first_batch(built.method.adapter)
    with torch.no_grad():
        assert built.method.facts(built.roles, batch) == {"classes": {"teacher": 4, "wide": 4, "thin": 3}}
    built.fit()
    bad = worker.made("uhc", tmp_path / "c", kind=Learned)
    bad.method.objectives["student"] = bad.method.objective = Objective([Term(loss="kd", params={"temperature": 2.0})])
    with pytest.raises(UserError, match=r"term 'kd': teacher 'thin' knows 3 .* only the loss uhc can compare"):
        bad.fit()


# ---------------------------------------------------------------- whole runs


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    yield


MORE = """\
teachers:
  wide: {model: mlp, params: {width: 32}, train: {steps: 4, batch_size: 6}}
  thin: {model: mlp, params: {width: 12}, train: {steps: 4, batch_size: 6}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE.replace("test_ce", "ce") + MORE)
    return str(path)


def test_a_run_reports_every_teacher_and_its_weight(recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--set", "scheme={name: you, params: {on: body, teachers: body}}", "--allow-import", "toy", "--quiet"]
    assert call(["run", recipe, "--out", str(out), *words]) == 0
    found = read_json(out / "report.json")
    assert list(found["roles"]) == ["teacher", "teacher-wide", "teacher-thin", "control", "student"]
    assert found["taught"]["student"]["weights"] == pytest.approx(dict.fromkeys(("teacher", "wide", "thin"), 1 / 3))
    assert found["control"]["terms"] == ["ce"]


def test_check_rehearses_it(recipe: str) -> None:
    found = check(load(recipe, ["scheme=ca_mkd"]), "cpu")
    assert [(one.check, one.found) for one in found if one.status == "fail"] == []


@pytest.mark.parametrize(("sets", "reason"), [
    (["scheme=average", "teachers={}"], "scheme average: one teacher is not several"),
    (["scheme=average", "objective=[{loss: ce}, {loss: hint, on: {student: body, teacher: wid/body}}]"],
     "term 'hint': no teacher is called 'wid'.*wide"),
    (["scheme={name: you, params: {on: body, teachers: {teacher: body}}}"], "give a module for each of teacher, wide"),
    (["scheme={name: ae_kd, params: {cap: 0.5}}"], "cap"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(recipe: str, sets: list[str], reason: str) -> None:
    loaded = load(recipe, sets)
    with pytest.raises(UserError, match=reason) as refused:
        role_plans(loaded, make_adapter(loaded, Streams(1)))
    assert "\n" not in str(refused.value)


def test_terms_that_disagree_on_the_temperature_must_say_which_one_mixes(tmp_path: Path) -> None:
    built = worker.made("average", tmp_path)
    terms = [Term(loss="kd", params={"temperature": 2.0}), Term(loss="kd", name="b", params={"temperature": 4.0})]
    built.method.objectives["student"] = Objective(terms)
    with pytest.raises(UserError, match=r"scheme\.params\.temperature: terms compare at temperatures 2, 4"):
        _ = built.method.temperature
