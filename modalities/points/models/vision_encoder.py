"""An encoder of images whose features teach: as ``transformers`` saves it (ViT, DINOv2, ResNet, ...), or by its name in
torchvision or timm with its weights.

Nothing is fetched and no code of the folder is run; of transformers' folders only safetensors are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor, nn

from xmodal_kd.adapter.images.networks import CONFIG, MEAN, STD, Preparation, read_network
from xmodal_kd.adapter.saved_model import explain
from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import UserError

from .pretrained import PretrainedConfig, PretrainedSegmenter
from .trunks import Trunk, as_map, load_trunk

#: Kinds that must be told that a photograph may be of another size than they were trained on.
RESIZED = ("vit", "deit", "vit_mae", "vit_msn")


def is_encoder(folder: Path) -> bool:
    """Whether a folder is one of transformers or timm, or names a network of torchvision."""
    return (folder / CONFIG).is_file()


class VisionEncoder(nn.Module):
    """Photographs to maps of features; it answers nothing. What a term captures is ``features`` (the last map), or a
    module inside it that gives maps or tokens of patches.
    """

    #: Side of its patches in pixels; None: it has none.
    patch: int | None

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()


class LibraryEncoder(VisionEncoder):
    """One of torchvision or timm: ``trunk.encoder.*``."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk, self.patch = trunk, trunk.patch

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """The last map of photographs whose colours are 0 to 1."""
        return self.features(self.trunk(x)[-1])  # type: ignore[no-any-return]


class TransformersEncoder(VisionEncoder):
    """One of transformers: ``encoder.*``; of the last map a cell is a patch.

    Args:
        encoder: gives ``last_hidden_state``: a map ``(b, c, h, w)``, or tokens ``(b, t, c)``, of patches row by row
            behind those of no patch.
        size: height and width of the photographs.

    Raises:
        UserError: they are no whole patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, size: tuple[int, int], mean: Any = MEAN, std: Any = STD) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])
        config: Any = encoder.config
        patch = getattr(config, "patch_size", None)
        self.patch = patch if isinstance(patch, int) else None
        self.resized = config.model_type in RESIZED
        if self.patch is not None and any(side % self.patch for side in size):
            raise UserError(
                f"data.image: {list(size)} is no whole number of the encoder's patches of {self.patch} pixels: set it "
                f"to multiples of {self.patch}"
            )

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """The map of features of photographs whose colours are 0 to 1."""
        given: dict[str, Any] = {"pixel_values": (x - self.mean) / self.std}
        if self.resized:
            given["interpolate_pos_encoding"] = True
        said: Tensor = self.encoder(**given).last_hidden_state
        if said.ndim == 3:
            rows, columns = (side // (self.patch or 1) for side in x.shape[2:])
            said = rearrange(said[:, -rows * columns :], "b (h w) c -> b c h w", h=rows)
        return self.features(said)  # type: ignore[no-any-return]


def layer_map(model: nn.Module, value: Tensor, grid: tuple[int, ...]) -> Tensor:
    """What a layer of an encoder of photographs of `grid` gave, as maps; anything else as it is."""
    if not isinstance(model, VisionEncoder | PretrainedSegmenter) or len(grid) != 2:
        return value
    found = as_map(value, grid, model.patch)
    return value if found is None else found


def load_encoder(folder: Path, size: tuple[int, int]) -> VisionEncoder:
    """The encoder of a folder, frozen, in float32 on the CPU.

    A folder whose ``config.json`` has ``architecture`` is one of timm, or with ``"library": "torchvision"`` beside it
    one of torchvision; the weights lie beside it, ``pretrained_cfg`` may have ``mean`` and ``std`` of their colours.

    Raises:
        UserError: a library is missing or cannot load it; its weights are not whole or another network's; photographs
            of `size` are nothing for it.
    """
    config = read_object(folder / CONFIG)
    if "architecture" in config:
        return _of_library(folder, config, size).eval().requires_grad_(False)
    encoder, prepared = read_network(folder, config), Preparation.of(folder)
    made = TransformersEncoder(encoder, size, prepared.mean or MEAN, prepared.std or STD)
    return made.eval().requires_grad_(False)


def _of_library(folder: Path, config: dict[str, Any], size: tuple[int, int]) -> LibraryEncoder:
    library, about = config.get("library", "timm"), config.get("pretrained_cfg")
    if library not in ("torchvision", "timm"):
        raise UserError(f"{folder / CONFIG}: library {library!r}: write torchvision or timm")
    about = about if isinstance(about, dict) else {}
    colours = about.get("mean"), about.get("std")
    if (colours[0] is None) != (colours[1] is None):
        raise UserError(f"{folder / CONFIG}: pretrained_cfg has one of mean and std: write both")
    try:
        told = PretrainedConfig(name=str(config["architecture"]), mean=colours[0], std=colours[1])
    except ValidationError as error:
        raise UserError(f"{folder / CONFIG}: {explain(error, 'pretrained_cfg')}") from error
    given = None if told.mean is None or told.std is None else (told.mean, told.std)
    trunk = Trunk(library, told.name, groups=False, colours=given)
    trunk.fits(size)
    load_trunk(trunk, folder)
    return LibraryEncoder(trunk)


def that_answer(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The roles that answer, and do not teach by their features alone."""
    return {role: model for role, model in models.items() if not isinstance(model, VisionEncoder)}


__all__ = ["VisionEncoder", "is_encoder", "layer_map", "load_encoder", "that_answer"]
