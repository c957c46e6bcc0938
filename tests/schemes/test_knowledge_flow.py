"""Knowledge Flow: what a layer becomes, however its tensor lies; who is asked, and what is left when nobody is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import knowledge_flow_by_another as oracle
from scheme_runs import begun, content, engine, resumed, weights
from torch import Tensor, nn

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.into_layers import mixed_into, order_of
from xmodal_kd.schemes.knowledge_flow import Flow
from xmodal_kd.schemes.rows import diverged
from xmodal_kd.signals.signals import Layout, Signal

GRID = Layout.padded("frame", torch.tensor([3, 1]), 4)
MAP = Layout.dense("pixel", 2, (4, 2))


class Said(nn.Module):
    """A network whose only layer says what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, said: Tensor) -> Tensor:
        return self.layer(said)  # type: ignore[no-any-return]


def _flow(*logits: float) -> Flow:
    torch.manual_seed(1)
    flow = Flow({"layer": (3, [2] * (len(logits) - 1))}).double()
    flow.logits[0].data = torch.tensor(logits).double()
    return flow


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (GRID, lambda rows: rows),
        (GRID, lambda rows: rows[GRID.mask]),
        (GRID, lambda rows: rows.reshape(2, 4, 3)),
        (GRID, lambda rows: rows.reshape(2, 4, 3).transpose(1, 2)),
        (GRID, lambda rows: rows.reshape(2, 4, 3).transpose(0, 1)),
        (MAP, lambda rows: rows.reshape(2, 4, 2, 3)),
        (MAP, lambda rows: rows.reshape(2, 4, 2, 3).movedim(3, 1)),
    ],
)
def test_a_layer_becomes_the_weighed_sum_however_it_lies(layout: Layout, said: Any) -> None:
    random = torch.Generator().manual_seed(2)
    rows, one, other = (torch.randn(len(layout), c, generator=random).double() for c in (3, 2, 2))
    unseen = Layout(layout.kind, layout.mask & (torch.arange(len(layout)) != 1), layout.item, layout.items, layout.grid)
    flow, model = _flow(0.2, -1.0, 0.7), Said()
    given = said(rows)
    order = order_of(given, Signal(rows, layout), "layer")
    # the first candidate does not see row 1, whose share stays with the student's own
    flows, share = flow.into(0, [Signal(one, unseen), Signal(other, layout)])
    with mixed_into(model, "layer", order, flows, share, layout):
        mixed = model(given)
    torch.testing.assert_close(model(given), given)  # and nothing is left behind
    total = sum(math.exp(x) for x in (0.2, -1.0, 0.7))
    w = [math.exp(x) / total for x in (0.2, -1.0, 0.7)]
    expected = torch.zeros_like(rows)
    for i in range(len(layout)):
        seen = i != 1
        expected[i] = (w[0] + (0 if seen else w[1])) * rows[i] + w[2] * flow.adapters[0][1](other[i])
        expected[i] += w[1] * flow.adapters[0][0](one[i]) if seen else 0
    there = said(layout.mask[:, None].expand(-1, 3))
    torch.testing.assert_close(mixed[there], said(expected)[there])


def test_rows_that_cannot_be_put_back_are_refused() -> None:
    rows = torch.randn(len(MAP), 3)
    with pytest.raises(UserError, match="cannot be undone"):
        order_of(rows.reshape(2, 4, 2, 3) + 1, Signal(rows, MAP), "layer")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixture_and_costs_are_somebody_elses(seed: int) -> None:
    given = oracle.inputs(seed)
    own, *teachers = (torch.from_numpy(maps) for maps in (given["own"], *given["teachers"]))
    layout = Layout.dense("pixel", 3, (2, 2))
    flow = Flow({"layer": (4, [5, 3])}).double()
    flow.load_state_dict({
        "logits.0": torch.from_numpy(given["w"]), "since": torch.tensor(-1),
        **{f"adapters.0.{k}.weight": torch.from_numpy(q) for k, q in enumerate(given["Q"])},
        **{f"adapters.0.{k}.bias": torch.from_numpy(b) for k, b in enumerate(given["b"])},
    })  # fmt: skip
    as_rows = [Signal(maps.movedim(1, -1).reshape(12, -1), layout) for maps in (own, *teachers)]
    order, model = order_of(own, as_rows[0], "layer"), Said()
    with mixed_into(model, "layer", order, *flow.into(0, as_rows[1:]), layout):
        mixed = model(own)
    expected = oracle.mix(given["own"], given["teachers"], given["Q"], given["b"], given["w"])
    np.testing.assert_allclose(mixed.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    assert -flow.own().sum().item() == pytest.approx(oracle.dependency([given["w"]]), rel=1e-12)
    old, new = np.random.RandomState(seed).randn(2, 6, 5)
    found = diverged(torch.from_numpy(old), torch.from_numpy(new), of_classes=True).mean()
    assert found.item() == pytest.approx(oracle.drift(old, new), rel=1e-12)


def test_change_of_numbers_is_half_their_squared_distance() -> None:
    old, new = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3)).double()
    halves = [0.5 * sum(float((old[i, k] - new[i, k]) ** 2) for k in range(4)) for i in range(5)]
    torch.testing.assert_close(diverged(old, new, of_classes=False), torch.tensor(halves).double())


def test_terms_of_a_step(tmp_path: Path) -> None:
    method, roles, batch, ctx = begun(tmp_path, content("knowledge_flow"))
    [(role, out)] = list(method.losses(batch, roles, ctx))
    assert role == "student"
    assert {"dependence", "own", "change", "test_ce", "kd", "hint"} <= out.parts.keys()
    # three candidates of one layer, two of the other, all alike at first; the cost's weight rises from 0
    assert out.parts["dependence"].total.item() == pytest.approx(math.log(3) + math.log(2))
    assert out.parts["dependence"].weight == 0.0 and method.risen(ctx.__class__(**vars(ctx) | {"step": 1})) == 0.5
    assert out.parts["change"].total.item() == pytest.approx(0.0, abs=1e-6)  # the old one is the new one


def _alone(tmp_path: Path, name: str, asked: list[int]) -> Any:
    made = content("knowledge_flow alone", steps=8, checkpoint_every=1)
    made["objective"] = [{"loss": "test_ce"}]
    built = engine(tmp_path / name, made)
    built.roles["teacher"].register_forward_hook(lambda *_: asked.append(built.at.total))
    return built


def test_teachers_are_dropped_and_asked_no_more_and_resumed_at_that_moment(tmp_path: Path) -> None:
    asked: list[int] = []
    whole = _alone(tmp_path, "whole", asked)
    whole.fit()
    flow = whole.method.flow
    since = int(flow.since)
    assert 1 < since < 8 and set(asked) == set(range(since))
    assert not any(name.startswith("flow") for name in whole.roles["student"].state_dict())
    for step in (since - 1, since, since + 1):
        again: Any = resumed(lambda step=step: _alone(tmp_path, str(step), []), step)
        assert weights(again) == weights(whole), step
        assert int(again.method.flow.since) == since


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ({"body": ["wid/body"]}, "no teacher is called 'wid'"),
        ({"bod": ["body"]}, "no module 'bod'"),
        ({"body": ["thin/logits"]}, "is an answer, and no layer"),
        ({"body": []}, "layers"),
        ({"body": ["thin/bod"]}, "no module 'bod'"),
    ],
)
def test_layers_that_there_are_not(layers: Any, told: str, tmp_path: Path) -> None:
    made = content("knowledge_flow")
    made["scheme"]["params"]["layers"] = layers
    with pytest.raises(UserError, match=told):
        engine(tmp_path, made)
