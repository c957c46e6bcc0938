"""Losses of heat maps and OKDHP's mixture, against oracles by another; poses that have no structure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import okdhp_by_another as okdhp
from oracles import pose_by_another as pose
from torch import Tensor

from xmodal_kd.losses import LOSSES
from xmodal_kd.modalities.images.losses import joints  # noqa: F401 - registers the losses
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.feature_aggregation import Aggregation, FeatureAggregation
from xmodal_kd.signals.signals import Layout, Signals


def rows_of(maps: Any, visible: Any) -> Signals:
    """Heat maps ``(b, j, h, w)`` as a role says them."""
    heat = torch.as_tensor(maps).flatten(2)
    items, joints_ = heat.shape[:2]
    item = Layout.dense("region", items, (joints_,)).item
    layout = Layout("region", torch.as_tensor(visible).flatten().bool(), item, items, (joints_,))
    return Signals().add("logits", heat, layout)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("params", [{}, {"beta": 1.0}, {"beta": 10.0, "delta": 0.3}], ids=str)
def test_integral_pose_and_heatmap_mse_have_the_values_of_the_oracle(seed: int, params: dict[str, float]) -> None:
    student, teacher, right, visible = pose.inputs(seed)
    said, taught, known = (rows_of(maps, visible) for maps in (student, teacher, right))
    said.add("heatmaps", *known["logits"])
    terms = [
        Term(loss="integral_pose", params={"width": 7, **params}), Term(loss="heatmap_mse", labels="heatmaps"),
        Term(loss="logit_mse"),
    ]  # fmt: skip
    parts = Objective(terms)(said, taught).parts
    value = {name: float(part.total / part.count) for name, part in parts.items()}
    expected = pose.structure(student, teacher, visible, **({"beta": 20.0} | params))
    assert value["integral_pose"] == pytest.approx(expected, rel=1e-9)
    assert value["heatmap_mse"] == pytest.approx(pose.maps_mse(student, right, visible), rel=1e-9)
    assert value["logit_mse"] == pytest.approx(pose.maps_mse(student, teacher, visible), rel=1e-9)


def structure(student: Tensor, teacher: Tensor, cell: Tensor, items: int = 2) -> tuple[Tensor, Tensor]:
    return LOSSES["integral_pose"].fn(student, teacher, cell, items, (4,), beta=2.0)  # type: ignore[no-any-return]


def test_the_gradient_of_a_structure_is_that_of_its_value() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 9, dtype=torch.float64)
    cell = torch.tensor([0, 1, 2, 3, 4, 5, 7])
    assert torch.autograd.gradcheck(lambda s: structure(s, teacher, cell)[0], student.requires_grad_())
    values, count = structure(teacher, teacher, cell)
    assert values.tolist() == [0, 0] and count.tolist() == [6, 3]


def test_flat_maps_and_single_joints_have_a_value_and_a_gradient() -> None:
    """All joints in one place: no distance has a slope; one joint alone has no structure."""
    flat = torch.zeros(3, 9, requires_grad=True)
    values, count = structure(flat, torch.randn(3, 9), torch.tensor([0, 1, 4]))
    values.sum().backward()
    assert flat.grad is not None and bool(flat.grad.isfinite().all())
    assert count.tolist() == [1, 0] and values[1] == 0


def test_what_does_not_fit_is_refused() -> None:
    said = rows_of(torch.randn(2, 3, 6, 7), torch.ones(2, 3))
    with pytest.raises(UserError, match=r"heat maps of 42 positions are no 6 across: set params: \{width"):
        Objective([Term(loss="integral_pose")])(said, said)
    said.add("labels", torch.zeros(6, dtype=torch.long), said.layout("logits"))
    with pytest.raises(UserError, match="say labels: heatmaps in the term"):
        Objective([Term(loss="heatmap_mse")])(said)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_okdhp_mixes_and_compares_as_its_oracle(seed: int) -> None:
    """The release's mixture, its weights, and its three sums, to the factors between its means and ours."""
    x, heat, right, w, p = okdhp.inputs(seed)
    (items, branches, joints_, height, width), channels = heat.shape, x.shape[1]
    unit = Aggregation(channels, 3, branches, joints_, axes=2, norm="batch").double()
    for m in range(branches):
        near, score = unit.near[m], unit.scores[m]
        for parameter, value in zip(
            [*near.parameters(), *score.parameters()], [p[f"{key}{m}"] for key in ("cw", "cb", "hw", "hb")], strict=True
        ):
            parameter.data = torch.from_numpy(value)
    unit.narrow.weight.data, unit.narrow.bias.data = torch.from_numpy(p["fw"]), torch.from_numpy(p["fb"])
    maps = torch.from_numpy(x).movedim(1, -1)
    feature = Signals().add("stem", maps, Layout.dense("pixel", items, (height, width)))["stem"]
    weights = unit(feature)
    mixture, expected = okdhp.aggregation(x, heat, p)
    np.testing.assert_allclose(weights.detach().movedim(2, 1), expected, rtol=1e-9)

    method = FeatureAggregation.__new__(FeatureAggregation)
    names = ("student", "peer-1", "peer-2")
    method.mixer, method.role, method.peers = unit, "student", names[1:]
    method.params = FeatureAggregation.Params(on="stem")
    method.adapter = type("Images", (), {"output": "logits"})  # type: ignore[assignment]
    said = {name: rows_of(heat[:, m], w) for m, name in enumerate(names)}
    for one in said.values():
        one.add("stem", *feature).add("heatmaps", *rows_of(right, w)["logits"])
    target = method.targets(said)["student"]
    seen = w[..., 0] > 0
    found = target.rows("logits").detach().reshape(items, joints_, height, width)
    np.testing.assert_allclose(found.numpy()[seen], mixture[seen], rtol=1e-9)

    terms = [Term(loss="heatmap_mse", labels="heatmaps"), Term(loss="kd", params={"temperature": 1.0})]
    totals = {"heatmap_mse": 0.0, "kd": 0.0}
    for one in said.values():
        for name, part in Objective(terms)(one, target).parts.items():
            totals[name] += float(part.total.detach())
    own = float(Objective(terms[:1])(target).parts["heatmap_mse"].total.detach())
    rows = items * joints_
    hard, soft = (sum(of(heat[:, m], to, w) for m in range(branches)) for of, to in (
        (okdhp.mse, right), (okdhp.kl, mixture),
    ))  # fmt: skip
    assert 0.5 * totals["heatmap_mse"] / rows == pytest.approx(hard, rel=1e-9)
    assert 0.5 * own / rows == pytest.approx(okdhp.mse(mixture, right, w), rel=1e-9)
    assert totals["kd"] / items / (height * width) == pytest.approx(soft, rel=1e-9)
