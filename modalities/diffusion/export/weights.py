"""The weights of a diffusers ``unet/`` folder: safetensors only, layer names of older versions brought up to date."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from xmodal_kd.runtime.checkpoint import read_json, read_tensors
from xmodal_kd.runtime.errors import UserError

NAME = "diffusion_pytorch_model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
#: Of a variant, as ``fp16``: whole, or an index of parts, as diffusers writes it today and wrote it before.
VARIANTS = (
    re.compile(r"diffusion_pytorch_model\.([\w-]+)\.safetensors(?<!\d-of-\d{5}\.safetensors)"),
    re.compile(r"diffusion_pytorch_model\.safetensors\.index\.([\w-]+)\.json"),
    re.compile(r"diffusion_pytorch_model\.([\w-]+)\.safetensors\.index\.json"),
)
PART = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
#: Attention layers before and after diffusers 0.14.
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def read_weights(folder: Path, wanted: Iterable[str]) -> tuple[dict[str, Tensor], Path]:
    """Tensors by name, and the file that they come from.

    Args:
        wanted: the names of today, to tell old ones.

    Raises:
        UserError: there are none, only pickled ones, or they are damaged.
    """
    found = _chosen(folder)
    if found is not None:
        tensors = _joined(found) if found.suffix == ".json" else read_tensors(found)
        return _renamed(tensors, set(wanted)), found
    pickled = [path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLED]
    if pickled:
        raise UserError(
            f"{folder / pickled[0]}: pickled weights can run code and are not read: convert them to safetensors "
            "(load with diffusers, save_pretrained with safe_serialization=True)"
        )
    whole, others = folder / NAME, [path.name for path in sorted(folder.glob("*.safetensors"))]
    if parts := [name for name in others if PART.search(name)]:
        raise UserError(
            f"{folder}: it has {len(parts)} parts of weights ({parts[0]}, ...) and no index that says what is in them: "
            f"{NAME}.index.json belongs beside them: download it too"
        )
    raise UserError(
        f"{whole} is missing" + (f": rename {others[0]} to it" if others else ": the folder has no weights")
    )


def _chosen(folder: Path) -> Path | None:
    """The weights as diffusers names them: whole or by an index of parts, else those of the one variant there is."""
    for plain in (folder / NAME, folder / f"{NAME}.index.json"):
        if plain.is_file():
            return plain
    variants = {
        found[1]: path
        for path in sorted(folder.glob("*"))
        for pattern in VARIANTS
        if (found := pattern.fullmatch(path.name)) and path.is_file()
    }
    if len(variants) > 1:
        names = ", ".join(path.name for path in variants.values())
        raise UserError(f"{folder}: several variants of the weights and no plain ones ({names}): leave one there")
    return next(iter(variants.values()), None)


def _joined(index: Path) -> dict[str, Tensor]:
    """The tensors of all parts. Raises `UserError` that names the parts which are not there."""
    content = read_json(index)
    parts = content.get("weight_map") if isinstance(content, dict) else None
    names = sorted({str(name) for name in parts.values()}) if isinstance(parts, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"{index}: its weight_map names no files of this folder")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(
            f"{index}: {len(missing)} of its {len(names)} parts are missing ({', '.join(missing[:5])}): "
            "download them into its folder"
        )
    return {key: value for name in names for key, value in read_tensors(index.parent / name).items()}


def _renamed(tensors: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    return {name if name in wanted else _today(name): tensor for name, tensor in tensors.items()}


def _today(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
