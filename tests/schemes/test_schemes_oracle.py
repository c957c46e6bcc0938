"""Online and self-distillation against slow NumPy formulas: values, and slopes along a random change of all weights.

The slope of an oracle, whose targets are held as the formula says, is that of the scheme's loss: so what stops a
gradient, and what lets one through, is tested too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracles import scheme_online as oracle
from oracles.logit_losses import ce
from scheme_runs import content, engine
from torch import nn

from xmodal_kd.losses.base import item_mean
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.runtime.distributed import Ranks
from xmodal_kd.runtime.timing import StepTimer
from xmodal_kd.schemes.batches import OTHER
from xmodal_kd.schemes.rows import dense_rows, pooled
from xmodal_kd.training.engine import Engine
from xmodal_kd.training.loader import steps
from xmodal_kd.training.method import Context

Array = NDArray[np.float64]
EPS = 1e-5
T = 3.0


class Case:
    """A scheme at one step of one batch, in float64, of items of one row."""

    def __init__(self, folder: Path, example: str, *, at: int = 0, **scheme: Any) -> None:
        made = content(example)
        made["data"] |= {"single": True, "double": True}
        made["objective"][1]["params"]["temperature"] = T
        made["scheme"] = {"name": made["scheme"]["name"], "params": made["scheme"].get("params", {}) | scheme}
        self.built: Engine = engine(folder, made)
        self.method: Any = self.built.method
        self.roles = self.built.roles
        [self.batch] = next(steps(self.built.source))
        stage = self.method.stages()[0]
        for name, (source, _) in stage.ema.items():
            self.roles[name] = self.roles[source]
        self.method.begin(stage, self.roles, self.batch)
        self.ctx = Context(stage, at, 0, self.built.streams, StepTimer(torch.device("cpu")), Ranks())
        self.labels = self.batch["labels"].reshape(-1).numpy()

    def losses(self) -> dict[str, LossOut]:
        found: dict[str, LossOut] = {}
        for turn, (_, out) in enumerate(self.method.losses(self.batch, self.roles, self.ctx)):
            found[self.method.learners[turn]] = out
        return found

    def logits(self, role: str = "student", view: str = "") -> Array:
        return self.rows("logits", role, view)

    def rows(self, name: str, role: str = "student", view: str = "") -> Array:
        batch = self.batch[view] if view else self.batch
        with torch.no_grad():
            rows: Array = dense_rows(self.method.forward_role(role, self.roles, batch)[name]).numpy()
        return rows

    def modules(self) -> list[nn.Module]:
        return [*(self.roles[role] for role in self.method.learners), *self.method.modules().values()]

    def slopes(self, loss: Callable[[], torch.Tensor], formula: Callable[[], float]) -> tuple[float, float]:
        """Of the scheme's loss and of a formula, along the same direction."""
        parameters = list(dict.fromkeys(p for module in self.modules() for p in module.parameters() if p.requires_grad))
        draw = torch.Generator().manual_seed(5)
        direction = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in parameters]
        gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
        mine = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                for parameter, change in zip(parameters, direction, strict=True):
                    parameter += sign * EPS * change
            values.append(formula())
        with torch.no_grad():
            for parameter, change in zip(parameters, direction, strict=True):
                parameter += EPS * change
        return mine, (values[0] - values[1]) / (2 * EPS)

    def agree(self, loss: Callable[[], torch.Tensor], formula: Callable[[], float]) -> None:
        assert loss().item() == pytest.approx(formula(), rel=1e-9)
        self.same_slope(loss, formula)

    def same_slope(self, loss: Callable[[], torch.Tensor], formula: Callable[[], float]) -> None:
        mine, expected = self.slopes(loss, formula)
        assert abs(expected) > 1e-4
        assert mine == pytest.approx(expected, rel=1e-5)


def value(out: LossOut, *left_out: str) -> torch.Tensor:
    return LossOut({n: p for n, p in out.parts.items() if not n.endswith(left_out or "?")}).value()


def test_dml(tmp_path: Path) -> None:
    case = Case(tmp_path, "dml", peers=2)
    held = [case.logits(role) for role in case.method.learners]
    for i, role in enumerate(case.method.learners):

        def formula(i: int = i) -> float:
            logits = [case.logits(other) for other in case.method.learners]
            rows = oracle.dml(logits, case.labels, targets=held, temperature=T)
            return float(rows[i].mean())

        case.agree(lambda role=role: value(case.losses()[role], "hint/peer-1", "hint/peer-2", "hint/student"), formula)  # type: ignore[misc]


