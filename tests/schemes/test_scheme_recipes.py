"""Every scheme has a smoke recipe, and every shipped recipe with a scheme plans trainings that its models suit."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from torch import nn

from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter, make_method, models_of, role_plans, saved
from xmodal_kd.runtime.discovery import shipped
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.schemes import SCHEMES

ROOT = Path(__file__).parents[2]
SMOKE = {name for name in shipped() if name.startswith("smoke/schemes/")}


def test_every_scheme_has_a_smoke_recipe() -> None:
    assert {f"smoke/schemes/{name}" for name in SCHEMES} == SMOKE
    for name in SMOKE:
        scheme = yaml.safe_load(shipped()[name].read_text())["scheme"]
        assert (scheme if isinstance(scheme, str) else scheme["name"]) == name.rpartition("/")[2]


@pytest.mark.parametrize("name", sorted(SMOKE))
def test_its_student_can_be_trained_as_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load(name)
    streams = Streams(1)
    adapter = make_adapter(recipe, streams)
    stand: dict[str, nn.Module] = {}
    for role_plan in role_plans(recipe, adapter):
        if role_plan.path is not None:
            stand[role_plan.role] = saved(adapter, role_plan.role, role_plan.path)
            continue
        models = models_of(adapter, recipe, role_plan, streams, stand)
        make_method(recipe, adapter, role_plan, streams).check(models)
        stand[role_plan.role] = models[role_plan.role]
    assert "student" in stand and list(recipe.recipe.objective)
