"""A run from recipe to report: teacher, few-step students, control, curve, pictures, pipelines, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from once import once

from xmodal_kd.adapter import panels
from xmodal_kd.cli.main import call
from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.networks import UNetConfig, build_unet
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.run.run_folder import read_state, write_state
from xmodal_kd.runtime.checkpoint import digest
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

#: Of whole runs, `done` has its pipelines reloaded in a fresh process. diffusers 0.42: see `test_reload`.
pytestmark = [
    pytest.mark.usefixtures("here"),
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"
    ),
]
SMALL = [
    "data.samples=24", "data.draws=2", "data.batch=24", "data.sampling.steps=4", "teacher.params.channels=[8, 16]",
    "teacher.train.steps=6", "teacher.train.eval_every=6", "train.steps=3", "train.eval_every=3", "train.batch_size=16",
    "method.params.end=1", "train.checkpoint_every=2", "train.keep=9",
]  # fmt: skip


def run(out: Path, *sets: str, recipe: str = "smoke/diffusion", more: Sequence[str] = ()) -> int:
    listed = [word for item in [*SMALL, *sets] for word in ("--set", item)]
    return call(["run", recipe, "--out", str(out), "--quiet", *listed, *more])


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished progressive run: 4 steps to 2 to 1."""

    def make(out: Path) -> None:
        assert run(out) == 0

    return once(tmp_path_factory, "diffusion", make)


def weights(folder: Path) -> str:
    return digest(load_denoiser(folder, quiet=True).state_dict().items())


def adapter(**data: Any) -> DiffusionAdapter:
    return DiffusionAdapter(DiffusionData(sources="digits", samples=24, **data), Streams(1), 16)


