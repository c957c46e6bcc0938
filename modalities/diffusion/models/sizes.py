"""Sizes of images that a network makes beside the one that it was made for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DModel

from xmodal_kd.runtime.errors import UserError

from ..data.condition import Text
from .denoiser import Denoiser

Size = tuple[int, int]
#: Height and width as people write them; one number is a square.
WRITTEN = re.compile(r"([1-9]\d{0,8})(?:x([1-9]\d{0,8}))?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Sizes:
    """Which images a network makes.

    Attributes:
        step: pixels that both sides are a multiple of.
        most: pixels of a side at most; None: any number.
        square: whether both sides must be equal.
    """

    step: int
    most: int | None = None
    square: bool = False

    def fits(self, size: Size) -> bool:
        few = self.most is None or max(size) <= self.most
        return few and not any(side % self.step for side in size) and (not self.square or size[0] == size[1])

    def nearest(self, size: Size) -> list[Size]:
        """The next smaller and the next larger one."""
        low, high = ((min(size),) * 2, (max(size),) * 2) if self.square else (size, size)
        below = tuple(max(side // self.step, 1) for side in low)
        above = tuple(-(-side // self.step) for side in high)
        most = None if self.most is None else self.most // self.step
        found = [tuple(self.step * min(n, most or n) for n in sides) for sides in (below, above)]
        return [(height, width) for height, width in dict.fromkeys(found)]

    def __str__(self) -> str:
        what = f"{'squares' if self.square else 'images'} whose side{'' if self.square else 's'} {self.step} divides"
        return what if self.most is None else f"{what}, of at most {self.most}"


def read_size(text: str) -> Size:
    """Height and width of ``32x48``, or of ``32``, a square. Raises `UserError` for anything else."""
    if (found := WRITTEN.fullmatch(text.strip())) is None:
        raise UserError(f"--size {text}: write height and width in pixels, as 32x48, or one number for a square")
    return int(found[1]), int(found[2] or found[1])


def sizes_of(denoiser: Denoiser) -> Sizes:
    """Of a UNet, sides that halve as often as it halves them (one with a text meets odd ones by itself); of a
    transformer, whole patches, whose places it computes, or cuts out of a table."""
    net: Any = denoiser.net
    factor, multiple = 1, 1
    if denoiser.parts is not None:
        factor, multiple = denoiser.parts.factor, denoiser.parts.family.multiple
    if isinstance(net, UNet2DModel):
        step = 2 ** halvings(net)
    elif denoiser.parts is not None and denoiser.parts.family.packed:
        step = 2
    else:
        step = int(net.config.get("patch_size") or 1)
    table = net.config.get("pos_embed_max_size")
    return Sizes(
        lcm(step * factor, multiple), None if table is None else int(table) * step * factor,
        isinstance(net, DiTTransformer2DModel),
    )  # fmt: skip


def halvings(net: Any) -> int:
    """How often a UNet halves an image."""
    return sum(getattr(block, "downsamplers", None) is not None for block in net.down_blocks)


def resize(denoiser: Denoiser, size: Size, place: Path) -> None:
    """Let it make images of `size`; what tells its network how large they are (see `sized`) says so.

    Raises:
        UserError: its network makes none of this size; those next to it are named.
    """
    known = sizes_of(denoiser)
    if not known.fits(size):
        others = " or ".join(written(one) for one in known.nearest(size))
        raise UserError(f"--size {written(size)}: {place} makes {known}: take {others}")
    parts = denoiser.parts
    factor = 1 if parts is None else parts.factor
    denoiser.shape = (denoiser.shape[0], *(side // factor for side in size))
    if parts is not None and parts.family.sized:
        denoiser.null = sized(parts.nothing, size)


def sized(said: Text, size: Size) -> Text:
    """What prompts say, for images of another size, where the network is told it."""
    if said.sizes is None:
        return said
    return said._replace(sizes=said.sizes.new_tensor([size]).expand_as(said.sizes).contiguous())


def written(size: Size) -> str:
    return "x".join(map(str, size))


__all__ = ["Size", "Sizes", "halvings", "read_size", "resize", "sized", "sizes_of", "written"]
