"""What stands beside a pipeline's denoising network: the autoencoder of its latents, the encoders of its prompts."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from xmodal_kd.adapter.images.networks import silent
from xmodal_kd.runtime.checkpoint import read_object
from xmodal_kd.runtime.errors import UserError

from ..data.condition import Text
from .families import INDEX, Family, components, family_of

#: Pixels, and prompts, that are encoded or decoded at once.
PIXELS, PROMPTS = 1 << 20, 32
#: Side of the latents of a packed network's images where nothing says their size, as its pipeline has it.
USUAL_SIDE = 128
#: Keys of an autoencoder's levels, each of which halves an image.
LEVELS = ("block_out_channels", "encoder_block_out_channels")
Shape = tuple[int, ...]


class Parts:
    """The frozen parts of a pipeline's folder, read when they are first used. Copies of a model share them.

    Args:
        folder: of the pipeline.
        family: its kind.
    """

    def __init__(self, folder: Path, family: Family) -> None:
        self.folder, self.family = folder, family

    def __deepcopy__(self, memo: Any) -> Parts:
        return self

    @property
    def kind(self) -> str:
        """The pipeline's class."""
        return str(read_object(self.folder / INDEX)["_class_name"])

    @property
    def absent(self) -> tuple[str, ...]:
        """Encoders of prompts that it may have and has not."""
        there = components(read_object(self.folder / INDEX))
        return tuple(name for name in self.family.more if name not in there)

    @property
    def text(self) -> bool:
        """Whether the pipeline is prompted by text."""
        return bool(self.family.text)

    # ---------------------------------------------------------------- images and latents

    @property
    def factor(self) -> int:
        """Pixels of an image's side for one of a latent's."""
        config = read_object(self.folder / self.family.codec / "config.json")
        levels = next((config[key] for key in LEVELS if key in config), [1])
        return int(2 ** (len(levels) - 1))

    @property
    def channels(self) -> int:
        """Of an image."""
        return int(read_object(self.folder / self.family.codec / "config.json").get("in_channels", 3))

    def latent_shape(self, image: Sequence[int] | None = None) -> Shape:
        """Of what the network makes.

        Args:
            image: ``(..., H, W)``, which decides it where a network makes images of any size.
        """
        config = read_object(self.folder / self.family.place / "config.json")
        if self.family.packed:
            sides = self.latent_sides(image) if image is not None else [USUAL_SIDE] * 2
            return (int(config.get("in_channels", 64)) // 4, *(side // 2 * 2 for side in sides))
        size = config.get("sample_size")
        return (int(config.get("in_channels", 4)), *((size, size) if isinstance(size, int) else tuple(size or ())))

    def latent_sides(self, image: Sequence[int]) -> list[int]:
        """Of the latents of an image ``(..., H, W)``."""
        return [side // self.factor for side in image[-2:]]

    def image_shape(self, latent: Sequence[int]) -> Shape:
        """Of the image of a latent ``(c, h, w)``."""
        return (self.channels, *(side * self.factor for side in latent[1:]))

    def tokens(self, sides: Sequence[int]) -> int | None:
        """Patches of a latent ``(..., h, w)`` that its pipeline counts; None where it counts none."""
        side = self.family.patch
        return (sides[-2] // side) * (sides[-1] // side) if side else None

    def encode(self, images: Tensor) -> Tensor:
        """Latents ``(n, c, h, w)`` as the network sees them of images ``(n, 3, H, W)`` in [-1, 1]; means, no draws."""
        return self._by_parts(images, self._encoded, 1)

    def decode(self, latents: Tensor, *, gradient: bool = False) -> Tensor:
        """Images ``(n, 3, H, W)``, about in [-1, 1], of latents as the network makes them.

        Args:
            gradient: whether they have one by the latents.
        """
        return self._by_parts(latents, self.decoded, self.factor**2, gradient)

    def _by_parts(self, x: Tensor, call: Any, pixels: int, gradient: bool = False) -> Tensor:
        size = max(1, PIXELS // (x.shape[-1] * x.shape[-2] * pixels))
        codec = self.codec.to(x.device)
        if codec.config.get("latents_mean") is not None:
            raise UserError(
                f"{self.folder / self.family.codec}: its latents have a mean and a deviation for each channel: use a "
                "pipeline whose autoencoder has a scaling_factor alone"
            )
        learns = gradient and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns), torch.autocast(x.device.type, enabled=False):
            return torch.cat([call(codec, part.float()) for part in x.split(size)])

    def _encoded(self, codec: Any, images: Tensor) -> Tensor:
        found = codec.encode(images)
        known = next((name for name in ("latents", "latent") if hasattr(found, name)), None)
        latents: Tensor = getattr(found, known) if known else found.latent_dist.mode()
        return (latents - self._shift(codec)) * float(codec.config.scaling_factor)

    def decoded(self, codec: Any, latents: Tensor) -> Tensor:
        """As `decode`, all at once, by the autoencoder."""
        images: Tensor = codec.decode(latents / float(codec.config.scaling_factor) + self._shift(codec)).sample
        return images

    def _shift(self, codec: Any) -> float:
        """Of the latents, in pipelines that look at it."""
        return float(codec.config.get("shift_factor") or 0) if self.family.shifted else 0.0

    # ---------------------------------------------------------------- prompts

    @cached_property
    def instruction(self) -> list[str]:
        """What its pipeline says before every prompt that is not empty (Sana's complex human instruction)."""
        known = inspect.signature(type(self.pipeline).__call__).parameters.get("complex_human_instruction")
        return list(known.default) if known is not None and known.default else []

    def prompts(
        self, texts: Sequence[str], device: torch.device | str = "cpu", *, instructed: bool = True
    ) -> Text:  # fmt: skip
        """What b prompts say.

        Args:
            instructed: whether `instruction` goes before them.
        """
        asked: dict[str, Any] = {"device": device, "num_images_per_prompt": 1}
        if "do_classifier_free_guidance" in inspect.signature(self.pipeline.encode_prompt).parameters:
            asked["do_classifier_free_guidance"] = False
        if instructed and self.instruction:
            asked["complex_human_instruction"] = self.instruction
        made, names = [], (*self.family.text, *self.family.more)
        encoders = [one for name in names if isinstance(one := getattr(self.pipeline, name), torch.nn.Module)]
        with torch.no_grad(), silent("diffusers", "transformers"):
            for encoder in encoders:
                encoder.to(device)
            for start in range(0, len(texts), PROMPTS):
                part = [list(texts[start : start + PROMPTS])] * self.family.prompts
                found = [one for one in self.pipeline.encode_prompt(*part, **asked) if one is not None]
                made.append([one.float() for one in found[:2]])  # Flux has a third, where words stand: always 0
        for encoder in encoders:  # it would keep a device's memory from those that learn
            encoder.to("cpu")
        return Text(*map(torch.cat, zip(*made, strict=True)), *(part.to(device) for part in self.sizes(len(texts))))

    def sizes(self, count: int) -> list[Tensor]:
        """The image's size ``(count, 2)``, where the network is told it."""
        shape = self.image_shape(self.latent_shape())[1:] if self.family.sized else ()
        return [torch.tensor([shape]).float().repeat(count, 1)] if shape else []

    @cached_property
    def nothing(self) -> Text:
        """The empty prompt, or what the pipeline says in its place."""
        found = self.prompts([""], instructed=False)
        if read_object(self.folder / INDEX).get("force_zeros_for_empty_prompt"):
            assert found.beside is not None
            return found._replace(
                embedding=torch.zeros_like(found.embedding), beside=torch.zeros_like(found.beside)
            )  # fmt: skip
        return found

    # ---------------------------------------------------------------- files

    def digest(self, *names: str) -> bytes:
        """Of the files of some parts."""
        found = b""
        for name in names:
            for path in sorted((self.folder / name).iterdir()) if (self.folder / name).is_dir() else ():
                found += path.name.encode() + _file_digest(path, path.stat().st_mtime_ns, path.stat().st_size)
        return found

    @property
    def codec(self) -> Any:
        return getattr(self.pipeline, self.family.codec)

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline without its network, in float32 and eval mode. Nothing is fetched, nothing unpickled."""
        from diffusers import DiffusionPipeline

        there, network = components(read_object(self.folder / INDEX)), self.family.place
        none: dict[str, Any] = dict.fromkeys([network, *self.absent, *(set(self.family.optional) & there.keys())])
        try:
            with silent("diffusers", "transformers"):
                made = DiffusionPipeline.from_pretrained(
                    self.folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32, **none
                )
        except Exception as error:  # whatever a damaged folder makes of diffusers and transformers
            told = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.folder}: its autoencoder or text encoder cannot be read ({told}): download the whole pipeline "
                "with safetensors, or save it again (pipeline.save_pretrained)"
            ) from error
        # some encoders ask the network how wide it wants a prompt
        setattr(
            made, network, SimpleNamespace(config=SimpleNamespace(**read_object(self.folder / network / "config.json")))
        )
        for name in (self.family.codec, *self.family.text, *self.family.more):
            if isinstance(module := getattr(made, name), torch.nn.Module):
                module.eval().requires_grad_(False)
        return made

    def copy_to(self, folder: Path) -> None:
        """The files of all parts but the network and the scheduler."""
        for name in components(read_object(self.folder / INDEX)):
            if name not in (self.family.place, "scheduler"):
                shutil.copytree(self.folder / name, folder / name)


@lru_cache(maxsize=64)
def _file_digest(path: Path, *stamp: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()[:16]


def parts_of(folder: Path) -> Parts | None:
    """Of a pipeline's folder; None where its network stands alone. One for a folder, in all of a process.

    Raises:
        UserError: as `family_of`.
    """
    family = family_of(folder)
    return None if family is None else _known(folder.absolute(), family)


@lru_cache(maxsize=8)
def _known(folder: Path, family: Family) -> Parts:
    return Parts(folder, family)


__all__ = ["Parts", "parts_of"]
