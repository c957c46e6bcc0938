"""Another student like the one that a pipeline's folder holds, in a recipe's words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from xmodal_kd.adapter.sketch import Like
from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import UserError

from ..export.bare import NETWORK, bare_unet
from ..models.networks import UNetConfig, build_unet

#: What data and task decide, not the recipe's model, and what changes nothing here.
APART = {"sample_size", "in_channels", "out_channels", "num_class_embeds", "num_train_timesteps"}
NAMELESS = "its network is none that a recipe can name"
ADVICE = "give channels to a unet in the recipe (student.params), or --like like_teacher"


def like(folder: Path) -> Like | None:
    """The `unet` of a recipe that has the structure of a folder's network; None where the folder holds no network.

    Raises `UserError` for a network that no such recipe builds.
    """
    path = (bare_unet(folder) or (folder / "unet",))[0] / NETWORK
    if not path.is_file():
        return None
    told = read_object(path)
    try:
        config = UNetConfig.model_validate(
            {
                "channels": told.get("block_out_channels"),
                "layers": told.get("layers_per_block"),
                "attention": "lowest" if told.get("add_attention", True) else "none",
                "groups": told.get("norm_num_groups"),
                "dropout": told.get("dropout", 0.0),
            }
        )
        built = _built(config, told)
    except (ValidationError, UserError, KeyError, TypeError) as error:
        raise UserError(f"--like {folder}: {NAMELESS} ({' '.join(str(error).split())[:160]}): {ADVICE}") from error
    for key, ours in built.items():
        if key in told and told[key] != ours:
            raise UserError(f"--like {folder}: {NAMELESS} ({key} is {told[key]!r}, not {ours!r}): {ADVICE}")
    params = {"channels": list(config.channels)} | config.model_dump(mode="json", exclude_defaults=True)
    return Like("unet", params, f"--like: as {path} says")


def _built(config: UNetConfig, told: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' configuration of the network that a recipe builds, as JSON has it. No weights are made."""
    size = told["sample_size"]
    sides = [size, size] if isinstance(size, int) else size
    with torch.device("meta"):
        made = build_unet(config, (told["in_channels"], *sides), told.get("num_class_embeds"))
    kept = {key: value for key, value in made.config.items() if not key.startswith("_") and key not in APART}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


__all__ = ["like"]
