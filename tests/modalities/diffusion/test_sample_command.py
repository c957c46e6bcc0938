"""``xmodal-kd sample``: what it writes, which model it takes, what it refuses in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
from PIL import Image

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.diffusion.export.pipeline import save_pipeline
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.process import Process

Make = Callable[..., Denoiser]
Capture = pytest.CaptureFixture[str]
#: diffusers 0.42 makes arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default output folder stands beside the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stages(make: Make, tmp_path: Path) -> Path:
    """The student folder of a progressive run: 4, 2 and 1 steps, the last in the folder itself."""
    folder = tmp_path / "run" / "student"
    for steps in (4, 2, 1):
        denoiser = make(Process.cosine(64), sampling=Sampling("ddim", steps))
        with torch.no_grad():
            denoiser.net.conv_out.bias.fill_(0.1 * steps)
        save_pipeline(denoiser, folder / f"steps-{steps}", {})
    save_pipeline(denoiser, folder, {})
    return folder


def fails(capfd: Capture, *arguments: Any) -> str:
    capfd.readouterr()
    assert call(["sample", *map(str, arguments)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def told(capfd: Capture, *arguments: Any) -> dict[str, Any]:
    capfd.readouterr()
    assert call(["sample", *map(str, arguments), "--json", "--device", "cpu"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    return dict(json.loads(captured.out))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_help_teaches(capfd: Capture) -> None:
    assert call(["sample", "--help"]) == 0
    text = capfd.readouterr().out
    assert "xmodal-kd sample runs/digits/student --steps 4 -n 64" in " ".join(text.split())
    assert all(name in text for name in ("--label", "--overwrite", "--size"))


def test_a_grid_and_the_images_are_written_and_the_place_is_told(student: Path, tmp_path: Path, capfd: Capture) -> None:
    assert call(["sample", str(student), "-n", "5", "--device", "cpu"]) == 0
    text = capfd.readouterr().out
    assert "5 samples of ddim, 4 network evaluations each" in text and "samples/grid.png" in text
    files = sorted(str(p.relative_to(tmp_path / "samples")) for p in (tmp_path / "samples").rglob("*.png"))
    assert files == ["grid.png", *(f"images/0000{i}.png" for i in range(5))]
    assert pixels(tmp_path / "samples" / "images" / "00004.png").shape == (8, 8)
    assert pixels(tmp_path / "samples" / "grid.png").shape == (2 * 50 + 2, 3 * 50 + 2, 3)


def test_samples_are_those_of_the_pipeline_from_the_same_generator(
    student: Path, tmp_path: Path, capfd: Capture
) -> None:
    told(capfd, student, "-n", 6, "--seed", 7)
    pipeline = DiffusionPipeline.from_pretrained(student)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=6, class_labels=[0, 1, 2, 0, 1, 2], num_inference_steps=4,
        generator=torch.Generator().manual_seed(7), output_type="np",
    ).images  # fmt: skip
    ours = np.stack([pixels(tmp_path / "samples" / "images" / f"{i:05d}.png") for i in range(6)])
    assert np.abs(ours / 255 - theirs[..., 0]).max() < 0.5 / 255 + 1e-4


def test_a_label_is_a_name_or_a_number(student: Path, tmp_path: Path, capfd: Capture) -> None:
    for label in ("two", "2", "0"):
        found = told(capfd, student, "-n", 3, "--label", label, "--out", tmp_path / label)
        assert found["label"] == label
    two, second, zeroth = (pixels(tmp_path / label / "grid.png") for label in ("two", "2", "0"))
    assert (two == second).all() and (two != zeroth).any()
    assert "classes 0 to 2 (nearest: two)" in fails(capfd, student, "--label", "tow", "--out", tmp_path / "x")
    assert "classes 0 to 2 (known: one, two, zero)" in fails(capfd, student, "--label", "3", "--out", tmp_path / "x")


def test_seeds_and_more_than_a_batch(student: Path, tmp_path: Path, capfd: Capture) -> None:
    for name, seed, n in (("a", 1, 70), ("b", 1, 70), ("c", 2, 3)):
        told(capfd, student, "-n", n, "--seed", seed, "--out", tmp_path / name)
    a, b, c = (sorted((tmp_path / name / "images").iterdir()) for name in "abc")
    assert len(a) == 70 and all((pixels(x) == pixels(y)).all() for x, y in zip(a, b, strict=True))
    assert (pixels(a[0]) != pixels(c[0])).any()


def test_each_step_count_has_its_own_student(stages: Path, tmp_path: Path, capfd: Capture) -> None:
    for steps in (4, 2, 1):
        found = told(capfd, stages, "--steps", steps, "-n", 2, "--out", tmp_path / str(steps))
        assert (found["model"], found["nfe"]) == (str(stages / f"steps-{steps}"), steps)
    found = told(capfd, stages, "-n", 2, "--out", tmp_path / "last")
    assert (found["model"], found["steps"]) == (str(stages), 1)
    assert (pixels(tmp_path / "last" / "grid.png") == pixels(tmp_path / "1" / "grid.png")).all()
    line = fails(capfd, stages, "--steps", 3, "--out", tmp_path / "x")
    assert "no student of 3 steps: there are students of 4, 2, 1" in line


def test_a_stage_folder_alone_and_a_run_that_is_not_finished(stages: Path, tmp_path: Path, capfd: Capture) -> None:
    assert told(capfd, stages / "steps-2", "-n", 1, "--out", tmp_path / "a")["steps"] == 2
    (stages / "model_index.json").unlink()
    assert told(capfd, stages, "-n", 1, "--out", tmp_path / "b")["steps"] == 1
    assert told(capfd, stages, "-n", 1, "--steps", 4, "--out", tmp_path / "c")["steps"] == 4


def test_a_consistency_student_takes_any_steps_up_to_its_grid(make: Make, tmp_path: Path, capfd: Capture) -> None:
    folder = save_pipeline(make(Process.cosine(64), sampling=Sampling("lcm", 1, 16)), tmp_path / "student", {})
    for steps in (1, 3, 16):
        assert told(capfd, folder, "--steps", steps, "-n", 2, "--out", tmp_path / str(steps))["nfe"] == steps
    assert "at most 16" in fails(capfd, folder, "--steps", 17)


def test_a_teacher_takes_any_steps_up_to_its_timesteps(make: Make, tmp_path: Path, capfd: Capture) -> None:
    net = make(Process.linear(100), "epsilon").net
    DDPMPipeline(unet=net, scheduler=DDPMScheduler(num_train_timesteps=100)).save_pretrained(tmp_path / "teacher")
    assert told(capfd, tmp_path / "teacher", "--steps", 7, "-n", 2)["nfe"] == 7
    assert "at most 100" in fails(capfd, tmp_path / "teacher", "--steps", 101, "--out", tmp_path / "x")


def test_arrays_are_written_as_arrays_too(make: Make, tmp_path: Path, capfd: Capture) -> None:
    spectra = save_pipeline(make(Process.cosine(64), classes=2), tmp_path / "spectra", {"data": "arrays"})
    found = told(capfd, spectra, "-n", 3)
    with np.load(found["arrays"]) as held:
        assert held["x"].shape == (3, 1, 8, 8) and held["x"].dtype == np.float32
        assert held["labels"].tolist() == [0, 1, 0]
    assert pixels(tmp_path / "samples" / "images" / "00000.png").shape == (8, 8, 3), "coloured by value"
    pair = save_pipeline(make(Process.cosine(64), shape=(2, 8, 8)), tmp_path / "pair", {})
    with np.load(told(capfd, pair, "-n", 1, "--out", tmp_path / "more")["arrays"]) as held:
        assert held["x"].shape == (1, 2, 8, 8) and "labels" not in held


def test_a_folder_with_something_in_it_is_kept(student: Path, tmp_path: Path, capfd: Capture) -> None:
    told(capfd, student, "-n", 3)
    (tmp_path / "samples" / "images" / "mine.png").write_text("mine")
    assert "samples: is not empty" in fails(capfd, student, "-n", "3")
    told(capfd, student, "-n", 1, "--overwrite")
    assert sorted(p.name for p in (tmp_path / "samples" / "images").iterdir()) == ["00000.png", "mine.png"]
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(capfd, student, "--out", tmp_path / "file")


def test_misuse_is_one_line(student: Path, make: Make, tmp_path: Path, capfd: Capture) -> None:
    plain = save_pipeline(make(Process.cosine(64)), tmp_path / "plain", {})
    assert "not conditioned on classes" in fails(capfd, plain, "--label", "3")
    assert "no such folder" in fails(capfd, tmp_path / "nowhere")
    assert "no model_index.json" in fails(capfd, tmp_path)
    assert "--device" in fails(capfd, student, "--device", "tpu")
    assert "--steps" in fails(capfd, student, "--steps", "0")
    assert not (tmp_path / "samples").exists(), "a refused call leaves nothing behind"


def test_guidance_by_a_class_of_none_that_nothing_names(make: Make, tmp_path: Path, capfd: Capture) -> None:
    """A student's card says which class it is; of a bare pipeline only a recipe's data do."""
    folder = save_pipeline(make(Process.cosine(64), classes=11), tmp_path / "plain", {})
    assert "knows no null condition, or was distilled with guidance in it" in fails(capfd, folder, "--guidance", "2")
    (folder / "sampler.json").unlink()
    line = fails(capfd, folder, "--guidance", "2")
    assert "says which of its 11 classes is none:" in line and "data.sampling.guidance of a recipe" in line


def test_long_work_shows_progress(student: Path, tmp_path: Path, capfd: Capture) -> None:
    assert call(["sample", str(student), "-n", "130", "--device", "cpu"]) == 0
    assert "sample  12/12" in capfd.readouterr().err


def test_samples_are_written_as_they_come_and_the_grid_shows_the_first(
    stages: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xmodal_kd.modalities.diffusion.use.sample.BATCH", 3)
    monkeypatch.setattr("xmodal_kd.modalities.diffusion.use.sample.IN_GRID", 4)
    found = told(capfd, stages, "-n", 8, "--out", "some")
    assert len(list((tmp_path / "some" / "images").iterdir())) == 8
    told(capfd, stages, "-n", 4, "--out", "few")
    assert pixels(Path(found["grid"])).tolist() == pixels(tmp_path / "few" / "grid.png").tolist()


def test_a_folder_that_cannot_be_written_is_told_before_sampling(
    stages: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Denoiser, "sample", lambda *_, **__: pytest.fail("sampled in vain"))
    assert "cannot be written" in fails(capfd, stages, "--out", "/proc/nowhere")
