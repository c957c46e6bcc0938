"""Compiled models: the same losses, the same modules before and after, and no look inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import Term, Train
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture
from xmodal_kd.training import compiled
from xmodal_kd.training.method import Distil

TERMS = (Term(loss="test_ce"), Term(loss="kd", params={"temperature": 2.0}))


def losses(folder: Path, compile: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    made = toy.adapter(equal=True)
    models = toy.roles(made, student={"dropout": 0.3})
    train = Train(steps=4, batch_size=6, compile=compile, clip=None, eval_every=2)  # type: ignore[arg-type]
    engine = toy.engine(
        folder, train, toy=made, models=models, terms=TERMS,
        evaluate=lambda model: made.evaluate("student", model, "dev").metrics,
    )  # fmt: skip
    engine.fit()
    assert all(model._compiled_call_impl is None for model in models.values()), "and they are what they were"
    rows = [json.loads(line) for line in engine.log.path.read_text().splitlines()]
    return [{name: row[name] for name in ("test_ce", "kd") if name in row} for row in rows], models[
        "student"
    ].state_dict()


@pytest.mark.parametrize("how", [{"backend": "eager"}, pytest.param(None, marks=pytest.mark.full)])
def test_losses_are_the_same(tmp_path: Path, how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout included. Traced alone, which takes a second; compiled to machine code as it is for users."""
    if how is not None:
        monkeypatch.setattr(compiled, "DEFAULT", how)
    counted: list[int] = []
    call = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **k: (counted.append(1), call(self, **k))[1])
    plain, weights = losses(tmp_path / "plain", "none")
    assert counted == []
    fast, others = losses(tmp_path / "compiled", "default")
    assert len(counted) == 2, "teacher and student"
    assert len(fast) == len(plain) >= 2
    for a, b in zip(plain, fast, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5)


def test_terms_that_look_inside_are_refused_before_anything_is_trained() -> None:
    made = toy.adapter()
    train = Train(steps=1, compile="default")
    method = Distil(made, Objective([*TERMS, Term(loss="hint", on="body")]), train, made.streams)
    with pytest.raises(UserError, match=r"train.compile: default: a term compares 'body' of the student"):
        method.check({})
    model = toy.roles(made)["student"]
    with (
        compiled.compiling(train, [model]),
        pytest.raises(UserError, match=r"'body' is inside a compiled model"),
        capture(model, ["body"]),
    ):
        pass
    with capture(model, ["body"]):  # and outside the block it may be
        pass


def test_what_came_later_changes_no_fingerprint_where_it_is_not_used() -> None:
    from xmodal_kd.recipe.cache_spec import CacheSpec
    from xmodal_kd.recipe.fingerprint import fingerprint

    def of(train: dict[str, Any], cache: dict[str, Any] | None) -> str:
        return fingerprint({"train": dict(train), "teacher": None, "teachers": {}, "cache": cache})

    old = of({"steps": 3, "workers": 2}, {"view": "clean"})
    assert (
        of({"steps": 3, "ahead": False, "compile": "none"}, {"view": "clean", "signals": None, "match": "content"})
        == old
    )
    assert of({"steps": 3, "compile": "default"}, {"view": "clean"}) != old
    assert of({"steps": 3}, {"view": "clean", "signals": "here"}) != old
    assert CacheSpec().signals is None
