"""C2KD against somebody else's formulas and the release's values: which rows are compared, and all parts of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import cross_modal_by_another as oracle
from scheme_runs import begun, content, engine
from torch import Tensor

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.cross_modal import beside_true, divergence, kendall


def tensors(case: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(case[name])) for name in ("s", "t", "ps", "pt", "y")}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_all_terms_are_the_releases(number: int) -> None:
    _, case, released = oracle.cases()[number]
    at = tensors(case)
    alike = kendall(at["ps"], at["pt"]) > case["krc"]
    assert alike.int().tolist() == released["mask"]
    for mine, own, other, name in (("s", "ps", "pt", "student"), ("t", "pt", "ps", "teacher")):
        values = divergence(at[mine], at[own]) + divergence(at[own], at[mine])
        values = values + beside_true(at[other], at[own], at["y"], released=True) * alike
        assert values.mean().item() + oracle.ce(case[mine], case["y"]) == pytest.approx(released[name], rel=1e-12)


def test_the_true_class_is_left_out() -> None:
    _, case, _ = oracle.cases()[0]
    at, everywhere = tensors(case), np.ones(5)
    found = beside_true(at["pt"], at["ps"], at["y"], released=False)
    assert found.mean().item() == pytest.approx(
        oracle.nt_intended(case["ps"], case["pt"], case["y"], everywhere), rel=1e-12
    )


def test_ties_are_no_order() -> None:
    rows = [[1.0, 1.0, 2.0, 3.0], [2.0, 2.0, 2.0, 2.0], [3.0, 1.0, 2.0, 2.0]]
    other = [[1.0, 2.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0], [3.0, 0.0, 2.0, 2.0]]
    found = kendall(torch.tensor(rows), torch.tensor(other)).tolist()
    np.testing.assert_allclose(found, [oracle.tau_b(a, b) for a, b in zip(rows, other, strict=True)])


@pytest.mark.parametrize("labelled", [True, False])
def test_a_step(labelled: bool, tmp_path: Path) -> None:
    """Its value, and what learns by it; rows whose label may not be looked at are not compared across."""
    recipe = content("c2kd")
    recipe["data"] |= {"single": True, "double": True}
    recipe["scheme"]["params"] |= {"threshold": 0.1}
    recipe["objective"] = [{"loss": "test_ce"}]
    method, roles, batch, ctx = begun(tmp_path, recipe)
    if not labelled:
        batch["labelled"] = torch.arange(len(batch["labels"])) % 2 == 0
    with torch.no_grad():
        said = method.speak(roles, batch)
        answers, proxies, labels = method.rows(said)
    s, t, ps, pt = (x.numpy() for x in (*answers.values(), *proxies.values()))
    known = labels.numpy() >= 0
    assert known.all() == labelled
    mask, y = oracle.select(pt[known], ps[known], 0.1), labels.numpy()[known]
    expected = 0.0
    for mine, own, other in ((s, ps, pt), (t, pt, ps)):
        expected += oracle.ce(mine[known], y) + oracle.kl(mine, own) + oracle.kl(own, mine)
        expected += oracle.nt(own[known], other[known], y, mask)
    ((name, out),) = method.losses(batch, roles, ctx)
    assert name == "student" and out.value().item() == pytest.approx(expected, rel=1e-9)
    out.value().backward()
    learning = [*roles["student"].parameters(), *roles["teacher"].parameters(), *method.proxies.parameters()]
    assert all(x.grad is not None for x in learning)
    assert 0 <= method.facts(roles, batch)["compared"] <= 1


def test_the_runs_own_teacher_stays_as_it_was(tmp_path: Path) -> None:
    made = engine(tmp_path, content("c2kd"))
    own = made.roles["teacher"]
    before = {key: value.clone() for key, value in own.state_dict().items()}
    made.fit()
    assert made.roles["teacher"] is not own
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    tuned = made.roles["teacher"].state_dict()
    assert not all(torch.equal(value, before[key]) for key, value in tuned.items())


def test_without_a_task_no_teacher_is_tuned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="to tune the teacher by"):
        term = {"loss": "test_ce", "on": "head"}  # of what is no answer
        engine(tmp_path, content("c2kd") | {"objective": [term, {"loss": "kd"}]})


def test_rates_are_scaled_by_role_and_proxies_are_compared_in_full(tmp_path: Path) -> None:
    recipe = content("c2kd")
    recipe["train"]["optimizer"]["lr_scale"] = {"student.head.*": 0.5, "teacher.*": 0.25}
    method, roles, batch, _ = begun(tmp_path, recipe)
    scaled = method.begin(method.stages()[0], roles, batch)["student"].param_groups
    rates = {id(p): group["lr"] for group in scaled for p in group["params"]}
    assert {rates[id(p)] for p in roles["student"].head.parameters()} == {1e-2}
    assert {rates[id(p)] for p in roles["teacher"].parameters()} == {5e-3}
    assert {rates[id(p)] for p in method.proxies.parameters()} == {2e-2}
    with torch.autocast("cpu", torch.bfloat16):
        _, proxies, _ = method.rows(method.speak(roles, batch))
    assert {rows.dtype for rows in proxies.values()} == {torch.float32}
