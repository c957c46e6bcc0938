"""Pipelines of others: read, or refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from pipeline_folders import edit, foreign, net, refused
from safetensors.torch import load_file, save_file

from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.runtime.checkpoint import write_json
from xmodal_kd.runtime.errors import UserError

Make = Callable[..., Denoiser]
Capture = pytest.CaptureFixture[str]
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
WEIGHTS = "diffusion_pytorch_model.safetensors"
#: diffusers 0.42 makes arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"
)


# ---------------------------------------------------------------- others'


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "schedule",
    [
        {"num_train_timesteps": 1000, "beta_schedule": "linear"},
        {"num_train_timesteps": 1024, "beta_schedule": "squaredcos_cap_v2"},
        {"num_train_timesteps": 1000, **SCALED},
    ],
    ids=["linear", "cosine", "scaled_linear"],
)
def test_a_foreign_pipeline_is_read(tmp_path: Path, prediction: str, schedule: dict[str, Any]) -> None:
    folder = foreign(tmp_path / "teacher", DDPMScheduler(prediction_type=prediction, **schedule))
    found = load_denoiser(folder, quiet=True)
    assert (found.prediction, found.shape, found.classes) == (prediction, (1, 8, 8), None)
    assert found.sampling == Sampling("ddim", 64)
    ours = found.process.alphas_cumprod
    torch.testing.assert_close(ours.float(), DDPMScheduler(**schedule).alphas_cumprod, rtol=1e-4, atol=1e-6)
    z = torch.randn(2, 1, 8, 8)
    assert torch.equal(found(z, torch.tensor([3, 900])), net().eval()(z, torch.tensor([3, 900])).sample)


def test_ddim_agrees_with_diffusers_own_where_that_is_right(tmp_path: Path) -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    found = load_denoiser(foreign(tmp_path / "teacher", scheduler, DDIMPipeline), sampling=Sampling("ddim", 8))
    pipeline = DDIMPipeline(unet=net().eval(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    theirs = pipeline(batch_size=2, num_inference_steps=8, generator=generator, output_type="np").images
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = (found.sample(noise) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(theirs - ours).max() < 1e-4


def test_classes_other_schedulers_and_consistency_models_are_read(tmp_path: Path) -> None:
    classes = foreign(tmp_path / "a", EulerDiscreteScheduler(), ConsistencyModelPipeline, num_class_embeds=7)
    assert load_denoiser(classes, quiet=True).classes == 7
    lcm = foreign(tmp_path / "b", LCMScheduler(), ConsistencyModelPipeline)
    assert load_denoiser(lcm, quiet=True).sampling == Sampling("lcm", 4, 50)
    edit(lcm / "scheduler" / "scheduler_config.json", original_inference_steps=30)
    refused(lcm, "does not divide the process's 1000 timesteps")


def test_traps_of_a_foreign_scheduler_are_told_on_one_line(tmp_path: Path, capfd: Capture) -> None:
    folder = foreign(tmp_path / "teacher")
    load_denoiser(folder)
    [line] = capfd.readouterr().err.splitlines()
    assert "teacher" in line and "leading" in line and "DDPMPipeline" in line


def test_old_layer_names_shards_and_half_precision_are_read(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "teacher")
    path, index = folder / "unet" / WEIGHTS, folder / "unet" / f"{WEIGHTS}.index.json"
    tensors, z, t = load_file(path), torch.randn(1, 1, 8, 8), torch.tensor([5])
    expected = load_denoiser(folder, quiet=True)(z, t)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def before(name: str) -> str:
        for new, was in old.items():
            name = name.replace(f".{new}.", f".{was}.")
        return name

    save_file({before(name): tensor for name, tensor in tensors.items()}, path)
    assert any(".query." in name for name in load_file(path))
    assert torch.equal(load_denoiser(folder, quiet=True)(z, t), expected)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path)
    torch.testing.assert_close(load_denoiser(folder, quiet=True)(z, t), expected, rtol=0, atol=0.02)
    path.unlink()
    halves = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for part in set(halves.values()):
        save_file({name: tensors[name] for name in tensors if halves[name] == part}, folder / "unet" / part)
    write_json(index, {"weight_map": halves})
    assert torch.equal(load_denoiser(folder, quiet=True)(z, t), expected)
    write_json(index, {"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}})
    refused(folder, "weight_map names no files of this folder")


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_no_signal_at_the_end_can_be_distilled_from_v(tmp_path: Path, schedule: str) -> None:
    zero = DDIMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    found = load_denoiser(foreign(tmp_path / "teacher", zero), quiet=True, sampling=Sampling("ddim", 4))
    assert 0 < float(found.process.alpha(999)) < 3e-4
    theirs = zero.alphas_cumprod[:-1].double()
    torch.testing.assert_close(found.process.alphas_cumprod[:-1], theirs, rtol=1e-3, atol=1e-6)
    folder = save_pipeline(found, tmp_path / "student", {})
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    images = pipeline(batch_size=2, num_inference_steps=4, generator=generator, output_type="pt").images
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert float((images - (found.sample(noise) / 2 + 0.5).clamp(0, 1)).abs().max()) < 1e-4


# ---------------------------------------------------------------- refused


def test_folders_that_are_no_pipeline(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no model_index.json")
    (tmp_path / "empty" / "model_index.json").write_text("[]")
    refused(tmp_path / "empty", "a JSON object belongs here")
    (tmp_path / "empty" / "model_index.json").write_text("{")
    refused(tmp_path / "empty", "is not JSON")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unet": None}, "names no unet, only scheduler"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "its unet is a UNet2DConditionModel"),
        ({"scheduler": None}, "names no scheduler"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "a UNet2DModel on the latents of its vae (AutoencoderKL)"),
    ],
)
def test_pipelines_of_other_parts(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = foreign(tmp_path / "teacher")
    edit(folder / "model_index.json", **changes)
    refused(folder, "model_index.json", words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out_channels": 2}, "learned variance"),
        ({"out_channels": 3}, "1 channels in and 3 out"),
        ({"sample_size": None}, "sample_size is None"),
        ({"class_embed_type": "identity"}, "only plain class labels"),
        ({"time_embedding_type": "fourier"}, "sigmas"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 10}, "10 timesteps, its scheduler 1000"),
        ({"_class_name": "UNet1DModel"}, "is a UNet1DModel"),
        ({"down_block_types": ["Nonsense", "DownBlock2D"]}, "no UNet2DModel can be built"),
        ({"block_out_channels": [8, 24]}, "model's"),
    ],
)
def test_networks_that_would_be_misread(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = foreign(tmp_path / "teacher")
    edit(folder / "unet" / "config.json", **changes)
    refused(folder, words)


def test_weights_that_are_missing_pickled_or_damaged(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "teacher")
    path = folder / "unet" / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(folder, WEIGHTS, "not a safetensors file")
    shutil.move(path, folder / "unet" / "model.fp16.safetensors")
    refused(folder, "rename model.fp16.safetensors")
    (folder / "unet" / "model.fp16.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    refused(folder, "pickled weights", "convert them to safetensors")
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    refused(folder, WEIGHTS, "is missing")


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (CMStochasticIterativeScheduler(), "is of another process (a consistency model on EDM's sigmas"),
        (DDPMScheduler(beta_schedule="sigmoid"), "'sigmoid' is not one of"),
        (DDIMScheduler(rescale_betas_zero_snr=True), "cannot be distilled: epsilon prediction with zero terminal SNR"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedules_that_cannot_be_distilled(tmp_path: Path, scheduler: Any, words: str) -> None:
    refused(foreign(tmp_path / "teacher", scheduler, ConsistencyModelPipeline), "scheduler_config.json", words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction_type": "noise"}, "prediction_type 'noise' is not one of"),
        ({"prediction_type": "flow_prediction"}, "flow matching"),
        ({"num_train_timesteps": "many"}, "damaged"),
        ({"trained_betas": [0.5, -0.5, 0.5]}, "not variance preserving"),
    ],
)
def test_scheduler_files_that_were_edited(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = foreign(tmp_path / "teacher")
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    refused(folder, "scheduler_config.json", words)


def test_sampler_and_scheduler_must_agree_and_steps_must_exist(student: Path) -> None:
    with pytest.raises(UserError, match="65 steps on a process of 64 timesteps"):
        load_denoiser(student, sampling=Sampling("ddim", 65))
    edit(student / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    refused(student, "sampler.json says v_prediction on 64 timesteps, its scheduler epsilon on 64")
    edit(student / "sampler.json", steps=0)
    refused(student, "sampler.json: steps")
