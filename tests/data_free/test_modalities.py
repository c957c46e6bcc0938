"""What the modalities say an input is: models answer it, gradients reach it, and who says nothing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter, make_method, models_of, role_plans
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

ROOT = Path(__file__).parents[2]


def student(recipe: str, *sets: str) -> tuple[Any, dict[str, nn.Module]]:
    """The method of the student's training and its roles, all fresh."""
    loaded, streams = load(recipe, list(sets)), Streams(1)
    adapter = make_adapter(loaded, streams)
    stand: dict[str, nn.Module] = {}
    for role_plan in role_plans(loaded, adapter):
        models = models_of(adapter, loaded, role_plan, streams, stand)
        stand[role_plan.role] = models[role_plan.role]
    method = make_method(loaded, adapter, role_plan, streams)
    method.check(models)
    return method, models


@pytest.mark.parametrize(
    ("name", "shape", "rows"),
    [("dafl", (1, 8, 8), 1), ("dfad", (1, 8, 8), 1), ("deepinversion", (1, 8, 8), 1), ("zskt", (1, 40, 96), 24)],
)
def test_roles_answer_made_inputs(
    name: str, shape: tuple[int, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    method, roles = student(f"smoke/data_free/{name}")
    asked = method.asked(method.adapter)
    assert asked.shape == shape and asked.low < asked.high
    x = torch.rand(3, *shape, requires_grad=True)
    for role in ("teacher", "student"):
        logits, layout = method.said(role, roles, x)["logits"]
        assert layout.items == 3 and len(logits[layout.mask]) == 3 * rows
        (slope,) = torch.autograd.grad(logits[layout.mask].square().sum(), x)
        assert (slope.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_mels_lie_with_the_highest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    adapter = student("smoke/data_free/zskt")[0].adapter
    x = torch.zeros(1, 1, 40, 96)
    x[0, 0, 0, 5] = 1.0
    heard = adapter.given(x)["features"]
    assert heard.shape == (1, 96, 40) and heard[0, 5, 39] == 1.0 and heard.sum() == 1.0


def test_scans_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"method zskt makes inputs .* no input whose values could be set"):
        student("smoke/points", "method=zskt", "labels=null")
