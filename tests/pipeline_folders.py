"""Pipelines as others save them, files of theirs that are edited, and what refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser
from xmodal_kd.runtime.checkpoint import read_json, write_json
from xmodal_kd.runtime.errors import UserError


def net(**changes: Any) -> UNet2DModel:
    """A tiny UNet that is not one of our recipe's."""
    torch.manual_seed(0)
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(**size | blocks | {"block_out_channels": (8, 16)} | changes)


def foreign(folder: Path, scheduler: Any = None, pipeline: Any = DDPMPipeline, **changes: Any) -> Path:
    pipeline(unet=net(**changes), scheduler=scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    content = {key: value for key, value in (read_json(path) | changes).items() if value is not None}
    write_json(path, {key: value for key, value in content.items() if value != float("-inf")})


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_denoiser(folder)
    text = str(caught.value)
    assert "\n" not in text and folder.name in text
    for word in words:
        assert word in text, text