@pytest.mark.parametrize("how", ["min_logit", "naive"])
def test_kdcl(tmp_path: Path, how: str) -> None:
    case = Case(tmp_path, "kdcl", how=how)
    target = oracle.kdcl_target([case.logits(role) for role in case.method.learners], case.labels, how=how)
    for role in case.method.learners:

        def formula(role: str = role) -> float:
            return float(oracle.kdcl(target, case.logits(role), case.labels, T).mean())

        case.agree(lambda role=role: value(case.losses()[role]), formula)  # type: ignore[misc]


@pytest.mark.parametrize("shared", [(), ("body.0",)])
def test_one(tmp_path: Path, shared: tuple[str, ...]) -> None:
    case = Case(tmp_path, "one", at=1, shared=shared)

    def parts(target: Array | None = None) -> oracle.One:
        gate = case.method.mixer.scores
        scores = case.rows("body.0") @ gate.weight.detach().numpy().T + gate.bias.detach().numpy()
        logits = [case.logits(role) for role in case.method.learners]
        return oracle.one(logits, scores, case.labels, target=target, temperature=T)

    held, ramp = parts().ensemble, oracle.ramp(1, 2)  # the second of two steps of the ramp

    def formula() -> float:
        found = parts(held)
        return float((found.branches.sum(0) + found.gate + ramp * found.taught.sum(0)).mean())

    case.agree(lambda: value(case.losses()["student"]), formula)


@pytest.mark.parametrize("shared", [(), ("body.0", "body.1")])
def test_okddip(tmp_path: Path, shared: tuple[str, ...]) -> None:
    case = Case(tmp_path, "okddip", at=1, shared=shared)
    peers = case.method.peers
    assert len(peers) == 3

    def targets(logits: list[Array]) -> Array:
        query, key = (layer.weight.detach().numpy() for layer in (case.method.mixer.query, case.method.mixer.key))
        return oracle.okddip_targets(logits, [case.rows("body", peer) for peer in peers], query, key)[1]

    held, ramp = [case.logits(peer) for peer in peers], oracle.ramp(1, 2)

    def formula() -> float:
        """Scores in the targets are held, the attention is not."""
        logits = [case.logits(peer) for peer in peers]
        mean = np.mean(held, axis=0)
        found = oracle.okddip(logits, case.logits(), targets(held), case.labels, mean=mean, temperature=T)
        rows = found.peers.sum(0) + found.leader + ramp * (found.among_peers.sum(0) + found.to_leader)
        return float(rows.mean())

    assert value(case.losses()["student"], "attention").item() == pytest.approx(formula(), rel=1e-9)
    case.same_slope(lambda: value(case.losses()["student"]), formula)


def test_attention_is_asymmetric_and_learns(tmp_path: Path) -> None:
    case = Case(tmp_path, "okddip", at=3)
    weights = case.method.mixer(torch.stack([torch.from_numpy(case.rows("body", p)) for p in case.method.peers], dim=1))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
    assert (weights - weights.transpose(1, 2)).abs().max().item() > 1e-3
    value(case.losses()["student"]).backward()
    assert all(float(p.grad.abs().max()) > 0 for p in case.method.mixer.parameters())


def test_byot(tmp_path: Path) -> None:
    case = Case(tmp_path, "byot", labels=0.7)
    weight = 0.3
    for name in case.method.names:
        for term in case.method.objectives[name]:
            term.term = term.term.model_copy(update={"weight": {"kd": weight, "hint": 0.03}.get(term.name, 1.0)})

    def each() -> tuple[list[Array], list[Array]]:
        with torch.no_grad():
            said = case.method.forward_role("student", case.roles, case.batch)
            heard = [*case.method._said(said).values(), said]
            return [dense_rows(s["logits"]).numpy() for s in heard], [dense_rows(s["body"]).numpy() for s in heard]

    target, target_features = (found[-1] for found in each())

    def formula() -> float:
        exits, features = each()
        rows = oracle.byot(
            exits, features, case.labels, target=target, target_features=target_features, temperature=T,
            soft=weight, hint=0.03 / features[0].shape[1],
        )  # fmt: skip
        return float(rows.sum(0).mean())  # hint is a mean over the channels, the oracle's a sum

    case.agree(lambda: value(case.losses()["student"]), formula)


