"""Knowledge transfer graph: every gate of every edge as the release has it, who learns from whom, what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import ktg_by_another as oracle
from scheme_runs import begun, content, engine

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A method of three students, at the fourth of ten steps."""
    made = content("ktg")
    made["scheme"]["params"]["edges"] = [["through"] * 3] * 3
    method, _, _, ctx = begun(tmp_path_factory.mktemp("graph"), made)
    return method, replace(ctx, step=3, stage=replace(ctx.stage, steps=10))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("gates", list(map("".join, itertools.product("tclr", repeat=3))))
def test_gates_are_the_releases(gates: str, seed: int, graph: Any) -> None:
    zs, y = oracle.inputs(seed)
    names = tuple(oracle.NAMES[gate] for gate in gates)
    expected = oracle.node_loss(0, zs, y, names, 2.0, 4, 10)
    if seed == 0:
        assert expected == pytest.approx(oracle.LOSSES[gates], rel=1e-10, abs=1e-12)
    method, ctx = graph
    method.params = method.params.model_copy(update={"edges": (names, *method.params.edges[1:])})
    layout = Layout.samples(6)
    scores = [torch.from_numpy(z).requires_grad_() for z in zs]
    outputs = {
        role: Signals(torch.arange(6)).add("logits", z, layout).add("labels", torch.from_numpy(y), layout)
        for role, z in zip(method.learners, scores, strict=True)
    }
    out = method.gated("student", outputs, ctx)
    if not any(part.weight for part in out.parts.values()):
        assert expected == 0
        return
    assert out.value().item() == pytest.approx(expected, rel=1e-7, abs=1e-8)
    clean = oracle.node_loss(0, zs, y, names, 2.0, 4, 10, eps=0.0)
    assert out.value().item() == pytest.approx(clean, rel=1e-11, abs=1e-12)
    out.value().backward()
    assert scores[1].grad is None and scores[2].grad is None
    if seed == 0 and gates in oracle.GRADIENTS:
        assert scores[0].grad is not None
        np.testing.assert_allclose(scores[0].grad[0].numpy(), oracle.GRADIENTS[gates], rtol=1e-7)


def test_all_learn_at_the_same_time(tmp_path: Path) -> None:
    """A loss that is computed before the first optimizer steps is not changed by its step."""
    method, roles, batch, ctx = begun(tmp_path, content("ktg"))
    expected = {role: out.value().item() for role, out in method.losses(batch, roles, ctx)}
    turns = method.losses(batch, roles, ctx)
    next(turns)
    with torch.no_grad():
        for parameter in roles["student"].parameters():
            parameter.add_(1.0)
    role, out = next(turns)
    assert out.value().item() == expected[role]
    again = dict(method.losses(batch, roles, ctx))[role]
    assert again.value().item() != expected[role]


def test_without_labels_the_gate_correct_stays_closed(tmp_path: Path) -> None:
    method, roles, batch, ctx = begun(tmp_path, content("ktg"))
    batch["labelled"] = torch.zeros(len(batch["labels"]), dtype=torch.bool)
    out = dict(method.losses(batch, roles, ctx))["peer-1"]
    part = out.parts["peer-1/kd/student"]
    assert part.total.item() == 0 and float(part.count) > 0


@pytest.mark.parametrize(
    ("edges", "objective", "told"),
    [
        ([["through", "linear"]], [], "edges"),
        ([["through", "linear"], ["through"]], [], "row 1 has 1 gates for 2 students"),
        ([["through", "linear"], ["cutoff", "cutoff"]], [], "nothing teaches the student of row 1"),
        ([["through", "open"], ["cutoff", "through"]], [], "edges"),
        ([["through", "correct"], ["cutoff", "through"]], [{"loss": "hint", "on": "body"}], "rows of answers alone"),
    ],
)
def test_graphs_that_there_are_not(edges: Any, objective: Any, told: str, tmp_path: Path) -> None:
    made = content("ktg")
    made["scheme"]["params"]["edges"] = edges
    made["objective"] += objective
    with pytest.raises(UserError, match=told) as caught:
        engine(tmp_path, made)
    assert "\n" not in str(caught.value)
