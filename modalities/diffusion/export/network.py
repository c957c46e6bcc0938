"""The denoising network of a pipeline's folder: built as its configuration says, refused where it would be misread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)

from xmodal_kd.runtime.allocation import bounded
from xmodal_kd.runtime.checkpoint import load_weights, read_object
from xmodal_kd.runtime.errors import UserError

from ..models.asked import WAVES, WITH_VARIANCE
from ..models.families import Family
from ..models.networks import keep_labels
from ..models.process import Process
from .weights import read_weights

NETWORKS: Mapping[str, Any] = {
    kind.__name__: kind
    for kind in (
        UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, FluxTransformer2DModel, PixArtTransformer2DModel,
        SanaTransformer2DModel, SD3Transformer2DModel,
    )
}  # fmt: skip
#: A network that stands alone.
PLAIN = Family("unet", "UNet2DModel", "", ())
#: Of a UNet2DConditionModel: what it takes beside a text, each with its value where it takes nothing.
BESIDE = {
    "class_embed_type": None, "num_class_embeds": None, "addition_embed_type": None, "encoder_hid_dim_type": None,
    "encoder_hid_dim": None,
}  # fmt: skip


def read_network(folder: Path, process: Process, family: Family = PLAIN) -> Any:
    """A network of diffusers with its weights, on the CPU.

    Args:
        family: of the pipeline that it belongs to, which says its class.

    Raises:
        UserError: it is another, cannot be built, lacks weights, or is one that our samplers and losses would misread.
    """
    path = folder / "config.json"
    config, kind = read_object(path), family.network
    _check(path, config, process, family)
    try:
        with bounded(str(path)):
            net = NETWORKS[kind].from_config({k: v for k, v in config.items() if k != "_name_or_path"})
    except UserError:
        raise
    except Exception as error:  # whatever a damaged configuration makes of the layers
        raise UserError(f"{path}: no {kind} can be built from it: {' '.join(str(error).split())}") from error
    weights, source = read_weights(folder, net.state_dict())
    load_weights(net, weights, source)
    keep_labels(net)
    return net


def _check(path: Path, config: Mapping[str, Any], process: Process, family: Family) -> None:
    """Raises `UserError` for a network that our samplers and losses would misread."""
    kind = family.network
    there = config.get("_class_name", kind)
    if there not in (kind, *family.formerly):
        whole = " by itself: name the folder of its whole pipeline" if there in NETWORKS else f": {kind} is distilled"
        raise UserError(f"{path}: is a {there}{whole}")
    inner, outer, size = config.get("in_channels", 3), config.get("out_channels", 3), config.get("sample_size")
    if config.get("guidance_embeds") and kind == "SanaTransformer2DModel":
        raise UserError(f"{path}: guidance_embeds is on: a few-step network (Sana-Sprint): use that it was made from")
    if issubclass(NETWORKS[kind], WITH_VARIANCE):
        _check_dit(path, config)
        return
    if kind == "FluxTransformer2DModel":
        _check_flux(path, config)
        return
    if outer == 2 * inner:
        raise UserError(
            f"{path}: its {outer} output channels hold a learned variance too: this cannot be distilled: use a "
            "teacher without one"
        )
    if outer != inner:
        raise UserError(
            f"{path}: {inner} channels in and {outer} out: it is conditioned on something else: use another"
        )
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2:
        raise UserError(f"{path}: sample_size is {size!r}: write the height and width of its images there")
    if kind == "UNet2DConditionModel":
        usual = BESIDE | {"addition_embed_type": family.added}
        if beside := next((key for key, value in usual.items() if config.get(key) != value), None):
            told = f", or with {family.added}" if beside == "addition_embed_type" and family.added else ""
            raise UserError(
                f"{path}: {beside} is {config.get(beside)!r}: only text is understood beside noise and time: use a "
                f"teacher without it{told}"
            )
    elif (embed := config.get("class_embed_type")) not in (None, WAVES):
        raise UserError(f"{path}: class_embed_type {embed!r}: only plain class labels and {WAVES!r} are understood")
    if config.get("time_embedding_type", "positional") == "fourier":
        raise UserError(f"{path}: time_embedding_type 'fourier' belongs to networks that take sigmas, not timesteps")
    known = config.get("num_train_timesteps")
    learned = config.get("time_embedding_type") == "learned"
    if learned and process.kind != "vp":
        raise UserError(f"{path}: a learned embedding of whole timesteps cannot be asked at those of its scheduler")
    if learned and (known or 0) < process.T:
        raise UserError(f"{path}: its embedding has {known} timesteps, its scheduler {process.T}")


def _check_dit(path: Path, config: Mapping[str, Any]) -> None:
    inner, outer = config.get("in_channels", 4), config.get("out_channels")
    if outer not in (None, inner, 2 * inner):
        raise UserError(f"{path}: {inner} channels in and {outer} out: as many, or twice with a variance, are expected")
    if not isinstance(config.get("sample_size"), int):
        raise UserError(f"{path}: sample_size is {config.get('sample_size')!r}: write the side of its latents there")


def _check_flux(path: Path, config: Mapping[str, Any]) -> None:
    inner, outer, patch = config.get("in_channels", 64), config.get("out_channels"), config.get("patch_size", 1)
    if outer not in (None, inner) or inner % 4:
        raise UserError(
            f"{path}: {inner} channels in and {outer} out: as many of each, 4 for a latent's, are expected: use a "
            "teacher that is told a text alone"
        )
    if patch != 1:
        raise UserError(f"{path}: patch_size {patch}: its pipeline packs 2 x 2 latents itself: 1 is expected")


__all__ = ["NETWORKS", "read_network"]
