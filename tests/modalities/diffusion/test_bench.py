"""The contract of few-step methods: how near each comes to a mixture's truth in 1, 2 and 4 evaluations.

Distances are over the sampling floor, so 1 is as good as the truth. A new method needs its arm in `ARMS` and its
bounds here: a half above what it was measured to reach (benchmarks/results/mixture.json, seed 1), not what one would
like.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xmodal_kd.modalities.diffusion.evaluate.bench import ARMS, TIMES, Arm, Bench, Points, plane
from xmodal_kd.modalities.diffusion.methods.few_step import FewStep
from xmodal_kd.modalities.diffusion.models.denoiser import Sampling
from xmodal_kd.modalities.diffusion.models.paths import Edm
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.method import METHODS

#: In seconds: the arm, and the largest distance by number of evaluations.
QUICK: dict[str, tuple[Arm, dict[int, float]]] = {
    "progressive": (Arm("progressive", 60), {1: 4.0, 2: 3.6, 4: 3.3}),
    "rdd": (Arm("rdd", 60), {1: 4.9, 2: 4.3, 4: 3.9}),
    "lightning": (
        ARMS["lightning"]._replace(steps=40, params={**ARMS["lightning"].params, "critic": 2}),
        {1: 10.1, 2: 5.6, 4: 4.4},
    ),
    "consistency": (Arm("consistency", 300, {"grid": 8, "decay": 0.8}), {1: 4.5, 2: 4.5, 4: 4.0}),
    "lcm": (Arm("lcm", 200, {"grid": 8, "decay": 0.8}), {1: 4.7, 2: 5.0, 4: 4.3}),
    "ect": (Arm("ect", 300), {1: 9.0, 2: 6.5, 4: 4.5}),
    "scm": (Arm("scm", 200, lr=3e-4), {1: 11.0, 2: 7.0, 4: 3.5}),
    "dmd2": (Arm("dmd2", 120, {"steps": 1, "critic": 3}), {1: 8.0}),
    "ict": (Arm("ict", 250), {1: 12.5, 2: 8.1, 4: 6.4}),
    "meanflow": (Arm("meanflow", 200, {"steps": 1, "at": TIMES}), {2: 5.0, 4: 4.5}),
    "shortcut": (Arm("shortcut", 120, {"steps": 1, "at": TIMES, "finest": 16}), {1: 8.3, 2: 4.7, 4: 4.0}),
    "reflow": (Arm("reflow", 60, {"pairs": 1024}), {1: 5.4}),
    "sid": (Arm("sid", 80, lr=3e-4), {1: 12.7}),
    "moment_matching": (Arm("moment_matching", 60), {1: 8.4}),
    "pcm": (Arm("pcm", 150, {"steps": 2, "grid": 16, "decay": 0.8}), {2: 3.6}),
    "tcd": (Arm("tcd", 150, {"grid": 16, "decay": 0.8}), {2: 3.6, 4: 2.7}),
    "ctm": (Arm("ctm", 80, {"steps": 1, "at": TIMES, "grid": 8, "most": 4}), {1: 8.0, 2: 4.9, 4: 4.0}),
    "ladd": (ARMS["ladd"], {1: 9.3}),
    "add": (ARMS["add"], {1: 12.3}),
}
#: Of the arms of `ARMS`, on the variance-preserving process.
NEAR: dict[str, dict[int, float]] = {
    "progressive": {1: 3.0, 2: 2.9, 4: 2.6},
    "rdd": {1: 4.7, 2: 4.4, 4: 3.9},
    "lightning": {1: 7.0, 2: 4.5, 4: 3.0},
    "lightning, squares": {1: 3.8, 2: 3.3, 4: 2.6},
    "consistency": {1: 4.1, 2: 4.2, 4: 4.6},
    "lcm": {1: 5.1, 2: 6.0, 4: 5.5},
    "ect": {1: 7.6, 2: 6.0, 4: 5.8},
    "scm": {1: 8.9, 2: 5.2, 4: 4.3},
    "dmd2": {1: 4.7},
    "dmd2, GAN": {1: 4.3},
    "dmd2, 4 steps": {1: 5.3, 2: 3.8, 4: 5.5},
    "dmd2, f-distill": {1: 4.0},
    "ict": {1: 7.5, 2: 4.1, 4: 3.5},
    "meanflow": {1: 7.1, 2: 3.8, 4: 3.2},
    "shortcut": {1: 3.9, 2: 3.2, 4: 2.5},
    "reflow": {1: 5.1, 2: 3.8, 4: 3.3},
    "reflow, 2 rounds": {1: 5.3, 2: 4.2, 4: 3.7},
    "reflow, distilled": {1: 3.5},
    "sid": {1: 5.5},
    "moment_matching": {1: 4.7},
    "moment_matching, 2 steps": {2: 3.3},
    "pcm, 1 phase": {1: 4.6},
    "pcm, 2 phases": {2: 3.1},
    "pcm, 4 phases": {4: 2.9},
    "tcd": {1: 14.5, 2: 3.5, 4: 1.9},
    "ctm": {1: 5.3, 2: 3.1, 4: 3.0},
    "ladd": {1: 5.6},
    "add": {1: 5.1},
    "dmd2, regression": {1: 3.1},
}


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.set_num_threads(1)
    return Bench(steps=16, matching=500)


def test_every_few_step_method_has_its_rows() -> None:
    methods = {name for name in METHODS if isinstance(METHODS[name], type) and issubclass(METHODS[name], FewStep)}
    assert methods == QUICK.keys() == {arm.method for arm in ARMS.values()}
    assert {name: set(arm.budgets) for name, arm in ARMS.items()} == {name: set(near) for name, near in NEAR.items()}


#: Of a distillation each: along the teacher's path, to its velocity, and against a critic. The others: make test-all.
USUAL = ("progressive", "shortcut", "dmd2")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.full) for name in QUICK]
)
def test_in_seconds_a_method_is_nearer_than_its_teacher(bench: Bench, tmp_path: Path, name: str) -> None:
    arm, near = QUICK[name]
    students = bench.distil(arm, tmp_path)
    found = {nfe: bench.distance(students[nfe]) for nfe in near}
    assert all(found[nfe] <= most for nfe, most in near.items()), found
    fewest = min(near)
    assert found[fewest] < bench.distance(bench.teacher, Sampling("ddim", fewest)) / 2


@pytest.mark.full
@pytest.mark.parametrize("name", list(NEAR))
def test_how_near_a_method_comes(tmp_path: Path, name: str) -> None:
    bench = Bench()
    students = bench.distil(ARMS[name], tmp_path)
    found = {nfe: bench.distance(students[nfe]) for nfe in NEAR[name]}
    assert all(found[nfe] <= most for nfe, most in NEAR[name].items()), found


@pytest.mark.full
def test_consistency_does_not_run_away_on_edm(tmp_path: Path) -> None:
    """As it does, far beyond its teacher, where both sides are compared in x."""
    bench = Bench(process=Edm(), matching=500)
    arm = Arm("consistency", 200, {"grid": 8, "decay": 0.8})
    for compare, holds in (("network", True), ("sample", False)):
        students = bench.distil(arm._replace(params={**arm.params, "compare": compare}), tmp_path / compare)
        assert (bench.distance(students[4]) < bench.distance(bench.teacher, Sampling("ddim", 4))) == holds


def test_truth_is_at_the_floor_and_many_exact_steps_are_near_it(bench: Bench) -> None:
    assert bench.distance(bench.teacher, Sampling("dpmpp_2m", 128)) < 1.5
    assert bench.distance(bench.teacher, Sampling("ddim", 1)) > 20


def test_a_conditional_bench_knows_its_classes() -> None:
    made = Bench(conditional=True, matching=0)
    assert made.truth(0).shape[1] == 3 and made.teacher.classes == made.student(1).classes == 2
    assert made.distance(made.teacher, Sampling("dpmpp_2m", 64)) < 1.7


def test_points_are_a_function_of_epoch_and_index() -> None:
    source = Points(plane(), Streams(1), 4)
    again = Points(plane(), Streams(1), 4)
    assert torch.equal(source.sample(3, 2)["x"], again.sample(3, 2)["x"])
    assert not torch.equal(source.sample(3, 2)["x"], source.sample(3, 3)["x"])
    assert source.collate([source.sample(0, 0)])["labels"].shape == (4,)
