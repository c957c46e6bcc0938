"""SFTN: what the teacher is tuned by, who learns from which part of it, and what is left of the branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import sftn_by_another as oracle
from scheme_runs import begun, content, engine, resumed, weights

from xmodal_kd.runtime.errors import UserError


def _begun(tmp_path: Path, **params: Any) -> tuple[Any, Any, Any, Any]:
    made = content("sftn")
    made["data"] |= {"double": True}
    made["scheme"]["params"] |= {"labels": 0.7, "agree": 2.0, "temperature": 3.0, **params}
    return begun(tmp_path, made)


def test_tuning_is_somebody_elses(tmp_path: Path) -> None:
    method, roles, batch, ctx = _begun(tmp_path)  # of "body" first, as YAML sorts keys
    with torch.no_grad():
        theirs = method._said(roles, batch)
        branches = [method._branch(number, theirs, roles, batch) for number in range(2)]
    valid = theirs.layout("logits").mask
    z_t, *z_b = (said.rows("logits")[valid].numpy() for said in (theirs, *branches))
    labels = theirs.rows("labels")[valid].tolist()
    [(role, out)] = list(method.losses(batch, roles, ctx))
    assert role == "teacher"
    assert out.value().item() == pytest.approx(oracle.stage1(z_t, z_b, labels, 0.7, 2.0, 3.0), rel=1e-10)
    # a branch is what the student's layers make of the teacher's rows
    rows = method.adapters[0](theirs.rows("body")[valid])
    torch.testing.assert_close(branches[0].rows("logits")[valid], roles["branch-1"].head(rows))


def test_the_divergence_teaches_the_teacher_and_only_what_lies_behind_the_layer(tmp_path: Path) -> None:
    method, roles, batch, ctx = _begun(tmp_path, labels=0.0)
    [(_, out)] = list(method.losses(batch, roles, ctx))
    agree = [part for name, part in out.parts.items() if name.endswith("agree")]
    sum(part.total for part in agree).backward()
    assert roles["teacher"].body[0].weight.grad.abs().sum() > 0
    at_the_end, after_one = roles["branch-1"], roles["branch-2"]
    assert at_the_end.head.weight.grad.abs().sum() > 0 and after_one.body[1].weight.grad.abs().sum() > 0
    assert not at_the_end.body[1].weight.grad.any() and not after_one.body[0].weight.grad.any()
    assert roles["student"].head.weight.grad is None


def test_a_copy_is_tuned_and_branches_are_gone_in_the_end(tmp_path: Path) -> None:
    built = engine(tmp_path, content("sftn"))
    teacher, before = built.roles["teacher"], built.roles["teacher"].head.weight.clone()
    built.fit()
    assert torch.equal(teacher.head.weight, before)
    assert not torch.equal(built.roles["teacher"].head.weight, before)
    assert built.roles.keys() == {"student", "teacher"} and built.method.modules().keys() == {"objective"}


@pytest.mark.parametrize("step", [2, 3, 5])
def test_it_goes_on_in_either_stage_as_if_nothing_had_been(step: int, tmp_path: Path) -> None:
    made = content("sftn", checkpoint_every=1)
    whole = engine(tmp_path / "whole", made)
    whole.fit()
    again = resumed(lambda: engine(tmp_path / "stopped", made), step)
    assert weights(again) == weights(whole)


def test_other_modules_are_refused(tmp_path: Path) -> None:
    made = content("sftn")
    made["scheme"]["params"]["layers"] = {"body": "bod"}
    with pytest.raises(UserError, match="no module 'bod'"):
        engine(tmp_path, made)
