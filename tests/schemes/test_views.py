"""Students and branches that see an augmentation of their own, terms of either of two, and the targets of KDCL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import collaborative_by_another as oracle
from oracles.logit_losses import ce
from oracles.target_losses import mlkd
from scheme_runs import begun, content, engine
from toy import Data, ToyAdapter, ToySource

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.schemes import aggregate
from xmodal_kd.schemes.batches import Without, several_views, viewed
from xmodal_kd.schemes.collaborative import held_out


def exact(example: str, **params: Any) -> dict[str, Any]:
    made = content(example)
    made["data"] |= {"single": True, "double": True}
    made["scheme"]["params"] = made["scheme"].get("params", {}) | params
    return made


def rows(method: Any, roles: Any, batch: Any) -> dict[str, Any]:
    with torch.no_grad():
        return {role: method.forward_role(role, roles, batch).rows("logits").numpy() for role in method.learners}


def test_views_are_counted_from_the_batch_itself() -> None:
    inner = ToySource(Data(train=8), "train", Streams(3), 4)
    source = several_views(inner, 3)
    batch = source.collate([source.sample(i, 2) for i in (1, 5)])
    seen = [viewed(batch, number)["x"] for number in range(3)]
    assert torch.equal(seen[0], inner.collate([inner.sample(i, 2) for i in (1, 5)])["x"])
    assert len({tuple(x.flatten().tolist()) for x in seen}) == 3
    shown = viewed({**batch, "labelled": torch.tensor([True, False])}, 2)
    assert shown["labelled"].tolist() == [True, False]


def test_each_student_sees_its_own(tmp_path: Path) -> None:
    method, roles, batch, _ = begun(tmp_path, exact("kdcl linear"))
    for number, role in enumerate(method.learners):
        said = method.forward_role(role, roles, batch).rows("logits")
        plain = method.adapter.signals(role, roles[role], viewed(batch, number)).rows("logits")
        torch.testing.assert_close(said, plain)


@pytest.mark.parametrize("own_views", [False, True])
@pytest.mark.parametrize("how", ["min_logit", "naive", "linear", "general"])
def test_kdcl(tmp_path: Path, how: str, own_views: bool) -> None:
    made = exact("kdcl general", how=how, own_views=own_views, peers=2)
    method, roles, batch, ctx = begun(tmp_path, made)
    said, labels = rows(method, roles, batch), batch["labels"].reshape(-1).numpy()
    z = np.stack(list(said.values()))
    found = dict(method.losses(batch, roles, ctx))
    if how == "general":
        held = method.adapter.data("train")
        held = held.collate([held.sample(i, 0) for i in held_out(len(held), 0.25)])
        with torch.no_grad():
            outside = [method.adapter.signals("student", roles[one].eval(), held) for one in method.learners]
        z_held = np.stack([one.rows("logits").numpy() for one in outside])
        c = oracle.error_covariance(z_held, held["labels"].reshape(-1).numpy())
        target = oracle.general(z, oracle.general_weights(c, ridge=1e-6))
    elif how == "linear":
        target = oracle.linear(z, labels)[0]
    else:
        target = {"min_logit": oracle.min_logit, "naive": oracle.naive}[how](z, labels)
    for role, mine in said.items():
        expected = oracle.cross_entropy_rows(mine, labels).mean() + oracle.kd_loss(mine, target, T=2.0)
        np.testing.assert_allclose(found[role].value().item(), expected, rtol=1e-8)


def test_likeliest_weights_are_a_minimum() -> None:
    """Also where a student is the best of its own, and where students are alike."""
    draw = np.random.default_rng(0)
    z, labels = 3 * draw.standard_normal((3, 6, 5)), draw.integers(0, 5, 6)
    z[2, 0] = z[1, 0]
    z[0, 1, labels[1]] += 30
    found = aggregate.likeliest_weights(torch.tensor(z), torch.tensor(labels)).numpy()
    np.testing.assert_allclose(found.sum(axis=0), 1)
    assert (found >= 0).all() and found[0, 1] == 1
    for row in range(6):
        assert oracle.kkt_gap(found[:, row], z[:, row : row + 1], labels[row : row + 1]) < 1e-8
    hidden = aggregate.likeliest(torch.tensor(z), torch.full((6,), -1)).numpy()
    np.testing.assert_allclose(hidden, z.mean(axis=0))


def test_nobody_learns_from_what_is_held_out(tmp_path: Path) -> None:
    built = engine(tmp_path, content("kdcl general"))
    held, whole = held_out(22, 0.25), {i for batch in built.source.plan(0) for i in batch}
    assert len(held) == 6 and not whole & set(held) and len(whole) == 16
    assert all(len(batch) == 8 for batch in built.source.plan(1))
    few = Without(ToySource(Data(train=8), "train", Streams(3), 8), [1, 2])
    assert [len(batch) for batch in few.plan(0)] == [6], "fewer than a batch are one all the same"
    built.fit()
    weights = built.method.facts(built.roles, built.source.collate([built.source.sample(0, 0)]))["weights"]
    assert sum(weights.values()) == pytest.approx(1) and built.method.weights.weights[0] != 0.5


def test_held_out_labels_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave labels out"):
        engine(tmp_path, content("kdcl general") | {"labels": 4})


def test_two_views_are_mlkd(tmp_path: Path) -> None:
    """0.1 of both cross-entropies; the surer half of the first view left out, nothing of the second."""
    made = exact("two_views", first=["weak"], second=["strong"])
    made["objective"] = [
        {"loss": "test_ce", "weight": 0.1},
        {"loss": "mlkd", "name": "weak", "weight": 0.9, "params": {"confident": "half"}},
        {"loss": "mlkd", "name": "strong", "weight": 0.9},
    ]
    method, roles, batch, ctx = begun(tmp_path, made)
    expected, labels = 0.0, batch["labels"].reshape(-1).numpy()
    for view, how in ((batch, "half"), (viewed(batch), "all")):
        with torch.no_grad():
            s, t = (method.forward_role(role, roles, view).rows("logits").numpy() for role in ("student", "teacher"))
        expected += 0.1 * ce(s, labels).mean() + 0.9 * float(mlkd(s, t, confident=how))
    np.testing.assert_allclose(method.loss("student", roles, batch, ctx).value().item(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"first": ["kdd"]}, "no term is called 'kdd'"),
        ({"first": ["kd"], "second": ["kd"]}, "name it once"),
        ({"second": ["kd", "test_ce", "hint"]}, "that is every term"),
    ],
)
def test_terms_of_a_view_that_do_not_fit(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        engine(tmp_path, content("two_views") | {"scheme": {"name": "two_views", "params": params}})


@pytest.mark.parametrize("example", ["two_views", "kdcl linear", "pcl views"])
def test_views_whose_rows_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str) -> None:
    monkeypatch.setattr(ToyAdapter, "views_differ", lambda self: "data.shake moves rows: leave it out")
    with pytest.raises(UserError, match=f"scheme {example.partition(' ')[0]}: two views of a sample have no rows"):
        engine(tmp_path, content(example))
