"""DINO against somebody else's formulas over several steps, its crops, and that labels reach the head alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import dino_by_another as oracle
from scheme_runs import begun, content, engine
from torch.nn import functional as F

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.dino import DinoParams, Projection, by_neighbours, cropped, recognised, rising


def exact(**params: Any) -> dict[str, Any]:
    made = content("dino")
    made["data"] |= {"double": True}
    made["scheme"]["params"] |= {"local": 2, "crops": [0.5, 0.9]} | params
    made["objective"] = [{"loss": "test_ce"}]
    return made


def test_losses_and_centre_of_several_steps(tmp_path: Path) -> None:
    """And the average: all move after the step, so a loss sees what was there before."""
    method, roles, batch, ctx = begun(tmp_path, exact(momentum=0.5, centre=0.7))
    students, teachers, found = [], [], []
    for step in range(3):
        ctx = replace(ctx, step=step)
        views = [method.crop(batch, ctx, number) for number in range(4)]
        with torch.no_grad():
            students.append(np.stack([method.projected("student", "student", roles, v).numpy() for v in views]))
            teachers.append(np.stack([method.projected("mean", "mean", roles, v).numpy() for v in views[:2]]))
        before = {k: v.clone().numpy() for k, v in roles["mean"].state_dict().items()}
        turns = method.losses(batch, roles, ctx)
        part = next(turns)[1].parts["dino"]
        found.append(float(part.total.detach() / part.count))
        with torch.no_grad():
            for parameter in [*roles["student"].parameters(), *method.heads["student"].parameters()]:
                parameter += 0.05 * torch.randn(parameter.shape, dtype=parameter.dtype)
        list(turns)
        momentum = oracle.teacher_momentum(step, ctx.stage.steps, base=0.5)
        assert rising(step, ctx.stage.steps, 0.5) == pytest.approx(momentum)
        for key, value in roles["mean"].state_dict().items():
            expected = oracle.ema(before[key], roles["student"].state_dict()[key].numpy(), momentum)
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-10, atol=1e-12)
    expected, centre = oracle.dino_steps(students, teachers, np.zeros(12), momentum=0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(method.memory.rows.numpy(), centre, rtol=1e-9, atol=1e-12)
    assert np.abs(centre).max() > 1e-4


def test_the_last_layer_has_directions() -> None:
    params = DinoParams(on="body", prototypes=7, hidden=5, bottleneck=3)
    head: Any = Projection(4, params).double()
    rows = torch.randn(6, 4, dtype=torch.float64)
    expected = oracle.weight_norm_last_layer(head.layers(rows).detach().numpy(), head.directions.detach().numpy())
    np.testing.assert_allclose(head(rows).detach().numpy(), expected, rtol=1e-10)


def test_nothing_reaches_the_average() -> None:
    params = DinoParams(on="body", teacher_temperature=0.5)
    rows = [torch.randn(3, 5, dtype=torch.float64) for _ in range(5)]
    student = [one.requires_grad_() for one in rows[:3]]
    recognised(student, rows[3:], torch.zeros(5, dtype=torch.float64), params).sum().backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in student)


def test_crops_are_windows() -> None:
    """All of it is itself; a window of whole pixels is those pixels; a resized ramp is a ramp."""
    x = torch.arange(2 * 6 * 8, dtype=torch.float64).reshape(2, 1, 6, 8)
    whole, half = torch.ones(2, 2), torch.tensor([[0.5, 0.5], [0.5, 0.25]])
    torch.testing.assert_close(cropped(x, whole, torch.rand(2, 2), (6, 8)), x)
    places = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = cropped(x, half, places, (3, 4))
    torch.testing.assert_close(found[0], x[0, :, :3, 4:])
    torch.testing.assert_close(cropped(x, half, places, (3, 2))[1], x[1, :, 3:, :2])
    assert cropped(x[:, 0], half, places, (3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize("whole", [False, True])
def test_labels_reach_the_head(tmp_path: Path, whole: bool) -> None:
    method, roles, batch, ctx = begun(tmp_path, exact(whole=whole))
    out = next(method.losses(batch, roles, ctx))[1]
    part = out.parts["test_ce"].total
    body, head = (list(roles["student"].get_submodule(path).parameters()) for path in ("body", "head"))
    slopes = torch.autograd.grad(part, [*body, *head], allow_unused=True)
    reached = [slope is not None and bool(slope.abs().max() > 0) for slope in slopes]
    assert all(reached[len(body) :]) and any(reached[: len(body)]) == whole
    slopes = torch.autograd.grad(out.parts["dino"].total, body, allow_unused=True)
    assert any(slope is not None and bool(slope.abs().max() > 0) for slope in slopes)


def test_nearest_neighbours(tmp_path: Path) -> None:
    built = engine(tmp_path, exact())
    adapter, model = built.method.adapter, built.roles["student"]
    params = built.method.params.model_copy(update={"neighbours": 1})
    rows, classes = [], []
    for split in ("train", "test"):
        source = adapter.data(split)
        batch = source.collate([source.sample(i, 0) for i in range(len(source))])
        said = adapter.signals("student", model, batch, ["body"])
        rows.append(F.normalize(said.rows("body").detach(), dim=1).numpy())
        classes.append(said.rows("labels").numpy())
    nearest = np.argmax(rows[1] @ rows[0].T, axis=1)
    assert by_neighbours(params, adapter, "student", model) == pytest.approx((classes[0][nearest] == classes[1]).mean())


def test_shares_are_in_order(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the smaller share first"):
        engine(tmp_path, exact(crops=[0.9, 0.5]))
