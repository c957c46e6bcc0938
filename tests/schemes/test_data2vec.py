"""data2vec against somebody else's formulas and the release's values: targets, masks, and steps with their average."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import data2vec_by_another as oracle
from scheme_runs import begun, content, engine
from torch import nn

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.data2vec import instead, missed, normalised, rising_to, spans, targets
from xmodal_kd.schemes.dino import averaged


@pytest.mark.parametrize("number", [0, 1])
def test_targets_and_losses_are_the_releases(number: int) -> None:
    _, case, released = oracle.cases()[number]
    norm, final, beta = case["opt"]
    mask = torch.from_numpy(case["mask"])
    whole: Any = [torch.from_numpy(x) for x in case["layers"]]
    y = targets(whole, torch.ones(2, 7).bool(), norm, final)
    np.testing.assert_allclose(y[mask], released["y"], rtol=1e-10)
    predicted = torch.from_numpy(case["pred"]).requires_grad_()
    values = missed(predicted[mask], y[mask], beta, None)
    assert (values.sum().item(), len(values)) == (pytest.approx(released["loss"], rel=1e-10), released["n"])
    values.sum().backward()
    step = np.zeros((2, 7, 5))
    step[1, :, 2] = 1e-6
    moved = [oracle.loss(case["pred"] + way * step, y.numpy(), case["mask"], beta)[0] for way in (1, -1)]
    assert predicted.grad is not None
    assert predicted.grad[1, :, 2].sum().item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-6)
    assert rising_to(0.9999, 0.999, case["step"], 30000) == pytest.approx(released["decay"], rel=1e-12)
    mean, source = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
    for model, key in ((mean, "t"), (source, "s")):
        model.weight.data = torch.from_numpy(case[key])
    averaged(mean.requires_grad_(False), source, released["decay"])
    np.testing.assert_allclose(mean.weight, released["ema"], rtol=1e-10)


def test_padding_is_in_no_norm() -> None:
    rows = torch.randn(1, 6, 3, dtype=torch.float64)
    padded = torch.cat([rows, torch.full((1, 2, 3), 9.0)], dim=1)
    valid = torch.arange(8)[None] < 6
    np.testing.assert_allclose(normalised(padded, valid, "instance")[:, :6], oracle.instance_norm(rows.numpy()))


def test_spans() -> None:
    found = [spans(200, 0.65, 10, np.random.default_rng(seed)) for seed in range(200)]
    starts = 200 - 10 + 1
    expected = 1 - np.mean([(1 - 13 / starts) ** min(i + 1, 10, 200 - i) for i in range(200)])  # 13 spans, anywhere
    assert np.mean([len(one) for one in found]) / 200 == pytest.approx(expected, abs=0.02)
    for rows in (1, 2, 3):
        assert 1 <= len(spans(rows, 0.65, 10, np.random.default_rng(1))) <= rows
    assert len(spans(0, 0.65, 10, np.random.default_rng(1))) == 0


@pytest.mark.parametrize("shape", [(2, 6, 3), (2, 3, 2, 3)])
def test_covered_rows_are_one_vector(shape: tuple[int, ...]) -> None:
    """Of sequences, a frame longer than what is masked too, and of maps."""
    x, model = torch.randn(*shape), nn.Sequential(nn.Identity())
    covered, vector = torch.rand(2, 6 if len(shape) == 4 else 5) > 0.5, torch.tensor([7.0, 8.0, 9.0])
    with instead(model, "0", covered, torch.ones_like(covered), vector):
        found = model(x)
    rows, given = (one if one.ndim == 3 else one.flatten(2).mT for one in (found, x))
    for item in range(2):
        for row in range(6):
            hit = row < covered.shape[1] and bool(covered[item, row])
            torch.testing.assert_close(rows[item, row], vector if hit else given[item, row])
    torch.testing.assert_close(model(x), x)


def test_steps(tmp_path: Path) -> None:
    recipe = content("data2vec")
    recipe["data"] |= {"double": True}
    recipe["scheme"]["params"] |= {"layers": ["body.1", "body"], "norm": "layer", "anneal": 1.0, "shared": ["body.0"]}
    recipe["objective"] = [{"loss": "test_ce"}]
    method, roles, batch, ctx = begun(tmp_path, recipe)
    head = method.heads["student"]
    learning = [*roles["student"].body[1:].parameters(), *head.parameters()]  # a covered row of the toy knows no other
    for step in range(2):
        ctx = replace(ctx, step=step)
        with torch.no_grad():
            said = method.forward_features("mean", roles, batch, ["body.1", "body"])
            valid = said.layout("body").mask.reshape(len(batch["ids"]), -1)
            hidden = method.covered(batch, valid.numpy(), ctx)
            layers = [
                torch.nan_to_num(said.rows(path)).reshape(*valid.shape, -1).numpy() for path in ("body.1", "body")
            ]
            model = roles["student"]
            inner = model.body[0](batch["x"][valid])
            inner = torch.where(torch.from_numpy(hidden)[valid][:, None], head.instead, inner)
            rows = torch.zeros(*valid.shape, 8, dtype=torch.float64)
            rows[valid] = head(model.body[3](model.body[2](model.body[1](inner))))
        total, count = oracle.loss(rows.numpy(), oracle.targets(layers, "layer"), hidden)
        before = {name: x.clone() for name, x in roles["mean"].state_dict().items()}
        turns = method.losses(batch, roles, ctx)
        part = next(turns)[1].parts["data2vec"]
        assert (part.total.item(), part.count) == (pytest.approx(total, rel=1e-9), count)
        if step == 0:
            slopes = torch.autograd.grad(part.total, learning, retain_graph=True)
            assert all(bool(slope.abs().max() > 0) for slope in slopes)
        with torch.no_grad():
            for parameter in roles["student"].parameters():
                parameter += 0.05 * torch.randn(parameter.shape, dtype=parameter.dtype)
        list(turns)
        decay = oracle.ema_decay(step, 0.5, 0.9, ctx.stage.steps)
        for name, value in roles["mean"].state_dict().items():
            now = model.state_dict()[name].numpy()
            expected = now if name.startswith("body.0.") else oracle.ema_step(before[name].numpy(), now, decay)
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("params", "reason"), [({"layers": ["body", "head"]}, "name some of one width"), ({"at": "bodi"}, "body")]
)
def test_refusals(params: dict[str, Any], reason: str, tmp_path: Path) -> None:
    made = content("data2vec")
    made["scheme"]["params"] |= params
    with pytest.raises(UserError, match=reason):
        engine(tmp_path, made).fit()


def test_rows_that_come_before_items_are_not_masked() -> None:
    """As inside of a conformer, whose layers hear frames first."""
    model, covered = nn.ModuleDict({"turned": nn.Identity()}), torch.zeros(2, 3, dtype=torch.bool)
    with instead(model, "turned", covered, ~covered, torch.zeros(4)):
        assert model["turned"](torch.ones(2, 3, 4)).eq(1).all()
        with pytest.raises(UserError, match="not its first axis"):
            model["turned"](torch.ones(3, 2, 4))
