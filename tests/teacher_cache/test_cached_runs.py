"""Whole runs with a teacher's cache, and the command that fills one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_recipes import PLAIN, QUIET
from safetensors.torch import load_file
from torch import Tensor
from toy import ToyAdapter

from xmodal_kd.check.cached import cache as cached_check
from xmodal_kd.check.subject import prepare
from xmodal_kd.cli.main import call
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run import runner
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Signals
from xmodal_kd.training.method import Distil

# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and its run without a cache."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "quiet.yaml").write_text(QUIET)
    (folder / "toy.yaml").write_text(PLAIN)
    assert run(folder, "live") == 0
    return folder


def run(folder: Path, out: str, *more: str, recipe: str = "quiet", command: str = "run") -> int:
    words = [command, str(folder / f"{recipe}.yaml"), "--out", str(folder / out), "--allow-import", "toy"]
    return call([*words, "--device", "cpu", "--quiet", *more])


def cached(folder: Path, out: str, *more: str, **keys: str) -> dict[str, Any]:
    """The report of a run with a cache, on the teacher of the run without one."""
    teacher = ["--set", f"teacher={{path: {folder / 'live' / 'teacher'}}}"]
    assert run(folder, out, "--set", "cache={}", *teacher, *more, **keys) == 0
    report: dict[str, Any] = read_json(folder / out / "report.json")
    return report


def student(folder: Path, out: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / out / "student" / "model.safetensors")
    return found


def test_a_run_with_a_cache_gives_nearly_the_same_student(
    recipes: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    says = ToyAdapter.signals

    def watched(self: ToyAdapter, role: str, *args: Any) -> Signals:
        asked.append(role)
        return says(self, role, *args)

    monkeypatch.setattr(ToyAdapter, "signals", watched)
    # which asks as often as it has time to
    monkeypatch.setattr(runner, "latency", lambda run, **how: {"median_ms": 1.0, "p95_ms": 1.0, "runs": 1})
    facts = cached(recipes, "cached", "--set", "train.checkpoint_every=8")["cost"]["student"]["cache"]
    for name, value in student(recipes, "live").items():
        torch.testing.assert_close(student(recipes, "cached")[name], value, rtol=2e-3, atol=2e-4)
    assert facts["computed"] == 24 and facts["hit_rate"] == 0.5 and facts["epochs"] == 2.0
    assert facts["bytes"] > 0 and facts["signals"]["logits"]["bytes_per_row"] == 8
    assert 0 <= facts["loss_error"]["kd"] < 1e-3 and 0 <= facts["loss_error"]["hint"] < 1e-3
    text = (recipes / "cached" / "report.md").read_text()
    assert "50.0 % of what training asked of the teacher was read" in text
    # one batch for its shape, four of the pass; then scores (twice a role, dev and test), and the batch measured
    training = asked[: asked.index("student")]
    assert training.count("teacher") <= 1 + 1 + 8 + 24 + 5
    capfd.readouterr()


def test_few_labels_and_a_cache_go_together(recipes: Path) -> None:
    """The pool is cached like all else; what repeats is drawn by passes of the labelled samples and of the pool."""
    report = cached(recipes, "scarce", "--set", "labels=6", "--set", "self_training=false")
    facts = report["cost"]["student"]["cache"]
    assert facts["computed"] == 24 and facts["loss_error"]["kd"] < 1e-3
    more = ["--set", "labels=6", "--set", "self_training=false", "--set", "control=false"]
    assert run(recipes, "few", *more, "--set", "cache={view: replay, epochs: 1}", recipe="toy") == 0
    facts = read_json(recipes / "few" / "report.json")["cost"]["student"]["cache"]
    assert facts["computed"] <= 24 + 6 and facts["loss_error"]["kd"] < 1e-3


def test_a_stopped_run_goes_on_to_the_same_bit_with_any_workers(recipes: Path) -> None:
    cached(recipes, "whole")
    teacher = ["--set", f"teacher={{path: {recipes / 'live' / 'teacher'}}}", "--set", "cache={}"]
    assert run(recipes, "stopped", *teacher, "--set", "control=false", "--max-minutes", "0") == 0
    assert run(recipes, "stopped", *teacher, "--set", "control=false", "--resume") == 0
    for name, value in student(recipes, "whole").items():
        assert torch.equal(student(recipes, "stopped")[name], value)
    cached(recipes, "workers", "--set", "train.workers=2")
    for name, value in student(recipes, "whole").items():
        assert torch.equal(student(recipes, "workers")[name], value)


def test_a_large_teacher_is_paid_for(recipes: Path) -> None:
    facts = _facts(recipes, "large", "teacher.params.width=60000")
    assert facts["cached_ms"] < facts["live_ms"] / 2
    assert facts["paid_after_epochs"] is not None and facts["paid_after_epochs"] > 0


def _facts(folder: Path, out: str, *sets: str) -> dict[str, Any]:
    more = [word for item in (*sets, "objective=[{loss: kd}]", "teacher.train.steps=1", "cache={}", "control=false")
            for word in ("--set", item)]  # fmt: skip
    recipe = (folder / "quiet.yaml").read_text().replace("  - {loss: hint, on: body}\n", "")
    (folder / "kd.yaml").write_text(recipe)
    assert (
        run(folder, out, *[w.replace("[{loss: kd}]", "[{loss: test_ce}, {loss: kd}]") for w in more], recipe="kd") == 0
    )
    found: dict[str, Any] = read_json(folder / out / "report.json")["cost"]["student"]["cache"]
    return found


def test_the_command_fills_for_runs_to_read(recipes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shared = ["--set", f"cache.path={recipes / 'shared'}", "--set", f"teacher.path={recipes / 'live' / 'teacher'}"]
    assert run(recipes, "filled", *shared, command="cache") == 0
    out = capfd.readouterr().out
    assert "24 computed" in out and "logits: fp16, 8 bytes a frame" in out and "kd" in out
    report = cached(recipes, "reads", "--set", f"cache.path={recipes / 'shared'}")
    facts = report["cost"]["student"]["cache"]
    assert facts["computed"] == 0 and facts["found"] == 24 and facts["hit_rate"] == 1.0
    assert not (recipes / "reads" / "cache").exists()
    capfd.readouterr()


def test_two_machines_fill_parts_and_a_run_reads_what_they_said(
    recipes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, parts = str(recipes / "quiet.yaml"), [str(recipes / f"part{i}") for i in range(2)]
    own = [
        "--set",
        f"teacher.path={recipes / 'live' / 'teacher'}",
        "--allow-import",
        "toy",
        "--device",
        "cpu",
        "--quiet",
    ]
    for i, part in enumerate(parts):
        words = ["cache", "export", recipe, part, "--shard", f"{i}/2", "--out", str(recipes / f"machine{i}"), *own]
        assert call(words) == 0
        assert "12 computed" in (said := capfd.readouterr().out) and "12 samples in 1 shards" in said
    assert call(["cache", "merge", *parts, "--out", str(recipes / "all")]) == 0
    assert "24 samples in 2 shards" in capfd.readouterr().out
    assert call(["cache", "import", recipe, str(recipes / "all"), "--out", str(recipes / "imported"), *own]) == 0
    assert "0 computed" in capfd.readouterr().out
    report = cached(recipes, "carried", "--set", f"cache.signals={recipes / 'all'}")
    facts = report["cost"]["student"]["cache"]
    assert (facts["computed"], facts["found"]) == (0, 24)
    cached(recipes, "filled here")
    for name, value in student(recipes, "filled here").items():
        assert torch.equal(student(recipes, "carried")[name], value)
    capfd.readouterr()


@pytest.mark.parametrize(
    "words, said",
    [
        (["export", "toy"], "cache export: RECIPE FOLDER is expected, got toy"),
        (["one", "two"], "cache: RECIPE is expected, got one two"),
        (["merge", "part"], "cache merge: FOLDER FOLDER ... --out FOLDER is expected"),
        (["export", "toy", "x", "--shard", "4/4"], "--shard 4/4: I/N is expected, part I (from 0) of N"),
        (["export", "toy", "x", "--on-missing", "skip"], "--on-missing is of cache import"),
    ],
)  # fmt: skip
def test_words_that_cache_does_not_know(words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capfd, lambda: call(["cache", *words]))


def refused(capfd: pytest.CaptureFixture[str], done: Callable[[], int]) -> str:
    capfd.readouterr()
    assert done() == 2
    [line] = capfd.readouterr().err.splitlines()
    return line


def test_what_changes_from_epoch_to_epoch_has_no_clean_view(recipes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Before anything is trained; replayed it has, and the control sees what the student does."""
    line = refused(capfd, lambda: run(recipes, "noisy", "--set", "cache={}", recipe="toy"))
    assert "cache.view: clean" in line and "changes from epoch to epoch" in line and "cache.view=replay" in line
    assert not (recipes / "noisy").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmodal_kd.runtime.registry.allowed_imports", {"toy"})
        with pytest.raises(UserError, match="from epoch to epoch"):
            list(cached_check(prepare(load(str(recipes / "toy.yaml"), ["cache={}"]), "cpu")))
        [found] = cached_check(prepare(load(str(recipes / "quiet.yaml"), ["cache={}"]), "cpu"))
    assert found.status == "pass" and "alike in every epoch: at most 24" in found.found
    assert run(recipes, "replayed", "--set", "cache={view: replay, epochs: 2}", recipe="toy") == 0
    facts = read_json(recipes / "replayed" / "report.json")["cost"]["student"]["cache"]
    assert facts["computed"] == 48 and facts["loss_error"]["kd"] < 1e-3
    assert run(recipes, "once", "--set", "cache={view: replay, epochs: 1}", recipe="toy") == 0
    controls = [load_file(recipes / out / "control" / "model.safetensors") for out in ("replayed", "once")]
    assert any(not torch.equal(controls[0][name], value) for name, value in controls[1].items())


def test_a_cache_that_cannot_be_is_refused(
    recipes: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused(capfd, lambda: run(recipes, "x", "--set", "cache={epochs: 2}"))
    assert "epochs belongs to view: replay" in line
    line = refused(capfd, lambda: run(recipes, "x", "--set", "cache={temperature: 2}"))
    assert "give top_k" in line
    line = refused(capfd, lambda: run(recipes, "x", "--set", "cache={top_k: 2, smaller: 8}"))
    assert "top_k is another way to keep logits: give one of them" in line
    line = refused(capfd, lambda: run(recipes, "x", "--set", "cache={match: name}"))
    assert "on_missing and match are of signals that come from elsewhere: give signals" in line
    line = refused(capfd, lambda: run(recipes, "x", "--set", "cache={signals: nowhere}"))
    assert "cache.signals: nowhere: no such folder" in line and not (recipes / "x").exists()
    line = refused(capfd, lambda: run(recipes, "x", "--set", "teacher=null", command="cache"))
    assert "the recipe has no teacher" in line
    monkeypatch.setattr(Distil, "cacheable", False)
    assert "choose the method distil" in refused(capfd, lambda: run(recipes, "x", "--set", "cache={}"))