def test_cs_kd(tmp_path: Path) -> None:
    case = Case(tmp_path, "cs_kd")
    order = np.arange(len(case.labels)) ^ 1
    assert (case.labels == case.labels[order]).all()
    held = case.logits()[order]

    def formula() -> float:
        return float(oracle.cs_kd(case.logits(), held, case.labels, temperature=T).mean())

    case.agree(lambda: value(case.losses()["student"], "hint"), formula)


def test_ddgsd(tmp_path: Path) -> None:
    case = Case(tmp_path, "ddgsd", mmd=0.5)
    held = case.logits(), case.logits(view=OTHER)
    assert not np.allclose(*held)

    def formula() -> float:
        found = oracle.ddgsd(case.logits(), case.logits(view=OTHER), case.labels, targets=held, temperature=T)
        return float(found.mean()) + 0.5 * oracle.linear_mmd(case.rows("body"), case.rows("body", view=OTHER))

    case.agree(lambda: value(case.losses()["student"], "hint"), formula)


def test_features_are_pooled_by_item(tmp_path: Path) -> None:
    built = engine(tmp_path, content("ddgsd"))
    [batch] = next(steps(built.source))
    said = built.method.forward_role("student", built.roles, batch)  # type: ignore[attr-defined]
    layout = said.layout("body")
    expected = item_mean(said.rows("body")[layout.mask], layout.item[layout.mask], layout.items)
    torch.testing.assert_close(pooled(said["body"]), expected)


def test_ps_kd(tmp_path: Path) -> None:
    """The second of two epochs of two steps: 0.8 of the target is the student as it was at its start."""
    case = Case(tmp_path, "ps_kd", at=2)
    for term in case.method.objective:
        term.params = term.params | ({"temperature": 1.0} if term.name == "kd" else {})
    with torch.no_grad():
        for parameter in case.roles["student"].parameters():
            parameter += 0.1
    _ = case.losses()  # the copy is made
    held = case.logits("previous")
    np.testing.assert_array_equal(held, case.logits())
    case.ctx = replace(case.ctx, step=3)
    with torch.no_grad():
        for parameter in case.roles["student"].parameters():
            parameter += 0.05

    def formula() -> float:
        return float(oracle.ps_kd(case.logits(), case.labels, held, progress=1.0).mean())

    entropy = float(-(np.exp(_log(held)) * _log(held)).sum(axis=1).mean())
    assert value(case.losses()["student"]).item() == pytest.approx(formula() - 0.8 * entropy, rel=1e-9)
    case.same_slope(lambda: value(case.losses()["student"]), formula)


def _log(z: Array) -> Array:
    found: Array = torch.from_numpy(z).log_softmax(dim=-1).numpy()
    return found


def test_ps_kd_has_no_teacher_in_the_first_epoch(tmp_path: Path) -> None:
    case = Case(tmp_path, "ps_kd")
    assert [case.method.alpha(step, 4) for step in range(4)] == pytest.approx([0, 0, 0.8, 0.8])
    out = case.losses()["student"]
    assert out.value().item() == pytest.approx(float(ce(case.logits(), case.labels).mean()), rel=1e-9)


def test_ema_teacher(tmp_path: Path) -> None:
    """The average after each step; it teaches, in evaluation mode."""
    made = content("ema_teacher")
    made["data"]["double"] = True
    built = engine(tmp_path, made)
    start = _flat(built.roles)
    states: list[Array] = []
    averages: list[Array] = []
    average = built._average

    def watched() -> None:
        average()
        states.append(_flat(built.roles))
        averages.append(_flat(built.roles, "ema"))

    built._average = watched  # type: ignore[method-assign]
    built.fit()
    for count in range(1, 5):
        np.testing.assert_allclose(averages[count - 1], oracle.ema(start, states[:count], 0.5), rtol=1e-12, atol=1e-12)
    assert all(not np.allclose(a, b) for a, b in pairwise(averages))


def _flat(roles: Mapping[str, nn.Module], role: str = "student") -> Array:
    found: Array = torch.cat([p.detach().flatten() for p in roles[role].parameters()]).numpy().copy()
    return found


def test_disagreement(tmp_path: Path) -> None:
    case = Case(tmp_path, "dml", peers=2)
    found = case.method.facts(case.roles, case.batch)["disagreement"]
    logits = {role: case.logits(role) for role in case.method.learners}
    assert found.keys() == {"student and peer-1", "student and peer-2", "peer-1 and peer-2"}
    for pair, share in found.items():
        a, b = pair.split(" and ")
        assert share == pytest.approx(oracle.disagreement([logits[a], logits[b]]))
    assert np.mean(list(found.values())) == pytest.approx(oracle.disagreement(list(logits.values())))
