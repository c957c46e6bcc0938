"""KDGAN against somebody else's formulas and the release's values: what labels are drawn from, and all three losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import kdgan_by_another as oracle
from scheme_runs import begun, content, engine
from torch import Tensor

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.three_players import cooled, picked, relaxed, rewarded


@pytest.mark.parametrize("number", [0, 1, 2])
def test_rewards_and_noise_are_the_releases(number: int) -> None:
    _, case, released = oracle.cases()[number]
    at = {name: torch.from_numpy(np.asarray(value)) for name, value in case.items()}
    np.testing.assert_allclose(relaxed(at["zs"], at["u"], case["tau"]), released["concrete"], rtol=1e-12)
    np.testing.assert_allclose(oracle.reward(case["h"], case["gs"]), released["reward"], rtol=1e-12)
    scores = at["zs"].clone().requires_grad_()
    values = torch.stack([rewarded(scores[i : i + 1], at["h"][i : i + 1], j[None, None])[0, 0] for i, j in at["gs"]])
    expected = oracle.bce(oracle.pick(case["zs"], case["gs"]), released["reward"])
    assert values.mean().item() == pytest.approx(expected, rel=1e-12)
    values.mean().backward()
    step = 1e-6 * np.eye(4, 5)
    moved = [oracle.bce(oracle.pick(case["zs"] + way * step, case["gs"]), released["reward"]) for way in (1, -1)]
    assert scores.grad is not None
    assert scores.grad.diagonal().sum().item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-6, abs=1e-9)


def test_the_oracle_is_the_release() -> None:
    for number, (_, k, released) in enumerate(oracle.cases()):
        told = oracle.dis_loss(k["h"], k["gs"], k["gl"], k["ts"], k["tl"], k["a"])
        assert told == pytest.approx(released["dis"], rel=1e-12)
        if number == 0:
            given = released["reward"], oracle.reward(k["h"], k["ts"])
            mine = oracle.student_loss(k["zs"], k["gs"], given[0], k["zt"], k["y"], k["a"], k["w"], k["train_size"])
            theirs = oracle.teacher_loss(k["zt"], k["ts"], given[1], k["zs"], k["a"], k["v"])
            assert (mine, theirs) == pytest.approx((released["student"], released["teacher"]), rel=1e-12)


def test_stairs_and_draws() -> None:
    assert [cooled(p, 10.0, 0.1, 0.88) for p in (0.0, 0.5)] == pytest.approx([10.0, oracle.gumbel_tau(18, 36)])
    assert cooled(0.9, 1.0, 1.0, 0.5) == 1.0
    random = torch.Generator().manual_seed(1)
    shares = torch.tensor([[0.2, 0.0, 0.5, 0.3], [1.0, 0.0, 0.0, 0.0]]).double()
    found = picked(shares, torch.rand(2, 20000, generator=random, dtype=torch.float64))
    often = torch.stack([torch.bincount(row, minlength=4) for row in found]) / 20000
    torch.testing.assert_close(often.double(), shares, atol=0.015, rtol=0)
    assert picked(shares, torch.ones(2, 1).double()).max() <= 3  # rounding leaves nothing above the last class


@pytest.mark.parametrize("labelled", [True, False])
def test_a_step(labelled: bool, tmp_path: Path) -> None:
    """The three losses in turn, of the labels that the scheme has drawn, and who learns by each."""
    recipe = content("kdgan")
    recipe["data"] |= {"double": True}
    recipe["scheme"]["params"] = {"share": 0.3, "returned": 0.2, "positives": 2, "negatives": 3}
    # the release's: 0.7 CE + 0.3 sum (z_t - z_s)^2 / 2, of 4 classes
    recipe["objective"] = [{"loss": "test_ce", "weight": 0.7}, {"loss": "logit_mse", "weight": 0.6}]
    method, roles, batch, ctx = begun(tmp_path, recipe)
    if not labelled:
        batch["labelled"] = torch.arange(len(batch["labels"])) % 2 == 0
    drawn: list[tuple[np.ndarray[Any, Any], int]] = []
    named = method.named

    def remembered(scores: Tensor, uniform: Tensor, count: int, step: int) -> Tensor:
        found: Tensor = named(scores, uniform, count, step)
        drawn.append((found.numpy(), count))
        return found

    method.named = remembered
    with torch.no_grad():
        mine = method.forward_role("student", roles, batch)
        said = method.said(mine, method.tuned(roles, batch), roles, batch)
        whole = method.tuned(roles, batch)["logits"].rows.numpy(), mine["logits"].rows.numpy()
    zs, zt, h, y = (x.numpy() for x in (said.student, said.teacher, said.judge, said.labels))
    valid = mine.layout("logits").mask.numpy()
    turns = {}
    for name, out in method.losses(batch, roles, ctx):
        turns[name] = out.value().item()
        for model in roles.values():
            model.zero_grad()
        out.value().backward()
        learns = {role for role, model in roles.items() if any(p.grad is not None for p in model.parameters())}
        assert learns == {name}
    assert list(turns) == ["discriminator", "teacher", "student"]

    def at(found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array([(i, j) for i, row in enumerate(found) for j in row])

    true = [(i, int(c)) for i, c in enumerate(y) for _ in range(2)]
    gen, tch = (np.concatenate([true, at(found)]) for found, _ in drawn[:2])
    answers = np.r_[np.ones(len(true)), np.zeros(len(gen) - len(true))]
    assert [count for _, count in drawn] == [3, 3, 5, 5]
    assert turns["discriminator"] == pytest.approx(oracle.dis_loss(h, gen, answers, tch, answers, 0.3), rel=1e-9)
    samples = at(drawn[2][0])
    back = 0.2 * 0.6 * 2 / 4 * oracle.squares(whole[0][valid], whole[1][valid])  # its terms, weights and all
    expected = 0.3 * oracle.bce(oracle.pick(zt, samples), oracle.reward(h, samples)) + back
    assert turns["teacher"] == pytest.approx(expected, rel=1e-9)
    samples = at(drawn[3][0])
    expected = 0.7 * oracle.bce(oracle.pick(zs, samples), oracle.reward(h, samples))
    expected += 0.7 * oracle.ce(zs, np.eye(4)[y]) + 0.3 * oracle.squares(whole[1][valid], whole[0][valid])
    assert turns["student"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("params", "reason"), [({"returned": 1.0}, "add logit_mse"), ({"temperature": [0.1, 1.0]}, "the larger one first")]
)
def test_refusals(params: dict[str, Any], reason: str, tmp_path: Path) -> None:
    made = content("kdgan")
    made["scheme"]["params"], made["objective"] = params, [{"loss": "test_ce"}]
    with pytest.raises(UserError, match=reason):
        engine(tmp_path, made)


def test_rates_are_scaled_by_role(tmp_path: Path) -> None:
    """Of the student and of the discriminator, a network like it, alike."""
    recipe = content("kdgan")
    recipe["train"]["optimizer"]["lr_scale"] = {"student.head.*": 0.5, "teacher.*": 0.25}
    method, roles, batch, _ = begun(tmp_path, recipe)
    made = method.begin(method.stages()[0], roles, batch)
    rates = {name: {id(p): g["lr"] for g in one.param_groups for p in g["params"]} for name, one in made.items()}
    for role in ("student", "discriminator"):
        assert {rates[role][id(p)] for p in roles[role].head.parameters()} == {1e-2}
        assert {rates[role][id(p)] for p in roles[role].body.parameters()} == {2e-2}
    assert set(rates["teacher"].values()) == {5e-3}
