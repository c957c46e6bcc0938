"""The recipes of the room as they are, `check` and `compare` on the smallest, and what `list` tells of the room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from points_small import SETS, Inside

from xmodal_kd.cli.main import call
from xmodal_kd.compare import Plan, Pool, Settings, compare
from xmodal_kd.compare import cells as cells_module
from xmodal_kd.modalities.points.adapter import PointsAdapter
from xmodal_kd.modalities.points.data.config import PointsData
from xmodal_kd.modalities.points.models import MODELS
from xmodal_kd.objective.objective import Objective
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import build, find_all, role_plans, training_source
from xmodal_kd.runtime.random_streams import Streams

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes/points").glob("*.yaml"))
LISTED = [word for item in SETS for word in ("--set", item)]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_its_models_and_its_terms(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data aside, which may not be here: models of the views, modules that the terms name, labels."""
    monkeypatch.chdir(ROOT)
    written = yaml.safe_load(path.read_text())
    teacher = written.get("teacher", {})
    kept = "assets" in str(teacher.get("path"))
    loaded = load(str(path), ["teacher.path=null"] if kept and "model" in teacher else [])
    recipe = loaded.recipe
    content = dict(written["data"])
    recorded = ("sources", "path", "classes", "train", "dev", "test") if content["sources"] != "simulator" else ()
    for key in ("unlabelled", "real", *recorded):
        content.pop(key, None)
    data = PointsData.model_validate(content)
    made: Any = PointsAdapter.of(data)(data, Streams(recipe.seed), recipe.train.batch_size)
    objective = Objective(recipe.objective)
    for role_plan in (one for one in role_plans(loaded, made) if one.role in ("teacher", "student")):
        role, saved = role_plan.role, role_plan.path
        model = build(made, loaded, role_plan, Streams(recipe.seed)) if saved is None else made.load(role, saved)
        find_all(role, model, objective)
        assert made.view(role).sees == MODELS[model.card["model"]].view
        for name in data.augment.unread(made.view(role).sees):
            others = [made.view(one).sees for one in (*recipe.taught_by(), "student") if one != role]
            assert any(name not in data.augment.unread(sees) for sees in others), f"{name} is read by nobody"
        assert len(training_source(made, recipe, role)) == data.scenes.frames("train")
    assert path.read_text().startswith("# "), "a line says what it shows"


def test_check_finds_nothing_wrong_with_the_smallest(capsys: Capture) -> None:
    assert call(["check", "smoke/points", "--json", *LISTED]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert not [f for f in findings if f["status"] == "fail"]
    assert len({f["check"] for f in findings}) >= 4


@pytest.mark.full
def test_methods_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "POLL", 0.0)
    plan = Plan("smoke/points", tuple(SETS), methods="kd,hint@features", seeds=1)
    found = compare(plan, Pool(Settings(tmp_path / "out", quiet=True), Inside()))
    assert [arm["name"] for arm in found["arms"]] == ["kd", "hint@features"]
    assert all(0 <= arm["test"]["mean"] <= 1 for arm in found["arms"])


@pytest.mark.parametrize(("what", "names"), [
    ("modalities", {"points"}),
    ("models", {"range_unet", "image_unet", "point_transformer", "voxel_unet", "centerpoint_pillar"}),
    ("datasets", {"simulator", "kitti", "kitti_raw", "semantickitti", "nuscenes", "range_images"}),
    ("recipes", {"smoke/points", "points/beams", "points/camera", "points/detection"}),
])  # fmt: skip
def test_the_room_is_listed(what: str, names: set[str], capsys: Capture) -> None:
    assert call(["list", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert names <= {row["name"] for row in rows}
