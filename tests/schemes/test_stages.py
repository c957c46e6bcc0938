"""Two stages by hand: which terms, which teacher, which optimizer."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from scheme_runs import content, engine

from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.loader import steps

SGD = {"optimizer": {"name": "sgd", "lr": 0.1, "betas": [0.9, 0.999]}, "clip": None, "schedule": {}}


def test_two_stages_are_two_trainings(tmp_path: Path) -> None:
    """One step of three by the first teacher's features, the others by labels, scores and features of the second; what
    the optimizer remembers and the projectors of the first are gone."""
    made = content("two_stage teachers", **SGD)
    built: Any = engine(tmp_path, made)
    batches = [micros[0] for micros in islice(steps(built.source), 4)]
    student, adapter = copy.deepcopy(built.roles["student"]), built.method.adapter
    terms = {term.name or term.loss: term for term in map(Term.model_validate, made["objective"])}
    built.fit()
    for teacher, names, some in (
        ("teacher", ["hint"], batches[:1]),
        ("teacher-wide", ["test_ce", "kd", "later"], batches[1:]),
    ):
        objective = Objective([terms[name] for name in names], steps=len(some))
        for number, batch in enumerate(some):
            said = adapter.signals("student", student.train(), batch, ["body"])
            with torch.no_grad():
                taught = adapter.signals(teacher, built.roles[teacher], batch, ["body"])
            if not number:
                objective.build(said, taught, built.streams)
                learn = [*student.parameters(), *objective.parameters()]
                optimizer = torch.optim.SGD(learn, 0.1, momentum=0.9, nesterov=True)
            optimizer.zero_grad()
            objective(said, taught, step=number).value().backward()
            optimizer.step()
    for name, value in built.roles["student"].state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changed, why",
    [
        (
            {"scheme": {"name": "two_stage", "params": {"first": ["hnt"]}}},
            "no term is called 'hnt'",
        ),
        (
            {"scheme": {"name": "two_stage", "params": {"first": ["hint", "test_ce", "kd", "later"]}}},
            "that is every term, so the second stage has none",
        ),
        ({"train": {"steps": 1}}, "set train.steps to 2 or more"),
        (
            {"scheme": {"name": "two_stage", "params": {"first": ["hint", "kd", "later"]}}},
            "no term of the second stage learns from a teacher",
        ),
        (
            {"scheme": {"name": "two_stage", "params": {"first": ["test_ce"]}}},
            "no term of the first stage learns from a teacher",
        ),
    ],
)
def test_stages_that_cannot_be(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        engine(tmp_path, content("two_stage teachers") | changed)


def test_a_third_teacher_has_no_stage(tmp_path: Path) -> None:
    made = content("two_stage teachers")
    made["teachers"] = {**made["teachers"], "third": made["teachers"]["wide"]}
    with pytest.raises(UserError, match="a stage has one teacher"):
        engine(tmp_path, made)
