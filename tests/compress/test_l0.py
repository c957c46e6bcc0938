"""Pruning that is learnt: gates, expected sizes and the constraint as the oracle has them, what is taken out, runs."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from killed_runs import command, kill_with, run, same
from oracles import dphubert_by_another as oracle
from safetensors.torch import load_file
from scheme_runs import engine
from toy import MODELS, WIDTH, Config, Prunable, compressed

from xmodal_kd.cli.main import call
from xmodal_kd.compress import gates
from xmodal_kd.compress.l0 import PrunedDistil, Pruning
from xmodal_kd.runtime.checkpoint import read_json

RECIPE = compressed(
    "{name: l0_prune, params: {sparsity: 0.5, steps: 12, gate_lr: 0.5}}",
    "{model: prunable, params: {width: 16, dropout: 0.1}}",
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path


def leaf(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64, requires_grad=True)


def difference(function: Any, at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a number."""
    found = np.zeros_like(at)
    for i in range(len(at)):
        ahead, behind = at.copy(), at.copy()
        ahead[i] += step
        behind[i] -= step
        found[i] = (function(ahead) - function(behind)) / (2 * step)
    return found


# ---------------------------------------------------------------- formulas


@pytest.mark.parametrize(("name", "given", "released"), oracle.cases())
def test_gates_are_the_releases(name: str, given: dict[str, Any], released: dict[str, Any]) -> None:
    """In value against what the release's own code printed, in gradient against differences of the oracle."""
    logits, uniform = leaf(given["la"]["conv0"]), torch.tensor(given["u"])
    at, weights = given["la"]["conv0"], np.arange(1.0, 7.0)
    opened = gates.drawn(logits, uniform)
    np.testing.assert_allclose(opened.detach(), released["sample"], rtol=1e-9, atol=1e-12)
    (opened * torch.tensor(weights)).sum().backward()
    slope = difference(lambda x: float((oracle.gate_sample(x, given["u"]) * weights).sum()), at)
    np.testing.assert_allclose(logits.grad, slope, rtol=1e-5, atol=1e-7)
    logits.grad = None
    total = gates.chances(logits).sum()
    assert float(total.detach()) == pytest.approx(released["l0"], rel=1e-12)
    total.backward()
    np.testing.assert_allclose(logits.grad, difference(oracle.gate_l0, at), rtol=1e-6)
    np.testing.assert_allclose(gates.settled(logits.detach()), released["eval"], rtol=1e-6)  # printed in float32
    assert gates.initial(0.01) == pytest.approx(oracle.gate_init_mean(0.01))


@pytest.mark.parametrize(("name", "given", "released"), oracle.cases())
def test_the_constraint_is_the_releases(name: str, given: dict[str, Any], released: dict[str, Any]) -> None:
    multipliers, sparsity = leaf(given["lam"]), leaf(released["s"])
    made: Any = SimpleNamespace(params=Pruning(sparsity=0.75, steps=50_000, warmup=0.1))
    made._steps = 50_000
    target = PrunedDistil.target(made, given["step"])
    assert target == released["t"]
    value = gates.constraint(sparsity, target, multipliers)
    assert float(value.detach()) == pytest.approx(released["reg"], rel=1e-9)
    value.backward()
    over = released["s"] - released["t"]
    one, two = given["lam"]
    assert float(sparsity.grad) == pytest.approx(one + 2 * two * over)  # type: ignore[arg-type]
    up = oracle.lagrangian((1 - released["s"]) * 1000, 1000, one, two, given["step"])[3:]
    np.testing.assert_allclose(multipliers.grad, [-u for u in up], rtol=1e-9)  # type: ignore[arg-type] # they ascend


def test_one_unit_stays_of_a_group_that_all_gates_close() -> None:
    assert int((gates.settled(torch.full((5,), -20.0)) > 0).sum()) == 1
    assert gates.settled(torch.full((5,), 20.0)).min() > 0.99


# ---------------------------------------------------------------- networks


def closed(model: Prunable, logits: torch.Tensor) -> gates.Gates:
    made = gates.Gates(model, gates.units_of(model, ["*"]))
    made.log_alpha[0].data = logits
    made.attach(model)
    return made


def net(width: int) -> Prunable:
    torch.manual_seed(0)
    model: Prunable = MODELS["prunable"](Config(width=width))
    model.card = {"params": {"width": width}}
    return model


def test_a_forward_pass_draws_once_and_evaluation_never() -> None:
    model = net(8)
    made = closed(model, torch.randn(8))
    x, mask = torch.randn(2, 3, WIDTH), torch.ones(2, 3, dtype=torch.bool)
    assert not torch.equal(model(x, mask), model(x, mask))
    said = model.eval()(x, mask)
    torch.testing.assert_close(said, model(x, mask), rtol=0, atol=0)
    hidden = model.body(x[mask]) * gates.settled(made.log_alpha[0])
    torch.testing.assert_close(said, model.head(hidden))


