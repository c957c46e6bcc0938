"""DOT: two averages of gradients, by hand, as its release steps, and in a training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.scheme_online import dot
from scheme_runs import content, engine
from torch import nn

from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.schemes.two_momenta import TAUGHT, Dot, Kept
from xmodal_kd.training.loader import steps
from xmodal_kd.training.optim import set_lr

#: Of one weight in four steps; None where a loss does not reach it.
TASK = [[0.3, -1.2, 0.7, 0.1], [0.5, 0.4, None, 0.2], [None, None, None, None]]
TEACHER = [[-0.2, 0.9, 0.4, -0.6], [None, 0.3, 0.8, 0.1], [0.6, -0.5, 0.2, 0.3]]


def walked(task: list[Any], teacher: list[Any], **settings: float) -> list[float]:
    weight = nn.Parameter(torch.tensor([[1.0]], dtype=torch.float64))
    group = [{"params": [weight], "lr": settings["lr"], "weight_decay": settings["decay"]}]
    taught = Kept(group)
    optimizer, found = Dot(group, taught, settings["momentum"], settings["delta"]), []
    for g, k in zip(task, teacher, strict=True):
        for one, value in ((taught, k), (optimizer, g)):
            weight.grad = None if value is None else torch.tensor([[value]], dtype=torch.float64)
            one.step()
        found.append(weight.item())
    return found


@pytest.mark.parametrize(("task", "teacher"), list(zip(TASK, TEACHER, strict=True)))
@pytest.mark.parametrize("delta", [0.0, 0.075])
def test_steps_are_those_of_the_oracle(task: list[Any], teacher: list[Any], delta: float) -> None:
    settings = {"lr": 0.1, "momentum": 0.9, "delta": delta, "decay": 0.01}
    assert walked(task, teacher, **settings) == pytest.approx(dot(1.0, task, teacher, **settings), rel=1e-12)


#: megvii-research/mdistiller, mdistiller/engine/dot.py, with momenta 0.825 and 0.975. Of what the
#: teacher alone reaches it does not decay the first step.
RELEASED = [
    [0.989, 1.011936, 0.9092712639999999, 0.857352960536],
    [0.949, 0.8359759999999999, 0.7281400239999999, 0.5237770073759999],
]  # fmt: skip


def test_steps_are_those_of_the_release() -> None:
    for task, teacher, expected in zip(TASK, TEACHER, RELEASED, strict=False):
        found = walked(task, teacher, lr=0.1, momentum=0.9, delta=0.075, decay=0.01)
        assert found == pytest.approx(expected, rel=1e-12)


def test_a_delta_of_0_is_plain_momentum_on_the_sum(tmp_path: Path) -> None:
    made = content("dot", clip=None)
    made["scheme"]["params"] = {"delta": 0.0}
    made["data"] |= {"single": True, "double": True}
    built = engine(tmp_path / "dot", made)
    other: Any = engine(tmp_path / "sum", made)
    built.fit()
    method, roles, [batch] = other.method, other.roles, next(steps(other.source))[:1]
    stage = method.stages()[0]
    for role in set(roles) - {"student"}:
        roles[role].requires_grad_(False).eval()
    groups = method.begin(stage, roles, batch)[TAUGHT].param_groups
    plain = torch.optim.SGD([{**group, "nesterov": False} for group in groups], momentum=0.9)
    supply = steps(other.source)
    for step in range(4):
        set_lr(plain, other.train.schedule, step, 4)
        plain.zero_grad()
        for micro in next(supply):
            outputs = method.forward_role("student", roles, micro)
            teaching = method.teacher_signals("student", roles, micro, outputs)
            method.objective(outputs, teaching).value().backward()
        plain.step()
    for name, weight in roles["student"].named_parameters():
        torch.testing.assert_close(built.roles["student"].get_parameter(name), weight, rtol=1e-9, atol=1e-12)


def test_refuses_a_teacher_alone(tmp_path: Path) -> None:
    method: Any = engine(tmp_path, content("dot")).method
    with pytest.raises(UserError, match="no term works without a teacher: add one, as ce"):
        type(method)(method.adapter, Objective([Term(loss="kd")], steps=4), method.train, method.streams)


def test_the_teacher_s_momentum_changes_what_is_learnt(tmp_path: Path) -> None:
    found = []
    for delta in (0.0, 0.09):
        made = content("dot")
        made["scheme"]["params"] = {"delta": delta}
        built = engine(tmp_path / str(delta), made)
        built.fit()
        found.append(copy.deepcopy(built.roles["student"].state_dict()))
    assert any(not np.array_equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"train": {"optimizer": {"name": "adamw"}}}, "it is a form of sgd, not of adamw: set train.optimizer.name"),
        ({"train": {"optimizer": {"name": "sgd", "betas": [0.95, 0.9]}}}, "must lie between 0 and 1"),
        ({"balance": {"name": "uncertainty"}}, "weighs losses of one sum: leave it out"),
    ],
)
def test_refuses(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    made = content("dot")
    for key, value in change.items():
        made[key] = made[key] | value if isinstance(made.get(key), dict) else value
    with pytest.raises(UserError) as refused:
        engine(tmp_path, made)
    assert text in str(refused.value)
