"""What differs between two runs, on folders written by hand: what is the same is not told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from xmodal_kd.cli.main import call
from xmodal_kd.compare.run_diff import difference
from xmodal_kd.run.run_folder import read_state, write_state
from xmodal_kd.runtime.checkpoint import write_json
from xmodal_kd.runtime.errors import UserError

Capture = pytest.CaptureFixture[str]
RECIPE: dict[str, Any] = {
    "modality": "speech", "seed": 1, "data": {"path": "/a"}, "train": {"steps": 10, "betas": [0.9, 0.99]},
    "objective": [{"loss": "ctc", "weight": 1.0}, {"loss": "kd", "weight": 0.3}],
}  # fmt: skip
ERRORS = np.random.Generator(np.random.Philox(0)).integers(0, 4, 40)


def run(folder: Path, *, better: int = 0, **changes: Any) -> Path:
    """A finished run whose student makes `better` errors fewer on every item that has that many."""
    scores = [
        {"item": f"u{i}", "group": "anna", "errors": float(max(0, e - better)), "units": 5.0}
        for i, e in enumerate(ERRORS)
    ]
    wer = sum(s["errors"] for s in scores) / 200
    metrics = {"wer": wer, "by_speaker": {"anna": wer}}
    role = {"parameters": 7, "flops_per_sample": 9.0, "metrics": metrics, "dev_metrics": {"wer": wer}}
    report = {
        "recipe": "a.yaml", "method": "distil", "seed": 1, "overrides": {}, "gap_closed": None, "reason": "no teacher",
        "data": {}, "export": {}, "modality": "speech", "versions": {"torch": "2.11"}, "device": "cpu", "threads": 1,
        "metric": {"name": "wer", "lower_is_better": True}, "roles": {"student": role},
        "cost": {"student": {"steps": 10, "seconds": 4.0}, "peak_memory_bytes": 100},
    }  # fmt: skip
    folder.mkdir()
    recipe = copy.deepcopy(RECIPE) | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_json(folder / "report.json", report)
    write_state(
        folder, {"fingerprint": "none", "roles": {"student": {**role, "scores": scores, "examples": [], "latency": {}}}}
    )
    return folder


def rewrite(folder: Path, name: str, **changes: Any) -> None:
    content = json.loads((folder / name).read_text())
    write_json(folder / name, content | changes)


def rescored(folder: Path, scores: Any) -> None:
    state = read_state(folder)
    state["roles"]["student"]["scores"] = scores
    write_state(folder, state)


def test_equal_runs_do_not_differ(tmp_path: Path) -> None:
    found = difference(run(tmp_path / "a"), run(tmp_path / "b"))
    assert found["recipe"] == found["versions"] == found["machine"] == {}
    student = found["roles"]["student"]
    assert student["metrics"]["wer"]["difference"] == 0 and student["interval"] == [0, 0] and student["items"] == 40


def test_recipes_by_key_and_terms_by_name(tmp_path: Path) -> None:
    terms = [{"loss": "hint", "weight": 1.0}, RECIPE["objective"][0], {"loss": "kd", "weight": 0.5}]
    train = {"steps": 20, "betas": [0.9, 0.99]}
    found = difference(run(tmp_path / "a"), run(tmp_path / "b", objective=terms, train=train))["recipe"]
    assert found == {
        "train.steps": {"a": 10, "b": 20},
        "objective.kd.weight": {"a": 0.3, "b": 0.5},
        "objective.hint.loss": {"b": "hint"},
        "objective.hint.weight": {"b": 1.0},
    }


def test_metrics_with_intervals_over_shared_items(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b", better=1)
    student = difference(a, b)["roles"]["student"]
    mean = -float((ERRORS > 0).sum()) / 200
    assert student["difference"] == pytest.approx(mean) and student["metrics"]["wer"]["difference"] == pytest.approx(
        mean
    )
    low, high = student["interval"]
    assert low < mean < high < 0
    state = json.loads((b / "state.json").read_text())["roles"]["student"]["scores"]
    rescored(b, state[:30])
    shared = difference(a, b)["roles"]["student"]
    assert shared["items"] == 30 and shared["of"] == {"a": 40, "b": 30}
    assert shared["difference"] == pytest.approx(-float((ERRORS[:30] > 0).sum()) / 150)


def test_fewer_errors_are_a_higher_accuracy(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b", better=1)
    words = difference(a, b)["roles"]["student"]
    for folder in (a, b):
        rewrite(folder, "report.json", metric={"name": "wer", "lower_is_better": False})
    found = difference(a, b)["roles"]["student"]
    assert found["difference"] == -words["difference"] > 0
    assert found["interval"] == pytest.approx([-words["interval"][1], -words["interval"][0]], abs=1e-12)


def test_why_there_is_no_interval(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    scores = json.loads((b / "state.json").read_text())["roles"]["student"]["scores"]

    def reason(changed: list[dict[str, Any]]) -> str:
        rescored(b, changed)
        student = difference(a, b)["roles"]["student"]
        assert student["interval"] is None
        return str(student["reason"])

    assert "in common" in reason(scores[:1]) and "in common" in reason([])
    assert "differ in size" in reason([s | {"units": 6.0} for s in scores])
    write_state(b, {**read_state(b), "roles": {}})
    assert "only one" in difference(a, b)["roles"]["student"]["reason"]
    other = {"parameters": 7, "flops_per_sample": 9.0, "metrics": {"cer": 0.1}, "dev_metrics": {"cer": 0.1}}
    rewrite(b, "report.json", metric={"name": "cer", "lower_is_better": True}, roles={"student": other})
    found = difference(a, b)
    assert "different metrics" in found["roles"]["student"]["reason"]
    assert found["metric"] == {"name": {"a": "wer", "b": "cer"}}


def test_versions_machine_and_cost(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    cost = {"student": {"steps": 10, "seconds": 6.0}, "peak_memory_bytes": 100}
    rewrite(b, "report.json", versions={"torch": "2.12", "onnx": "1"}, threads=2, cost=cost)
    found = difference(a, b)
    assert found["versions"] == {"torch": {"a": "2.11", "b": "2.12"}, "onnx": {"b": "1"}}
    assert found["machine"] == {"threads": {"a": 1, "b": 2}}
    assert found["cost"]["student"]["seconds"] == {"a": 4.0, "b": 6.0}
    assert found["cost"]["run"] == {"peak_memory_bytes": {"a": 100, "b": 100}}


def test_the_command(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    run(Path("a")), run(Path("b"), better=1, seed=2, data={"path": "/b"})
    assert call(["diff", "a", "b", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == difference(Path("a"), Path("b"))
    assert call(["diff", "a", "b"]) == 0
    text = capfd.readouterr().out
    assert "versions: the same" in text and "data.path" in text and "may not be the same samples" in text
    assert "[-0." in text and "inside the noise" not in text and "by_speaker" not in text
    assert call(["diff", "a", "a"]) == 0
    assert "+0.0000 [+0.0000, +0.0000], inside the noise" in capfd.readouterr().out


def test_what_is_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report\.json"):
        difference(run(tmp_path / "a"), tmp_path)
    (tmp_path / "a" / "state.json").unlink()
    with pytest.raises(UserError, match="is not a run"):
        difference(tmp_path / "a", tmp_path / "a")
