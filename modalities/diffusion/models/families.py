"""Pipelines of diffusers that are distilled with their autoencoder and text encoders, by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import UserError

INDEX = "model_index.json"


@dataclass(frozen=True)
class Family:
    """What a pipeline is made of.

    Attributes:
        place: the folder of its denoising network.
        network: that network's class.
        codec: the folder of its autoencoder.
        codecs: classes that this may have.
        text: folders of what makes a prompt into numbers; none where it is not prompted.
        more: folders of further encoders of prompts, which are used where they are there.
        optional: folders that are copied and not used: of a filter of finished images.
        prompts: how often its encoders are given a prompt.
        kind: of the process of its scheduler.
        shifted: whether latents are moved by the autoencoder's shift_factor.
        sized: whether its network is told how large an image is.
        added: what a UNet2DConditionModel takes beside a text (its addition_embed_type).
        packed: whether its network sees 2 x 2 latents as a token, and makes images of any size.
        patch: side of the patches of latents that its pipeline counts, as the shift of a scheduler may hang on their
            number; 0: it does not count them.
        called: whether its pipeline makes images of one size, whatever its network's, unless it is called with another.
        multiple: that its pipeline wants both sides of an image to be of.
        guidance: scale that its pipeline is called with where nobody says one.
        formerly: what folders of older releases call the network's class.
    """

    place: str
    network: str
    codec: str
    codecs: tuple[str, ...]
    text: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    prompts: int = 1
    kind: str = "vp"
    shifted: bool = False
    sized: bool = False
    added: str | None = None
    packed: bool = False
    patch: int = 0
    called: bool = False
    multiple: int = 1
    guidance: float = 7.5
    formerly: tuple[str, ...] = ()


_STABLE = Family(
    "unet", "UNet2DConditionModel", "vae", ("AutoencoderKL",), ("text_encoder", "tokenizer"),
    ("safety_checker", "feature_extractor"),
)  # fmt: skip
_PIXART = Family(
    "transformer", "PixArtTransformer2DModel", "vae", ("AutoencoderKL",), ("text_encoder", "tokenizer"), sized=True,
    guidance=4.5, formerly=("Transformer2DModel",),
)  # fmt: skip
FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": _STABLE,
    "LatentConsistencyModelPipeline": _STABLE,
    "LDMPipeline": Family("unet", "UNet2DModel", "vqvae", ("VQModel", "AutoencoderKL")),
    "DiTPipeline": Family("transformer", "DiTTransformer2DModel", "vae", ("AutoencoderKL",)),
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "StableDiffusionXLPipeline": Family(
        "unet",
        "UNet2DConditionModel",
        "vae",
        ("AutoencoderKL",),
        ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        ("image_encoder", "feature_extractor"),
        prompts=2,
        sized=True,
        added="text_time",
        guidance=5.0,
    ),
    "StableDiffusion3Pipeline": Family(
        "transformer",
        "SD3Transformer2DModel",
        "vae",
        ("AutoencoderKL",),
        ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        ("image_encoder", "feature_extractor"),
        ("text_encoder_3", "tokenizer_3"),
        prompts=3,
        kind="flow",
        shifted=True,
        patch=2,
        guidance=7.0,
    ),
    "FluxPipeline": Family(
        "transformer",
        "FluxTransformer2DModel",
        "vae",
        ("AutoencoderKL",),
        ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        ("image_encoder", "feature_extractor"),
        kind="flow",
        shifted=True,
        packed=True,
        patch=2,
        called=True,
        guidance=3.5,
    ),
    "SanaPipeline": Family(
        "transformer",
        "SanaTransformer2DModel",
        "vae",
        ("AutoencoderDC",),
        ("text_encoder", "tokenizer"),
        kind="flow",
        called=True,
        multiple=32,
        guidance=4.5,
    ),
}


def components(index: Mapping[str, object]) -> dict[str, str]:
    """The class of each part that a ``model_index.json`` names; those that it leaves empty are left out."""
    return {
        name: str(part[1])
        for name, part in index.items()
        if isinstance(part, list) and len(part) == 2 and part[1] is not None
    }


def family_of(folder: Path) -> Family | None:
    """The family of the pipeline in `folder`; None for one of a ``UNet2DModel`` alone, and for all others.

    Raises:
        UserError: it lacks a part, or has another in its place.
    """
    if not (folder / INDEX).is_file():
        return None
    index = read_object(folder / INDEX)
    name = str(index.get("_class_name"))
    family = FAMILIES.get(name)
    if family is None:
        return None
    there, where = components(index), folder / INDEX
    if missing := [part for part in family.text if part not in there]:
        raise UserError(
            f"{where}: a {name} without {', '.join(missing)}, so that no prompt can be read: download the whole "
            "pipeline, or save it with them (pipeline.save_pretrained)"
        )
    for part, classes in ((family.place, (family.network, *family.formerly)), (family.codec, family.codecs)):
        if there.get(part) not in classes:
            found = there.get(part, "missing")
            raise UserError(
                f"{where}: the {part} of a {name} is {found}: only {' or '.join(classes)} is distilled here"
            )
    known = {family.place, family.codec, "scheduler", *family.text, *family.more, *family.optional}
    if more := sorted(set(there) - known):
        raise UserError(
            f"{where}: has {', '.join(more)} beside the usual parts of a {name}, which its students would be without: "
            "save the pipeline without them"
        )
    return family


__all__ = ["FAMILIES", "INDEX", "Family", "components", "family_of"]
