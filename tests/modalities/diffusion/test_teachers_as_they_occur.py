"""Teachers of older diffusers, of wrapped models, damaged ones, and what is given in the place of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser
from xmodal_kd.modalities.diffusion.models.networks import UNetConfig, build_unet
from xmodal_kd.runtime.errors import UserError

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net: Any = build_unet(UNetConfig(channels=(8, 16)), (1, 8, 8), None)
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def say(folder: Path, **keys: Any) -> None:
    """Write keys of the scheduler; None: leave one out."""
    config = json.loads((folder / SCHEDULER).read_text()) | keys
    (folder / SCHEDULER).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change(folder: Path, how: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(how(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def test_old_schedulers_say_otherwise_that_a_sample_is_predicted(teacher: Path) -> None:
    say(teacher, prediction_type=None, predict_epsilon=False)
    assert load_denoiser(teacher, quiet=True).prediction == "sample"
    say(teacher, predict_epsilon=True)
    assert load_denoiser(teacher, quiet=True).prediction == "epsilon"


@pytest.mark.parametrize(
    "keys, told",
    [
        ({"trained_betas": [0.01] * 10}, r"trained_betas holds 10 and num_train_timesteps is 1,000"),
        ({"timestep_type": "continuous"}, r"timestep_type is 'continuous', which is not understood"),
        ({"snr_shift_scale": 3.0}, r"snr_shift_scale is 3.0, which is not understood"),
    ],
)
def test_schedules_that_are_not_what_they_seem(teacher: Path, keys: dict[str, Any], told: str) -> None:
    say(teacher, **keys)
    with pytest.raises(UserError, match=told):
        load_denoiser(teacher, quiet=True)


def test_the_first_pipelines_keep_network_and_scheduler_in_one_folder(teacher: Path, tmp_path: Path) -> None:
    say(teacher, prediction_type="sample")
    right = load_denoiser(teacher, quiet=True)
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (*teacher.glob("*.json"), *teacher.glob("*/*.*")):
        (flat / file.name).write_bytes(file.read_bytes())
    found = load_denoiser(flat)
    assert (found.prediction, found.process.T, found.shape) == ("sample", 1000, (1, 8, 8))
    assert torch.equal(found.net.conv_in.weight, right.net.conv_in.weight)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_a_wrapped_model_is_the_one_inside(teacher: Path, prefix: str) -> None:
    right: UNet2DModel = load_denoiser(teacher, quiet=True).net
    change(teacher, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    found = load_denoiser(teacher, quiet=True).net.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in right.state_dict().items())


def test_weights_that_went_astray_or_were_never_fetched(teacher: Path) -> None:
    change(teacher, lambda tensors: tensors | {"conv_in.weight": tensors["conv_in.weight"] * float("nan")})
    with pytest.raises(UserError, match=r"'conv_in.weight' is NaN or infinite"):
        load_denoiser(teacher, quiet=True)
    (teacher / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\nsize 1234\n")
    with pytest.raises(UserError, match=r"a pointer of Git LFS"):
        load_denoiser(teacher, quiet=True)


@pytest.mark.parametrize(
    "name, told",
    [
        ("model.safetensors", r"a checkpoint in a single file.*from_single_file"),
        ("pytorch_lora_weights.safetensors", r"a LoRA without its model.*fuse_lora"),
        ("network-snapshot.pkl", r"a pickle.*docs/own_models.md"),
        ("snapshots/abc/model_index.json", r"name the folder in it: .*snapshots.abc"),
    ],
)
def test_what_is_no_pipeline_is_called_by_its_name(tmp_path: Path, name: str, told: str) -> None:
    file = tmp_path / "given" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"{}")
    for place in (tmp_path / "given", *([file] if "/" not in name else [])):
        with pytest.raises(UserError, match=told):
            load_denoiser(place)