def test_what_is_taken_out_is_what_its_gates_close() -> None:
    """The norm is over the channels that are left; the gates of these are in the weights that read them."""
    model, logits = net(8), torch.tensor([5.0, -9.0, 4.0, -8.0, 3.0, -7.0, 6.0, 2.0])
    made, before = closed(model, logits), {k: v.clone() for k, v in model.state_dict().items()}
    whole = sum(v.numel() for k, v in before.items() if "compressed" not in k)
    expected = whole * (1 - float(made.sparsity().detach()))
    share = gates.chances(logits).sum() / 8
    assert expected == pytest.approx(float(share) * (8 * (WIDTH + 3) + 4 * 8) + 4, rel=1e-6)
    made.detach(model)
    assert gates.cut(model.eval(), made) == {"hidden": 5}
    stay = torch.tensor([0, 2, 4, 6, 7])
    for name in ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"):
        assert torch.equal(model.state_dict()[name], before[name][stay])
    gate = gates.settled(logits)[stay]
    torch.testing.assert_close(model.head.weight, before["head.weight"][:, stay] * gate)
    assert model.card["params"]["width"] == 5 and model.body[1].normalized_shape == (5,)
    again = net(8)
    gates.resize(again, {"hidden": 5})
    again.load_state_dict(model.state_dict())
    x, mask = torch.randn(2, 3, WIDTH), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(again.eval()(x, mask), model(x, mask))


# ---------------------------------------------------------------- runs


@pytest.mark.full
def test_a_run_that_was_killed_in_either_stage_ends_as_one_that_was_not(recipe: Path, tmp_path: Path) -> None:
    assert run(command(recipe, tmp_path / "whole")) == 0
    steps = tmp_path / "run" / "checkpoints" / "student"
    for step in (4, 14):  # while gates close, and behind
        given = command(recipe, tmp_path / "run", "--resume")
        assert run(given, kill_with, steps / f"step-{step:08d}") == -signal.SIGKILL
    assert run(command(recipe, tmp_path / "run", "--resume")) == 0
    same(tmp_path / "run", tmp_path / "whole")
    report = read_json(tmp_path / "run" / "report.json")
    assert report["compressed"] == read_json(tmp_path / "whole" / "report.json")["compressed"]
    for role in ("control", "student"):  # each by gates of its own
        told, weights = report["compressed"][role]["l0_prune"], load_file(tmp_path / "run" / role / "model.safetensors")
        left, whole = told["left"]["hidden"]
        assert whole == 16 and 0 < left < 16 and weights["body.0.weight"].shape == (left, WIDTH)
        assert report["roles"][role]["parameters"] == told["parameters"] == sum(w.numel() for w in weights.values())
        assert told["sparsity"] == pytest.approx(1 - told["parameters"] / told["parameters_before"])
        assert math.isclose(told["sparsity"], told["expected_sparsity"], abs_tol=0.05)
        assert load_file(tmp_path / "run" / role / "prune" / "model.safetensors")["head.weight"].shape == (4, left)
    assert "What was taken out" in (tmp_path / "run" / "report.md").read_text()


def test_schedules_of_terms_run_over_each_stage(tmp_path: Path) -> None:
    """The first is longer than train.steps: a weight that falls to 0 there would be 0 for the rest of it."""
    made = yaml.safe_load(RECIPE)
    for term in made["objective"]:
        term["schedule"] = {"kind": "linear"}
    built = engine(tmp_path, made)
    seen = []
    loss = built.method.loss  # type: ignore[attr-defined]

    def remembered(role: str, roles: Any, batch: Any, ctx: Any) -> Any:
        out = loss(role, roles, batch, ctx)
        seen.append(out.parts["kd"].weight)
        return out

    built.method.loss = remembered  # type: ignore[attr-defined]
    built.fit()
    assert seen == pytest.approx([*(1 - i / 12 for i in range(12)), *(1 - i / 4 for i in range(4))])


@pytest.mark.parametrize(("sets", "said"), [
    (["student.model=mlp"], "Net does not say what can be taken out of it"),
    (["compress.params.units=[heads]"], "units: 'heads' matches none of Prunable"),
    (["train.ema=0.9"], "an average of weights has no gates"),
    (["compress=[l0_prune, qat]"], "qat stands before the same weights"),
    (["scheme=dml", "teacher=null"], "it trains the student in stages of its own"),
])  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_trained(
    sets: list[str], said: str, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = [word for one in sets for word in ("--set", one)]
    assert call(command(recipe, tmp_path / "run", *more)) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert said in line
