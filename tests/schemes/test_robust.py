"""ARD and RSLAD: the attack against an oracle and a release, the losses against formulas, and what is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import scheme_online as oracle
from released_rows import rows
from scheme_runs import begun, content, engine, loaded
from torch import nn
from torch.nn import functional as F

from xmodal_kd.cli.main import call
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.robust import attack, pgd, under_attack


def test_the_attack_is_that_of_the_oracle() -> None:
    weight, bias, clean = rows(2, 5, 6), rows(3, 1, 5)[0], 0.5 * rows(0, 4, 6)
    aim = rows(1, 4, 5).softmax(dim=1)
    settings: dict[str, Any] = {"radius": 0.3, "step": 0.11, "steps": 4}

    def harm(x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x @ weight.T + bias, aim, reduction="sum")

    start = clean + 0.2 * rows(4, 4, 6).sin()
    found = pgd(clean, start, harm, bounds=(-0.8, 0.9), **settings)
    arrays = (x.numpy() for x in (weight, bias, clean, start, aim))
    expected = oracle.pgd(*arrays, low=-0.8, high=0.9, **settings)
    inside = (clean >= -0.8) & (clean <= 0.9)
    np.testing.assert_allclose(found[inside].numpy(), expected[inside.numpy()], atol=1e-12)


def test_the_attack_is_that_of_the_release() -> None:
    """zibojia/RSLAD, c40e04f, rslad_loss.py: rslad_inner_loss of a net of two layers, with its noise of 0.001."""
    net = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    for layer, weight in ((net[0], rows(2, 6, 12)), (net[2], rows(3, 5, 6))):
        layer.weight.data.copy_(weight), layer.bias.data.zero_()
    x, log_p = 0.5 + 0.2 * rows(0, 8, 12).sin(), rows(1, 8, 5).log_softmax(dim=1)

    def harm(x: torch.Tensor) -> torch.Tensor:
        return F.kl_div(net(x).log_softmax(dim=1), log_p, reduction="sum", log_target=True)

    moved = pgd(x, x + 1e-3 * rows(5, 8, 12), harm, bounds=(0.0, 1.0), radius=0.031, step=0.003, steps=10)
    logits = net(moved).detach()
    assert logits.sum().item() == pytest.approx(29.260644394530765, rel=1e-12)
    assert logits[2, 3].item() == pytest.approx(2.4031738808991774, rel=1e-12)
    assert (moved - x).abs().max() <= 0.031 + 1e-12


@pytest.mark.parametrize(("name", "share"), [("ard", 1.0), ("rslad", 5 / 6)])
def test_losses_are_those_of_the_formula(tmp_path: Path, name: str, share: float) -> None:
    made = content(name)
    made["data"] |= {"single": True, "double": True}
    made["objective"] = made["objective"][:2]
    method, roles, batch, ctx = begun(tmp_path, made)
    with torch.no_grad():
        teacher, clean = (method.forward_role(role, roles, batch) for role in ("teacher", "student"))
        moved = attack(method, "student", roles, batch, ctx, method.harm(teacher), anywhere=method.anywhere)
        attacked = method.forward_role("student", roles, moved)
    assert 0 < (moved["x"] - batch["x"]).abs().max() <= method.params.radius * 18 + 1e-12
    logits = [one.rows("logits")[clean.layout("logits").mask].numpy() for one in (clean, attacked, teacher)]
    labels = clean.rows("labels")[clean.layout("labels").mask].numpy()
    expected = oracle.robust(*logits, labels, share=share, temperature=2.0).mean()
    assert method.loss("student", roles, batch, ctx).value().item() == pytest.approx(expected, rel=1e-9)


def test_control_and_teacher_learn_on_attacked_inputs_and_the_report_has_the_accuracy(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, content("ard", steps=2))
    from xmodal_kd.run.roles import make_adapter, role_plans
    from xmodal_kd.runtime.random_streams import Streams

    adapter = make_adapter(recipe, Streams(3))
    planned = {one.role: one.method.__name__ for one in role_plans(recipe, adapter) if one.method is not None}
    assert planned["control"] == planned["teacher"] == "Attacking"
    run = ["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--allow-import", "toy", "--quiet"]
    assert call([*run, "--device", "cpu", "--set", "scheme.params.tested=3"]) == 0
    found = read_json(tmp_path / "run" / "report.json")["facts"]["accuracy under an attack of 3 steps"]
    assert found.keys() >= {"teacher", "control", "student"} and all(0 <= value <= 1 for value in found.values())


def test_an_attack_finds_what_is_wrong(tmp_path: Path) -> None:
    """Within a radius of nothing it is the plain accuracy; within all of the range hardly anything is right."""
    built = engine(tmp_path, content("ard"))
    method: Any = built.method
    values = []
    for radius in (1e-9, 1.0):
        params = method.params.model_copy(update={"radius": radius, "step": radius / 4})
        values.append(under_attack(params, method.adapter, "student", built.roles["student"].eval()))
    assert values[1] < values[0]


def test_refuses_what_cannot_be_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toy.ToyAdapter.input", lambda self: None)
    with pytest.raises(UserError, match="samples of this modality have no such input: choose another scheme"):
        engine(tmp_path, content("rslad"))
