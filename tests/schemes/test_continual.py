"""Schemes that keep an old task: oracles, the exemplars' batches, whole runs, what is forgotten, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import own_heads_by_another as by_another
from oracles import scheme_teachers as oracle
from scheme_runs import begun, content
from toy import RECIPE, ToyAdapter, adapter, engine

from xmodal_kd.check import check
from xmodal_kd.cli.main import call
from xmodal_kd.losses import LOSSES
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Recipe, Term, Train, load
from xmodal_kd.run.roles import make_adapter, role_plans
from xmodal_kd.runtime.checkpoint import read_json, read_tensors
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.runtime.registry import allowed_imports
from xmodal_kd.schemes import SCHEMES
from xmodal_kd.schemes.continual import EXPERT
from xmodal_kd.schemes.exemplars import Rehearsed
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.label_budget import LabelBudget
from xmodal_kd.training.loader import steps

OLD = "{train: 12, dev: 4, test: 8, noise: 0.5}"


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    yield


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """One network for all, and terms of answers."""
    text = RECIPE.replace("test_ce", "ce").replace("  - {loss: hint, on: body}\n", "")
    path = tmp_path / "toy.yaml"
    path.write_text(text.replace("{width: 24}", "{width: 8, dropout: 0.2}"))
    return str(path)


def run(recipe: str, out: Path, *sets: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
    listed = [word for one in sets for word in ("--set", one)]
    assert call(["run", recipe, "--out", str(out), "--allow-import", "toy", "--quiet", *listed, *more]) == 0
    return dict(read_json(out / "report.json"))


def test_lwf_has_the_gradient_of_the_papers_loss() -> None:
    """A weight of 1 / T^2 on kd: the values differ by the entropy of the old answers alone."""
    draw = torch.Generator().manual_seed(0)
    student, old = (torch.randn(5, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    values = LOSSES["kd"].fn(student, old, temperature=2.0) / 4
    expected = oracle.lwf(student.detach().numpy(), old.numpy())
    q = torch.softmax(old / 2, dim=-1)
    np.testing.assert_allclose(values.detach().numpy() - (q * q.log()).sum(dim=-1).numpy(), expected, rtol=1e-9)


# ---------------------------------------------------------------- batches with exemplars


def rehearsed(labelled: bool = False, scarce: bool = False, size: int = 6) -> Rehearsed:
    toy, old = adapter(size), adapter(size, train=12)
    inner: Any = toy.data("train")
    inner = LabelBudget(inner, [0, 1, 2], size, toy.streams, pool=True) if scarce else inner
    return Rehearsed(inner, old.data("train"), [3, 5, 8], 2, toy.streams, labelled=labelled)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("scarce", [False, True])
def test_exemplars_join_every_batch(labelled: bool, scarce: bool) -> None:
    source = rehearsed(labelled, scarce)
    assert source.plan(3) == source.plan(3) != source.plan(4)
    for batch in (next(steps(source, start=at))[0] for at in range(4)):
        kept = batch["exemplar"]
        assert kept.tolist() == [False, False, False, True] * 2, "evenly, for any cut into micro-batches"
        old = batch["ids"][kept] - len(source)
        assert set(old.tolist()) <= {3, 5, 8} and len(set(old.tolist())) == 2
        assert (batch["ids"][~kept] < len(source)).all()
        assert batch["labelled"][kept].tolist() == [labelled] * 2
        assert scarce or batch["labelled"][~kept].all()
    toy = adapter(6, train=12).data("train").sample(3, 0)
    numbers = [i for i in source.plan(0)[0] if i % 2] + [1]
    assert torch.equal(
        source.inner.sample(0, 0).x if not scarce else source.inner.sample(0, 0).sample.x,
        source.sample(0, 0).sample.x if not scarce else source.sample(0, 0).sample.sample.x,
    )
    found = source.sample(1, 0).sample
    assert torch.equal((found.sample if scarce else found).x, toy.x) and numbers


def test_more_exemplars_a_batch_than_there_are() -> None:
    toy = adapter()
    with pytest.raises(UserError, match=r"scheme\.params\.per_batch: 4 of 3 exemplars"):
        Rehearsed(toy.data("train"), toy.data("train"), [0, 1, 2], 4, toy.streams, labelled=False)


# ---------------------------------------------------------------- PDR's losses


def built(folder: Path) -> Engine:
    toy = adapter(6)
    source = rehearsed()
    params = SCHEMES["pdr"].Params.model_validate({"old": {}, "weight": 0.5})
    terms = (Term(loss="test_ce"), Term(loss="kd", params={"temperature": 2.0}))
    config = Train(steps=6, batch_size=6, checkpoint_every=1)
    made: dict[str, torch.nn.Module] = {}
    for number, role in enumerate(("student", EXPERT, "teacher")):
        with toy.streams.forked("init", number):
            made[role] = toy.build(role, "mlp", {"width": 8, "dropout": 0.0})
    loaded: Any = type("Loaded", (), {"objective": terms})
    from xmodal_kd.training.role_plan import RolePlan

    student = RolePlan("student", "mlp", {}, (), terms, config, ("teacher",))
    *_, role_plan = SCHEMES["pdr"].plan(params, loaded, student)
    method = SCHEMES["pdr"](toy, Objective(role_plan.terms, steps=6), config, toy.streams, params=params)
    method.teachers = role_plan.teachers
    found = engine(folder, config, toy=toy, models=made, method=method)
    found.source = source
    return found


def test_pdr_adds_up_what_its_oracle_does(tmp_path: Path) -> None:
    """Each of the three is a mean over its own rows, and the old model's have a weight."""
    one = built(tmp_path)
    toy, roles = one.method.adapter, {name: model.eval() for name, model in one.roles.items()}
    [batch] = next(steps(one.source))
    with torch.no_grad():
        said = one.method.forward_role("student", roles, batch)
        taught = one.method.teacher_signals("student", roles, batch, said)
        out = one.method.objective(said, taught)
        rows = {role: toy.signals(role, model, batch) for role, model in roles.items()}
    layout = said.layout("logits")
    kept = batch["exemplar"][layout.item]
    new, held = (layout.mask & ~kept).numpy(), (layout.mask & kept).numpy()
    z = {role: x.rows("logits").double().numpy() for role, x in rows.items()}
    expected = oracle.pdr(
        z["student"][new], z[EXPERT][new], (z["student"][new], z["teacher"][new]),
        (z["student"][held], z["teacher"][held]), temperature=2.0, retrospection=0.5,
    )  # fmt: skip
    parts = {name: part for name, part in out.parts.items() if name.startswith("kd")}
    assert {name: part.weight for name, part in parts.items()} == {"kd": 1.0, "kd-old": 0.5, "kd-exemplars": 0.5}
    found = sum(part.weight * float(part.total / part.count) for part in parts.values())
    assert found == pytest.approx(expected, rel=1e-5)
    assert out.parts["test_ce"].count == new.sum(), "labels of exemplars are not looked at"


