"""The smoke recipes of single methods: whole runs to a saved student that diffusers samples as the trainer does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xmodal_kd.cli.main import call
from xmodal_kd.compare import Plan
from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser
from xmodal_kd.modalities.diffusion.models.denoiser import Sampling
from xmodal_kd.recipe.recipe import load
from xmodal_kd.runtime.discovery import shipped

SMOKE = sorted(
    name for name in shipped() if name.startswith("smoke/methods/") and load(name, []).recipe.modality == "diffusion"
)
#: As the recipe, in fewer steps and samples.
SMALL = ["data.samples=12", "data.draws=1", "teacher.train.steps=3", "teacher.train.eval_every=3", "train.steps=2",
         "train.eval_every=2", "train.batch_size=8"]  # fmt: skip
pytestmark = [
    pytest.mark.usefixtures("here"),
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"
    ),
]


#: Each recipe's process, and how its student is sampled.
METHODS: dict[str, tuple[str, Sampling]] = {
    "add": ("vp", Sampling("lcm", 2, 64)),
    "ctm": ("edm", Sampling("ddim", 2)),
    "dmd2": ("flow", Sampling("lcm", 1, 64)),
    "ict": ("vp", Sampling("lcm", 2, 64)),
    "ladd": ("flow", Sampling("lcm", 2, 64)),
    "lcm": ("vp", Sampling("lcm", 2, 64)),
    "lightning": ("vp", Sampling("ddim", 1)),
    "meanflow": ("flow", Sampling("ddim", 2)),
    "moment_matching": ("flow", Sampling("lcm", 2, 64)),
    "pcm": ("vp", Sampling("ddim", 2)),
    "rdd": ("vp", Sampling("ddim", 2)),
    "reflow": ("vp", Sampling("ddim", 1)),
    "scm": ("edm", Sampling("lcm", 1, 64)),
    "shortcut": ("edm", Sampling("ddim", 2)),
    "sid": ("edm", Sampling("lcm", 1, 64)),
    "tcd": ("vp", Sampling("tcd", 2, 64)),
}


@pytest.mark.full
@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_s_smoke_recipe_runs_to_a_pipeline(tmp_path: Path, name: str) -> None:
    listed = [word for item in SMALL for word in ("--set", item)]
    assert call(["run", f"smoke/methods/{name}", "--out", str(tmp_path / "run"), "--quiet", *listed]) == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["export"]["student"]["reload_difference"] < 1e-4
    student = load_denoiser(tmp_path / "run/student", quiet=True)
    assert (student.process.kind, student.sampling) == METHODS[name]


def test_arms_of_a_comparison_keep_what_both_methods_know() -> None:
    """A student of another width must learn features first, whichever method comes after."""
    told = "method={name: progressive, params: {end: 4, features: 7}}"
    plan = Plan("smoke/diffusion", [told], methods="progressive,consistency,lcm")
    methods = [load(plan.recipe, [*plan.sets, *arm.sets]).recipe.method for arm in plan.arms]
    assert [method.params for method in methods] == [{"end": 4, "features": 7}, {"features": 7}, {"features": 7}]
    told = "method={name: lcm, params: {steps: 4, grid: 8, guidance: 2}}"
    plan = Plan("smoke/diffusion", [told], methods="consistency")
    assert load(plan.recipe, plan.arms[0].sets).recipe.method.params == {"steps": 4, "grid": 8}


def test_every_recipe_of_a_method_names_it() -> None:
    assert [f"smoke/methods/{name}" for name in METHODS] == SMOKE
    for name in METHODS:
        assert load(f"smoke/methods/{name}").recipe.method.name == name
    for name in ("dmd2", "scm"):
        for recipe in (f"smoke/methods/{name}", f"diffusion/digits_{name}"):
            assert load(recipe).recipe.method.name == name