def test_the_report_has_the_curve_the_control_and_the_pictures(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    assert list(report["roles"]) == ["teacher", "control", "student"]
    assert report["control"] == {"teacher": "within the student's budget"}
    metrics = report["roles"]["student"]["metrics"]
    assert {"fd_clf", "kid_clf", "precision", "recall", "density", "coverage", "sliced_wasserstein", "nearest_train",
            "nfe", "seconds_per_image"} <= metrics.keys()  # fmt: skip
    assert (metrics["nfe"], report["roles"]["control"]["metrics"]["nfe"]) == (1, 1)
    points = [(p["role"], p["solver"], p["nfe"]) for p in report["curve"]]
    assert points[0] == ("teacher", "ddim", 4) and len(points) == len(set(points))
    assert {("teacher", s, 4) for s in ("heun", "dpmpp_2m")} | {("teacher", "ddim", n) for n in (1, 2)} <= set(points)
    assert [p for p in points if p[0] == "student"] == [("student", "ddim", 2), ("student", "ddim", 1)]
    assert report["curve"][0]["metrics"]["paired_error"] == 0 < report["curve"][-1]["metrics"]["paired_error"]
    assert report["facts"]["accuracy"] > 0.9 and report["facts"]["floor"]["fd_clf"] > 0
    assert all((done / path).stat().st_size > 1000 for path in report["pictures"].values())
    assert report["gain"]["interval"][0] <= report["gain"]["difference"] <= report["gain"]["interval"][1]
    assert "## At every budget" in (done / "report.md").read_text()


def test_the_page_shows_the_samples_of_every_sampler(done: Path) -> None:
    [panel] = panels.read(done)
    cells = {row["name"]: set(row["cells"]) for row in panel.content["rows"]}
    assert panel.content["columns"][0] == "student, ddim"
    assert {"student, ddim", "teacher, ddim"} <= cells["1 evaluation"] & cells["2 evaluations"]
    assert "teacher, heun" in cells["4 evaluations"]
    page = (done / "report.html").read_text()
    assert page.count("<td><img ") == sum(map(len, cells.values()))
    assert 'class="picture"' not in page  # the page draws the curve and the samples itself


def test_every_stage_is_a_pipeline_of_its_own(done: Path) -> None:
    steps = {name: load_denoiser(done / "student" / name, quiet=True).sampling for name in ("steps-2", "steps-1", ".")}
    assert steps == {"steps-2": Sampling("ddim", 2), "steps-1": Sampling("ddim", 1), ".": Sampling("ddim", 1)}
    assert weights(done / "student") == weights(done / "student/steps-1") != weights(done / "student/steps-2")
    report = json.loads((done / "report.json").read_text())
    assert set(report["export"]) == {"student", "steps-1", "steps-2"}
    assert all(entry["reload_difference"] < 1e-4 for entry in report["export"].values())


def test_the_teacher_is_saved_before_and_not_changed_by_its_students(done: Path) -> None:
    stages = {weights(done / "student" / name) for name in ("steps-1", "steps-2")}
    assert weights(done / "teacher") == weights(done / "control") not in stages


def test_a_finished_run_is_measured_again_alike(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["eval", str(done), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    report = json.loads((done / "report.json").read_text())
    for role, metrics in again.items():
        assert metrics["fd_clf"] == pytest.approx(report["roles"][role]["metrics"]["fd_clf"], rel=1e-6)


def test_samples_of_a_stage(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["sample", str(done / "student"), "--steps", "2", "-n", "5", "--out", str(tmp_path / "s")]) == 0
    assert len(list((tmp_path / "s/images").glob("*.png"))) == 5
    assert call(["sample", str(done / "student"), "--steps", "3", "--out", str(tmp_path / "t")]) == 2
    assert "3" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [pytest.param("teacher", marks=pytest.mark.full), "student"])
def test_a_stopped_run_ends_with_the_same_bytes(done: Path, tmp_path: Path, stop: str) -> None:
    """After the teacher, and in the middle of a stage."""
    out = tmp_path / "run"
    if stop == "teacher":
        assert run(out, more=["--only", "teacher"]) == 0
    else:
        shutil.copytree(done / "teacher", out / "teacher")
        shutil.copytree(done / "checkpoints/teacher", out / "checkpoints/teacher")
        state = read_state(done)
        state["roles"] = {"teacher": state["roles"]["teacher"]}
        state.pop("overview")
        write_state(out, state)
        shutil.copy(done / "recipe.yaml", out)
        first = done / "checkpoints/student/step-00000002"
        assert json.loads((first / "state.json").read_text())["at"]["stage"] == 0
        shutil.copytree(first, out / "checkpoints/student" / first.name)
    assert run(out, more=["--resume", "--no-export"]) == 0
    assert weights(out / "student") == weights(done / "student")


@pytest.mark.parametrize("method", ["consistency", pytest.param("ect", marks=pytest.mark.full)])
def test_consistency_students_are_sampled_in_any_number_of_steps(done: Path, tmp_path: Path, method: str) -> None:
    teacher = done / "teacher"
    sets = [f"method={{name: {method}, params: {{grid: 16, steps: 2}}}}", f"teacher={{path: {teacher}}}"]
    small = [item for item in SMALL if not item.startswith(("method", "teacher"))]
    listed = [word for item in [*small, *sets] for word in ("--set", item)]
    assert call(["run", "smoke/diffusion", "--out", str(tmp_path / "run"), "--quiet", *listed]) == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    students = [(p["solver"], p["nfe"]) for p in report["curve"] if p["role"] == "student"]
    assert students == [("lcm", 1), ("lcm", 2), ("lcm", 4), ("lcm", 8)]
    assert report["export"]["student"]["reload_difference"] < 1e-4
    assert load_denoiser(tmp_path / "run/student", quiet=True).sampling == Sampling("lcm", 2, 16)
    assert weights(tmp_path / "run/student") != weights(teacher)


@pytest.mark.full
def test_a_narrower_student_learns_features_first(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sets = [
        f"teacher={{path: {done / 'teacher'}}}", "student={model: unet, params: {channels: [8, 8]}}",
        "method.params.features=4",
        "objective=[{loss: denoising, on: prediction}, {loss: hint, on: prediction, name: output}, "
        "{loss: hint, on: net.mid_block, weight: 0.1}]",
    ]  # fmt: skip
    small = [item for item in SMALL if not item.startswith("teacher")]
    listed = [word for item in [*small, *sets] for word in ("--set", item)]
    assert call(["run", "smoke/diffusion", "--out", str(out), "--quiet", *listed]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["roles"]["student"]["parameters"] < report["roles"]["teacher"]["parameters"]
    assert load_denoiser(out / "student/features", quiet=True).sampling == Sampling("ddim", 4)
    assert {p["nfe"] for p in report["curve"] if p["role"] == "student"} == {2, 1}


@pytest.mark.full
def test_check_finds_nothing_wrong_with_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [word for item in SMALL for word in ("--set", item)]
    assert call(["check", "smoke/diffusion", "--json", *listed]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert any(f["check"] == "overfit" and f["found"].startswith("progressive") for f in findings)
    assert not [f for f in findings if f["status"] == "fail"]


# -------------------------------------------------------------------- the adapter alone


def test_roles_see_the_same_noise_and_the_control_is_the_best_solver() -> None:
    made = adapter(sampling={"steps": 8})
    torch.manual_seed(0)
    teacher = made.build("teacher", "unet", {"channels": (8, 16)}).eval()
    student = made.build("student", "like_teacher", {}).eval()
    student.sampling = Sampling("ddim", 4)
    control = made.untrained_control(teacher, student)
    assert control.nfe <= 4 and teacher.sampling.steps == 8 and control.net is teacher.net
    scores = {
        solver: made.evaluate("control", _as(teacher, Sampling(solver, steps)), "dev").metrics["fd_clf"]
        for solver, steps in (("ddim", 4), ("heun", 3), ("dpmpp_2m", 4))
    }
    assert control.sampling.solver == min(scores, key=lambda solver: scores[solver])
    assert torch.equal(made.noise(0), made.noise(0)) and not torch.equal(made.noise(0), made.noise(1))


def _as(model: Denoiser, how: Sampling) -> Denoiser:
    from xmodal_kd.modalities.diffusion.show.overview import sampled

    return sampled(model, how)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_foreign_teacher_of_any_prediction(tmp_path: Path, prediction: str) -> None:
    torch.manual_seed(0)
    net = build_unet(UNetConfig(channels=(8, 16)), (1, 8, 8), None)
    save_pipeline(Denoiser(net, Process.linear(1000), prediction, (1, 8, 8)), tmp_path / "teacher", {})
    (tmp_path / "teacher/sampler.json").unlink()
    made = adapter(sampling={"steps": 4})
    teacher = made.load("teacher", tmp_path / "teacher")
    student = made.build("student", "like_teacher", {})
    assert (teacher.prediction, teacher.process.T, teacher.sampling) == (prediction, 1000, Sampling("ddim", 4))
    assert student.process is teacher.process
    assert student.prediction == ("v_prediction" if prediction == "epsilon" else prediction)
    source = made.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(3)])
    said = made.signals("teacher", teacher, batch, ["net.mid_block"])
    assert said.rows("prediction").shape == said.rows("labels").shape == (3 * 64, 1)
    assert said.maps("net.mid_block").shape == (3, 16, 4, 4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"conditional": True}, "conditioned on no classes"),
        ({"sampling": {"steps": 65}}, "65 steps on a process of 64"),
    ],
)
def test_a_teacher_that_does_not_fit_the_data(tmp_path: Path, data: dict[str, Any], words: str) -> None:
    torch.manual_seed(0)
    net = build_unet(UNetConfig(channels=(8, 16)), (1, 8, 8), None)
    save_pipeline(Denoiser(net, Process.cosine(64), "v_prediction", (1, 8, 8)), tmp_path / "teacher", {})
    with pytest.raises(UserError, match=words):
        adapter(**data).load("teacher", tmp_path / "teacher")


def test_splits_too_small_to_measure_with_are_refused_before_the_training() -> None:
    with pytest.raises(UserError, match="5 dev samples are too few to measure with: give at least 6"):
        adapter(dev=5).build("teacher", "unet", {"channels": (8, 16)})


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["data.samples=5"], "data.samples: Input should be greater than or equal to 6"),
        (["data.sampling.steps=2000"], "2000 is more than process.steps"),
        (["data.sampling.steps=12"], "cannot be halved to 1"),
        (["student.params.prediction=epsilon"], "cannot predict epsilon"),
        (["teacher={path: .}"], "not a diffusers pipeline"),
        (["method.params.ende=1"], "ende"),
        (["method=progresive"], "progressive"),
        (["data.sources=folder", "data.path=/nowhere"], "does not exist"),
        (["student.model=unet", "student.params={channels: [8, 8]}"], "set method.params.features"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sets: list[str], words: str
) -> None:
    assert run(tmp_path / "run", *sets) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error
