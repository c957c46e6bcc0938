"""Networks of the recipe, schedules, and pipelines saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_folders import net, refused

from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.export.schedulers import schedule_of, scheduler_for
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.networks import MODELS, UNetConfig, build_like, build_unet
from xmodal_kd.modalities.diffusion.models.process import Process
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import RunError, UserError

Make = Callable[..., Denoiser]
Capture = pytest.CaptureFixture[str]
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
WEIGHTS = "diffusion_pytorch_model.safetensors"
#: diffusers 0.42 makes arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"
)


# ---------------------------------------------------------------- networks


def test_a_network_has_the_data_shape_and_its_attention_where_asked() -> None:
    for attention, expected in (("lowest", True), ("none", False)):
        built = build_unet(UNetConfig(attention=attention), (3, 8, 8), 5)
        assert any(name.endswith("to_q") for name, _ in built.named_modules()) is expected
        z, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 4])
        assert built(z, torch.tensor([0, 999]), class_labels=labels).sample.shape == z.shape


@pytest.mark.parametrize(
    ("config", "shape", "words"),
    [
        ({"channels": (8, 16, 16, 16, 16)}, (1, 8, 8), "5 levels need a side that 16 divides, not 8"),
        ({"channels": (8, 12)}, (1, 8, 8), "groups 8 do not divide the width 12"),
        ({"channels": ()}, (1, 8, 8), "positive widths"),
        ({}, (1, 8, 15), "2 levels need a side that 2 divides, not 15"),
        ({}, (1, 64), "made for images"),
    ],
)
def test_a_network_that_cannot_be_is_refused(config: dict[str, Any], shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_unet(UNetConfig(**config), shape, None)


def test_a_network_like_the_teacher_has_its_configuration_and_weights_of_its_own() -> None:
    teacher = net(sample_size=[8, 8])
    torch.manual_seed(1)
    same, labelled = build_like(teacher, None), build_like(teacher, 4)
    assert {k: v.shape for k, v in same.state_dict().items()} == {k: v.shape for k, v in teacher.state_dict().items()}
    assert not torch.equal(same.conv_in.weight, teacher.conv_in.weight)
    assert labelled.config.num_class_embeds == 4 and same.config.sample_size == 8


def test_the_registry_names_networks_with_a_line_and_parameters() -> None:
    assert list(MODELS) == ["like_teacher", "unet"]
    for name in MODELS:
        assert MODELS[name].__doc__ and MODELS[name].Config().prediction is None


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("process", "name"),
    [
        (Process.linear(1000), "linear"),
        (Process.linear(512), "linear"),
        (Process.cosine(1024), "squaredcos_cap_v2"),
        (Process.from_scheduler({"num_train_timesteps": 1000, **SCALED}), "scaled_linear"),
        (Process.linear(10), None),
        (Process([0.9, 0.5, 0.2, 0.01]), None),
    ],
)
def test_a_schedule_is_written_by_name_where_it_has_one_and_is_the_same_table(
    process: Process, name: str | None
) -> None:
    config = schedule_of(process)
    assert config.get("beta_schedule") == name and ("trained_betas" in config) is (name is None)
    for solver in (Sampling("ddim", 1), Sampling("lcm", 1, 1)):
        table = scheduler_for(process, "v_prediction", solver).alphas_cumprod.double()
        torch.testing.assert_close(table, process.alphas_cumprod, rtol=1e-4, atol=1e-6)


def test_a_process_without_signal_at_its_end_cannot_be_written() -> None:
    with pytest.raises(UserError, match="zero terminal SNR"):
        schedule_of(Process([0.9, 0.5, 0.0]))


# ---------------------------------------------------------------- ours


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("sampling", [Sampling("ddim", 8), Sampling("dpmpp_2m", 8), Sampling("lcm", 4, 32)], ids=str)
def test_what_is_saved_is_what_is_loaded(make: Make, tmp_path: Path, prediction: str, sampling: Sampling) -> None:
    given = make(Process.cosine(64), prediction, sampling, classes=2, class_names=["cat", "dog"])
    folder = save_pipeline(given, tmp_path / "student", {"teacher": "runs/teacher"})
    found = load_denoiser(folder)
    assert (found.sampling, found.prediction, found.shape) == (sampling, prediction, (1, 8, 8))
    assert (found.classes, found.class_names, found.process.T) == (2, ("cat", "dog"), 64)
    assert not found.training
    noise, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    a, b = (m.sample(noise, labels, generator=torch.Generator().manual_seed(0)) for m in (given, found))
    assert torch.equal(a, b)


def test_a_saved_folder_is_safetensors_a_card_and_the_timesteps(student: Path) -> None:
    about = read_json(student / "sampler.json")
    assert (about["timesteps"], about["steps"], about["nfe"]) == ([63, 47, 31, 15], 4, 4)
    files = {str(path.relative_to(student)) for path in student.rglob("*") if path.is_file()}
    assert files == {
        "model_index.json", "sampler.json", "README.md", f"unet/{WEIGHTS}", "unet/config.json",
        "scheduler/scheduler_config.json",
    }  # fmt: skip
    assert read_json(student / "model_index.json")["_class_name"] == "ConsistencyModelPipeline"


def test_saving_again_replaces_the_pipeline_and_keeps_what_else_lies_there(make: Make, student: Path) -> None:
    save_pipeline(make(Process.cosine(64), sampling=Sampling("ddim", 2)), student / "steps-2", {})
    (student / "notes.txt").write_text("mine")
    save_pipeline(make(Process.cosine(64), sampling=Sampling("ddim", 1)), student, {})
    assert load_denoiser(student).sampling.steps == 1 and load_denoiser(student / "steps-2").sampling.steps == 2
    assert (student / "notes.txt").read_text() == "mine"
    assert [path.name for path in student.parent.iterdir()] == ["student"]


def test_saving_tidies_what_a_killed_process_left(make: Make, student: Path) -> None:
    (student.parent / f".{student.name}.1.tmp" / "unet").mkdir(parents=True)
    save_pipeline(make(Process.cosine(64), sampling=Sampling("ddim", 2)), student, {})
    assert [path.name for path in student.parent.iterdir()] == ["student"]


def test_a_half_written_folder_is_no_pipeline(make: Make, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if self.name == "scheduler":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", cut)
        save_pipeline(make(Process.cosine(64), sampling=Sampling("ddim", 2)), student, {})
    refused(student, "no model_index.json")
    save_pipeline(make(Process.cosine(64), sampling=Sampling("ddim", 2)), student, {})
    assert load_denoiser(student).sampling.steps == 2


def test_a_pipeline_that_would_sample_otherwise_is_not_written(make: Make, tmp_path: Path) -> None:
    steps = 61  # of 1,000: diffusers' trailing spacing gives one time more
    with pytest.raises(RunError, match="62 times for 61 steps"):
        save_pipeline(make(Process.linear(1000), sampling=Sampling("ddim", steps)), tmp_path / "student", {})
    assert not list(tmp_path.iterdir())


def test_another_network_cannot_be_a_pipeline(tmp_path: Path) -> None:
    other = Denoiser(torch.nn.Linear(2, 2), Process.cosine(64), "sample", (2,))
    with pytest.raises(UserError, match="only a UNet2DModel can be saved"):
        save_pipeline(other, tmp_path / "student", {})


def test_the_card_says_how_to_run_it_and_the_code_runs(make: Make, tmp_path: Path) -> None:
    facts = {
        "name": "Digits", "teacher": "a", "license": "bsd-3-clause",
        "metrics": {"student": {"fd_clf": 33.14159}, "teacher": {"fd_clf": 32}},
    }  # fmt: skip
    folder = save_pipeline(make(Process.cosine(64), classes=3, class_names=list("abc")), tmp_path / "student", facts)
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: diffusers\n") and "license: bsd-3-clause" in text
    assert "# Digits" in text and "| student | 33.14 |" in text and "Classes, from 0 on: a, b, c." in text
    code = text.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(folder))
    scope: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert len(scope["images"]) == 4 and scope["images"][0].size == (8, 8)
