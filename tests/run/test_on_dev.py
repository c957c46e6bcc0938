"""Dev is not measured again for weights that the training measured there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from toy import ToyAdapter, adapter, roles

from xmodal_kd.run.on_dev import OnDev


@pytest.fixture
def toy() -> ToyAdapter:
    return adapter()


@pytest.fixture
def asked(toy: ToyAdapter, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Splits that were measured."""
    found: list[str] = []
    real: Callable[..., Any] = toy.evaluate

    def counting(role: str, model: nn.Module, split: str) -> Any:
        found.append(split)
        return real(role, model, split)

    monkeypatch.setattr(toy, "evaluate", counting)
    return found


def moved(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


def test_the_best_weights_are_known(toy: ToyAdapter, asked: list[str]) -> None:
    dev, model = OnDev(), roles(toy)["student"].eval()
    evaluate = dev.watched("student", toy, known=True)
    found = []
    states = []
    for by in (0.0, 0.3, -0.7):
        moved(model, by)
        found.append(evaluate(model))
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    name, lower = toy.metric
    best = min(range(3), key=lambda i: found[i][name] * (1 if lower else -1))
    model.load_state_dict(states[best])
    assert dev.of("student", toy, model).metrics == found[best] and asked == ["dev"] * 3
    assert dev.of("student", toy, model).metrics == found[best] and asked == ["dev"] * 4, "once"


@pytest.mark.parametrize("why", ["other weights", "another adapter", "not decided by weights", "another role"])
def test_what_is_not_known_is_measured(toy: ToyAdapter, asked: list[str], why: str) -> None:
    dev, model = OnDev(), roles(toy)["student"].eval()
    dev.watched("student", toy, known=why != "not decided by weights")(model)
    assert asked == ["dev"]
    if why == "other weights":
        moved(model, 1e-3)
    other = adapter() if why == "another adapter" else toy
    expected = other.evaluate("student", model, "dev").metrics
    before = len(asked)
    assert dev.of("control" if why == "another role" else "student", other, model).metrics == expected
    assert len(asked) == before + (other is toy)
