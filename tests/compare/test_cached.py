"""A comparison runs its teacher once: arms and seeds read one cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from cells_inside import Inside, pool
from toy import RECIPE

from xmodal_kd.compare import Plan, compare
from xmodal_kd.compare import cells as cells_module
from xmodal_kd.compare.plan import shared_cache
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.registry import allowed_imports

SHORT = ("train.steps=4", "teacher.train.steps=2", "trackers=[]", "data.noise=0.0")


def test_arms_and_seeds_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    monkeypatch.setattr(cells_module, "POLL", 0.0)
    (tmp_path / "toy.yaml").write_text(RECIPE)
    recipe, out = str(tmp_path / "toy.yaml"), tmp_path / "out"
    without = Plan(recipe, SHORT, methods="kd,hint@body", seeds=2)
    plan = Plan(recipe, [*SHORT, "cache={}"], methods="kd,hint@body", seeds=2)
    for arm, bare in zip(plan.arms, without.arms, strict=True):  # what reads no cache is the run that it was
        assert plan.control(arm, 3).key == without.control(bare, 3).key  # type: ignore[union-attr]
        assert plan.teacher(arm, 3).key == without.teacher(bare, 3).key  # type: ignore[union-attr]
    compare(plan, pool(out, Inside()))
    assert len(list((out / "cache").iterdir())) == 1
    found = {
        path.parent.name: read_json(path)["cost"]["student"].get("cache") for path in out.glob("cells/*/report.json")
    }
    facts = [entry for entry in found.values() if entry is not None]
    assert len(facts) == 4, "two arms by two seeds"
    assert sum(entry["computed"] for entry in facts) == 2 * 24, "once for each of the signals"


def test_what_the_teacher_says_differently_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_kd.runtime.registry.allowed_imports", allowed_imports | {"toy"})
    (tmp_path / "toy.yaml").write_text(RECIPE)
    plan = Plan(str(tmp_path / "toy.yaml"), [*SHORT, "cache={}"], axes=["data.train=12,24"], seeds=2)
    names = [[shared_cache(plan.cell(arm, seed)) for seed in plan.seeds] for arm in plan.arms]
    assert names[0][0] == names[0][1] != names[1][0] == names[1][1]
    own = Plan(str(tmp_path / "toy.yaml"), [*SHORT, "cache.path=mine"], axes=["data.train=12,24"], seeds=1)
    assert shared_cache(own.cell(own.arms[0], 3)) is None
