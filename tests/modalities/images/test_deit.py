"""A vision transformer with a distillation token: who teaches its heads, what its control learns; that it is kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from oracles import token_by_another as oracle
from scheme_runs import begun, content

from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter, role_plans
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

SMALL = {"model": "cnn", "params": {"width": 4}}
RECIPE: dict[str, Any] = {
    "modality": "images", "seed": 1, "data": {"sources": "digits", "dev": 40, "test": 60},
    "teacher": {**SMALL, "train": {"steps": 2, "batch_size": 8}},
    "student": {"model": "vit", "params": {"width": 8, "depth": 1, "heads": 2, "patch": 4}},
    "scheme": {"name": "deit"}, "train": {"steps": 2, "batch_size": 8}, "trackers": [],
    "objective": [{"loss": "ce", "weight": 0.9}, {"loss": "kd", "weight": 0.1, "params": {"temperature": 3.0}}],
}  # fmt: skip


def written(folder: Path, **changed: Any) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(RECIPE) | changed))
    return str(path)


def test_the_control_teaches_both_heads_by_labels(tmp_path: Path) -> None:
    recipe = load(written(tmp_path))
    planned = {one.role: one.terms for one in role_plans(recipe, make_adapter(recipe, Streams(1)))}
    ways = {role: [(t.loss, t.signals("student"), t.weight) for t in terms] for role, terms in planned.items()}
    assert ways["student"] == [("ce", ("head",), 0.9), ("kd", ("distilled",), 0.1)]
    assert ways["control"] == [("ce", ("head",), 0.9), ("ce", ("distilled",), 0.9)]
    assert ways["teacher"] == [("ce", ("logits",), 0.9)] and planned["student"][1].signals("teacher") == ("logits",)


@pytest.mark.parametrize("hard", [True, False])
def test_a_step(tmp_path: Path, hard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value, and the slopes at both heads."""
    taught = {"loss": "hard_label", "weight": 0.5} if hard else RECIPE["objective"][1]
    made = {**content("dot"), **copy.deepcopy(RECIPE)}
    made["objective"] = [{"loss": "ce", "weight": 0.5 if hard else 0.9}, taught]
    method, roles, batch, ctx = begun(tmp_path, made)
    with torch.no_grad():
        said = method.forward_role("student", roles, batch)
        teacher = method.forward_role("teacher", roles, batch).rows("logits").double().numpy()
    cls, dist = (said.rows(name).double().numpy() for name in ("head", "distilled"))
    np.testing.assert_allclose(said.rows("logits").numpy(), oracle.predict(cls, dist), rtol=1e-5, atol=1e-7)
    labels = batch["labels"].numpy()
    expected = oracle.hard(cls, dist, teacher, labels) if hard else oracle.soft(cls, dist, teacher, labels)
    found = method.loss("student", roles, batch, ctx).value()
    np.testing.assert_allclose(found.item(), expected, rtol=1e-5)
    slopes = torch.autograd.grad(found, [roles["student"].head.bias, roles["student"].distilled.bias])
    alpha, mode = (0.5, "hard") if hard else (0.1, "soft")
    for slope, rows in zip(slopes, oracle.grads(cls, dist, teacher, labels, alpha, mode), strict=True):
        np.testing.assert_allclose(slope.numpy(), rows.sum(axis=0), rtol=1e-4, atol=1e-7)


def test_it_is_trained_saved_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert call(["run", written(tmp_path), "--out", str(out), "--quiet"]) == 0, capsys.readouterr().err
    report = read_json(out / "report.json")
    assert report["export"]["model.onnx"]["max_error"] < 1e-4
    assert call(["eval", str(out), "--json"]) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scheme": {"name": "deit", "params": {"teacher": "distiled"}}}, "distilled"),
        ({"student": SMALL}, "no module matches 'distilled'|'distilled'"),
        ({"objective": [{"loss": "ce"}, {"loss": "hint", "on": "embedding"}]}, "nothing trains 'distilled'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        begun(tmp_path, {**content("dot"), **copy.deepcopy(RECIPE), **changed})