# ---------------------------------------------------------------- whole runs


def test_lwf_starts_as_the_old_model_and_says_what_was_forgotten(recipe: str, tmp_path: Path) -> None:
    """So does the control; the teacher has learnt the old task's samples."""
    read: dict[str, list[int]] = {}
    data = ToyAdapter.data

    def watched(self: ToyAdapter, split: str) -> Any:
        if split == "train":
            read.setdefault(str(self.config.train), []).append(1)
        return data(self, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyAdapter, "data", watched)
        found = run(recipe, tmp_path / "run", f"scheme={{name: lwf, params: {{old: {OLD}}}}}", "train.steps=1",
                    "train.optimizer.lr=1e-9", "train.ema=null", "train.eval_every=1")  # fmt: skip
    assert "12" in read and "24" in read
    assert list(found["roles"]) == ["teacher", "control", "student"]
    teacher, control, student = (read_tensors(tmp_path / "run" / r / "model.safetensors") for r in found["roles"])
    for name, value in teacher.items():
        torch.testing.assert_close(student[name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(control[name], value, rtol=0, atol=1e-6)
    old = found["facts"]["error on the old task"]
    assert set(old) == {"teacher", "control", "student"}
    lost = found["facts"]["forgotten (error, worse than the old model)"]
    assert lost == {role: pytest.approx(old[role] - old["teacher"]) for role in ("control", "student")}
    assert "error on the old task" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize("labelled", [False, True])
def test_pdr_trains_an_expert_first(recipe: str, tmp_path: Path, labelled: bool) -> None:
    scheme = f"scheme={{name: pdr, params: {{old: {OLD}, exemplars: 5, per_batch: 2, labelled: {labelled}}}}}".lower()
    found = run(recipe, tmp_path / "run", scheme)
    assert list(found["roles"]) == ["teacher", EXPERT, "control", "student"]
    assert found["taught"]["student"] == {"exemplars": {"of a batch": 2}}
    assert found["cost"]["student"]["samples"] == 8 * 8 == found["cost"]["control"]["samples"]
    assert found["cost"][EXPERT]["samples"] == 6 * 8, "new samples alone"
    assert set(found["facts"]["error on the old task"]) == set(found["roles"])


def test_a_saved_old_model_will_do(recipe: str, tmp_path: Path) -> None:
    run(recipe, tmp_path / "first", "control=false", "train.steps=2", "teacher.train.steps=2")
    teacher = f"teacher={{path: {tmp_path / 'first' / 'student'}}}"
    found = run(recipe, tmp_path / "second", f"scheme={{name: lwf, params: {{old: {OLD}}}}}", teacher, "train.steps=2")
    assert set(found["facts"]["error on the old task"]) == {"teacher", "control", "student"}


@pytest.mark.parametrize("scheme", [f"{{name: lwf, params: {{old: {OLD}}}}}",
                                    f"{{name: pdr, params: {{old: {OLD}, exemplars: 5}}}}"])  # fmt: skip
def test_check_rehearses_it(recipe: str, scheme: str) -> None:
    found = check(load(recipe, [f"scheme={scheme}"]), "cpu")
    assert [(one.check, one.found) for one in found if one.status == "fail"] == []


@pytest.mark.parametrize(("sets", "reason"), [
    (["student.params.width=9"], r"student: it starts as the old model, and 'body.0.bias' is \(9,\) here, \(8,\)"),
    (["scheme={name: lwf, params: {old: {trains: 3}}}"], r"unknown key 'scheme\.params\.old\.trains'"),
    ([f"scheme={{name: pdr, params: {{old: {OLD}, exemplars: 500}}}}"], r"scheme\.params\.exemplars: 500 of 12"),
    ([f"scheme={{name: pdr, params: {{old: {OLD}}}}}", "objective=[{loss: ce}, {loss: hint, on: body}]"],
     "term 'hint': scheme pdr compares what its two teachers answer, no features"),
    (["teacher=null"], "scheme lwf: it needs a teacher"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_trained(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], sets: list[str], reason: str
) -> None:
    listed = [w for one in [f"scheme={{name: lwf, params: {{old: {OLD}}}}}", *sets] for w in ("--set", one)]
    assert call(["run", recipe, "--out", str(tmp_path / "run"), "--allow-import", "toy", "--quiet", *listed]) == 2
    import re

    said = capfd.readouterr().err.strip()
    assert re.search(reason, said), said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def test_what_stands_beside_the_student_starts_as_it_does(recipe: str) -> None:
    loaded = load(recipe, [f"scheme={{name: lwf, params: {{old: {OLD}}}}}", "labels=6"])
    found = role_plans(loaded, make_adapter(loaded, Streams(1)))
    assert [role_plan.role for role_plan in found] == ["teacher", "control", "student", "self_training"]
    assert [len(role_plan.starts) for role_plan in found] == [0, 1, 1, 1]
    assert found[0].data is not None and isinstance(loaded.recipe, Recipe)


# ---------------------------------------------------------------- a head for each task


@pytest.mark.parametrize("seed", sorted(by_another.RELEASED))
def test_kd_at_a_quarter_is_what_releases_have(seed: int) -> None:
    """T^2 = 4 is in `kd`, and in none of theirs."""
    d, (labels, whole, pdr) = by_another.inputs(seed), by_another.RELEASED[seed]
    student, old = d["student"], d["old"]

    def ours(s: Any, t: Any) -> float:
        return float(LOSSES["kd"].fn(torch.tensor(s), torch.tensor(t), temperature=2.0).mean()) / 4

    assert by_another.ce(student["new"]["new"], d["y"]) == pytest.approx(labels, rel=1e-12)
    kept = sum(by_another.soft_ce(student[h]["new"], old[h]["new"], 2.0) for h in "ab")
    assert labels + kept == pytest.approx(whole, rel=1e-12)
    found = [
        ours(student[h]["new"], old[h]["new"]) + by_another.soft_ce(old[h]["new"], old[h]["new"], 2.0) for h in "ab"
    ]
    assert labels + sum(found) == pytest.approx(whole, rel=1e-10)
    theirs = [*((student[h][h], old[h][h]) for h in "ab"), (student["new"]["new"], d["expert"])]
    assert [ours(*pair) for pair in theirs] == pytest.approx(pdr, rel=1e-10)


def _heads(tmp_path: Path, name: str, **params: Any) -> tuple[Any, Any, Any, Any]:
    made = content(f"{name} heads")
    made["data"]["double"] = made["scheme"]["params"]["old"]["double"] = True
    made["scheme"]["params"] |= params
    return begun(tmp_path, made)


def _scores(method: Any, roles: Any, batch: Any) -> dict[str, Any]:
    """Of the student's two heads and of whatever teaches, valid rows."""
    student = roles["student"]
    hidden = student.body(batch["x"][method.adapter.signals("student", student, batch).layout("logits").mask.view(
        batch["x"].shape[:2])])  # fmt: skip
    said = {role: method.adapter.signals(role, model, batch) for role, model in roles.items()}
    mask = said["student"].layout("logits").mask
    found = {role: one.rows("logits")[mask].detach().numpy() for role, one in said.items()}
    return found | {"old": student.head.old(hidden).detach().numpy(), "mask": mask}


def test_lwf_has_labels_on_the_new_head_and_the_old_model_on_the_old_one(tmp_path: Path) -> None:
    method, roles, batch, ctx = _heads(tmp_path, "lwf", warm_up=0.0)
    [stage] = method.stages()
    for model in roles.values():
        model.eval()
    with torch.no_grad():  # so that the two heads and the old model differ
        for name, parameter in roles["student"].named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=Streams(5).torch(name), dtype=torch.float64))
    [(_, out)] = list(method.losses(batch, roles, ctx))
    z = _scores(method, roles, batch)
    said = method.adapter.signals("student", roles["student"], batch)
    labels = said.rows("labels")[z["mask"]].tolist()
    parts = {name: float((part.total / part.count).detach()) for name, part in out.parts.items()}
    assert parts["test_ce"] == pytest.approx(by_another.ce(z["student"], labels), rel=1e-9)
    assert parts["kd"] / 4 == pytest.approx(by_another.kl(z["old"], z["teacher"], 2.0), rel=1e-9)
    assert stage.name == "student" and "head.old.weight" in roles["student"].state_dict()


def test_pdr_as_released_has_the_expert_on_the_new_head_and_exemplars_on_the_old_one(tmp_path: Path) -> None:
    method, roles, batch, ctx = _heads(tmp_path, "pdr", released=True)
    for model in roles.values():
        model.eval()
    with torch.no_grad():
        for name, parameter in roles["student"].named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=Streams(5).torch(name), dtype=torch.float64))
    [(_, out)] = list(method.losses(batch, roles, ctx))
    z = _scores(method, roles, batch)
    layout = method.adapter.signals("student", roles["student"], batch).layout("logits")
    kept = batch["exemplar"][layout.item][z["mask"]].numpy()
    parts = {name: float((part.total / part.count).detach()) for name, part in out.parts.items()}
    assert parts == {
        "kd": pytest.approx(4 * by_another.kl(z["student"][~kept], z[EXPERT][~kept], 2.0), rel=1e-9),
        "kd-exemplars": pytest.approx(4 * by_another.kl(z["old"][kept], z["teacher"][kept], 2.0), rel=1e-9),
    }


