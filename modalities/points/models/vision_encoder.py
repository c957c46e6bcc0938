"""An encoder of images as ``transformers`` saves it (ViT, DINOv2, ResNet, ...), whose features teach.

Weights are read from safetensors only, nothing is fetched and no code of the folder is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
#: Kinds that must be told that a photograph may be of another size than they were trained on.
RESIZED = ("vit", "deit", "vit_mae", "vit_msn")
#: Mean and standard deviation of the colours of ImageNet, which most encoders were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def is_encoder(folder: Path) -> bool:
    """Whether a folder is one of transformers."""
    return (folder / CONFIG).is_file()


class VisionEncoder(nn.Module):
    """Photographs to maps of features; it answers nothing. What a term captures is ``features`` (the last map, a cell
    a patch), or a module of ``encoder`` that gives maps.

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
        self.encoder, self.features = encoder, nn.Identity()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])
        config: Any = encoder.config
        self.patch = getattr(config, "patch_size", None)
        self.resized = config.model_type in RESIZED
        if isinstance(self.patch, int) and any(side % self.patch for side in size):
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


def load_encoder(folder: Path, size: tuple[int, int]) -> VisionEncoder:
    """The encoder of a folder, frozen, in float32 on the CPU.

    Raises:
        UserError: transformers is missing or cannot load it; its weights are not whole; photographs of `size` are no
            whole patches.
    """
    config, path = read_json(folder / CONFIG), folder / PROCESSOR
    if "auto_map" in config:
        raise UserError(f"{folder}: it asks for code of its own (auto_map), which is not run: use a built-in model")
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise UserError(f"{folder}: a model of transformers: pip install transformers") from error
    try:
        encoder, found = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
            dtype=torch.float32,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from error
    missing = [name for name in found["missing_keys"] if "pooler" not in name]
    if lacking := sorted([*missing, *(str(one) for one in found["mismatched_keys"])]):
        raise UserError(f"{folder}: its weights lack {lacking[0]!r} ({len(lacking)} in all): it is no trained encoder")
    said = read_json(path) if path.is_file() else {}
    mean, std = (said.get(key, usual) for key, usual in (("image_mean", MEAN), ("image_std", STD)))
    return VisionEncoder(encoder, size, mean, std).eval().requires_grad_(False)


__all__ = ["VisionEncoder", "is_encoder", "load_encoder"]
