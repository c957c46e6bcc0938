"""The weights of a diffusers ``unet/`` folder: safetensors only, layer names of older versions brought up to date."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from xmodal_kd.runtime.checkpoint import read_json, read_tensors
from xmodal_kd.runtime.errors import UserError

NAME = "diffusion_pytorch_model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
#: Attention layers before and after diffusers 0.14.
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def read_weights(folder: Path, wanted: Iterable[str]) -> tuple[dict[str, Tensor], Path]:
    """Tensors by name, and the file that they come from.

    Args:
        wanted: the names of today, to tell old ones.

    Raises:
        UserError: there are none, only pickled ones, or they are damaged.
    """
    whole, index = folder / NAME, folder / f"{NAME}.index.json"
    if whole.is_file():
        return _renamed(read_tensors(whole), set(wanted)), whole
    if index.is_file():
        parts = read_json(index)
        names = sorted(set(parts["weight_map"].values())) if isinstance(parts, dict) and "weight_map" in parts else []
        if not names or any(Path(name).name != name for name in names):
            raise UserError(f"{index}: its weight_map names no files of this folder")
        tensors = {key: value for name in names for key, value in read_tensors(folder / name).items()}
        return _renamed(tensors, set(wanted)), index
    pickled = [path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLED]
    if pickled:
        raise UserError(
            f"{folder / pickled[0]}: pickled weights can run code and are not read: convert them to safetensors "
            "(load with diffusers, save_pretrained with safe_serialization=True)"
        )
    others = [path.name for path in sorted(folder.glob("*.safetensors"))]
    raise UserError(
        f"{whole} is missing" + (f": rename {others[0]} to it" if others else ": the folder has no weights")
    )


def _renamed(tensors: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    return {name if name in wanted else _today(name): tensor for name, tensor in tensors.items()}


def _today(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