@pytest.mark.parametrize("scales", [{}, {"student.head.bias": 0.0}])
def test_the_new_head_learns_alone_at_first(tmp_path: Path, scales: dict[str, float]) -> None:
    from scheme_runs import engine as built_of

    made = content("lwf heads", steps=4)
    made["scheme"]["params"]["warm_up"] = 0.5
    made["train"]["optimizer"]["lr_scale"] = scales
    one = built_of(tmp_path, made)
    before = {name: value.clone() for name, value in one.roles["student"].state_dict().items()}
    seen: list[dict[str, torch.Tensor]] = []
    one.finished = lambda stage, model: seen.append({k: v.clone() for k, v in model.state_dict().items()})
    one.fit()
    first, last = seen
    assert first.keys() == last.keys() == before.keys(), "what is saved of a stage has one head"
    moved = {name for name, value in before.items() if not torch.equal(value, first[name])}
    still = {name.removeprefix("student.") for name in scales}
    assert moved == {"head.weight", "head.bias"} - still
    assert {name for name, value in before.items() if torch.equal(value, last[name])} == still


def test_both_models_of_a_student_are_left(recipe: str, tmp_path: Path) -> None:
    """And the control's old answers are those of the old head on what the new task has made of the network."""
    scheme = f"scheme={{name: lwf, params: {{old: {OLD}, head: head}}}}"
    found = run(recipe, tmp_path / "run", scheme, "train.optimizer.lr=1e-9", "train.ema=null", "train.steps=2")
    new, old = (read_tensors(tmp_path / "run" / at / "model.safetensors") for at in ("student", "student/old"))
    teacher = read_tensors(tmp_path / "run" / "teacher" / "model.safetensors")
    for name, value in teacher.items():
        torch.testing.assert_close(old[name], value, rtol=0, atol=1e-6)
        assert name.startswith("head.") or torch.equal(old[name], new[name])
    assert not torch.allclose(new["head.weight"], teacher["head.weight"])
    assert found["roles"]["teacher"]["metrics"]["error"] is None and found["gap_closed"] is None
    assert set(found["facts"]["error on the old task"]) == {"teacher", "control", "student"}
    forgotten = found["facts"]["forgotten (error, worse than the old model)"]
    assert forgotten == {"control": pytest.approx(0, abs=1e-6), "student": pytest.approx(0, abs=1e-6)}


@pytest.mark.parametrize(("params", "sets", "reason"), [
    ("head: heads", [], "scheme.params.head: no module 'heads' in Net .nearest: head."),
    ("head: head", ["scheme.params.old.noisy=1"], r"toy.yaml.*: scheme.params.old.noisy: unknown key"),
    ("head: body", [], "scheme.params.head: 'body' is Sequential: name the linear or convolutional layer"),
    ("warm_up: 0.5", [], "warm_up: it is of a last layer of the new task's own"),
    ("head: head", ["compress=[quantise]"], "a student of two last layers is not made small: leave compress out"),
    ("head: head", ["train.compile=default"], "a compiled student has one last layer: say train.compile=none"),
])  # fmt: skip
def test_what_two_heads_cannot_be(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], params: str, sets: list[str], reason: str
) -> None:
    listed = [w for one in [f"scheme={{name: lwf, params: {{old: {OLD}, {params}}}}}", *sets] for w in ("--set", one)]
    assert call(["run", recipe, "--out", str(tmp_path / "run"), "--allow-import", "toy", "--quiet", *listed]) == 2
    import re

    said = capfd.readouterr().err.strip()
    assert re.search(reason, said), said
    assert "\n" not in said
