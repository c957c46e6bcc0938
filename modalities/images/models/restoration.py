"""Restored images: residual blocks on the small image, sub-pixel upsampling, and tiles of what is too large."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict

#: Side of a tile of the input, in pixels, before what it must see around it.
TILE = 192


class EDSRConfig(Strict):
    """The defaults hold 45 thousand parameters for colour images of twice the size."""

    width: int = Field(24, ge=1, le=4096)
    """Channels throughout."""
    blocks: int = Field(4, ge=1, le=256)
    """Residual blocks, of two convolutions each."""
    residual_scale: float = Field(1.0, gt=0, le=1)
    """Of what a block adds: 0.1 keeps very wide networks from diverging (Lim et al., 2017)."""


class Restorer(nn.Module):
    """Base of what restores images: ``(b, c, h, w)`` in [-1, 1] to ``(b, c, scale h, scale w)``, of any size."""

    Config: ClassVar[type[Strict]]
    task: ClassVar[str] = "restoration"
    #: Its name and parameters, as a recipe and a saved folder give them; set by whoever builds it from them.
    card: dict[str, Any]
    scale: int
    #: Pixels of the input around one that decide what is made of it.
    reach: int


class ResidualBlock(nn.Module):
    """``x + a f(x)``, f two convolutions with ReLU between, without a norm (Lim et al., 2017, figure 2c)."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(_convolution(width, width), nn.ReLU(), _convolution(width, width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.scale * self.body(x)  # type: ignore[no-any-return]


class Enlarged(nn.Module):
    """The input by bicubic sampling (Keys' with a = -3/4, as torch has it) on the output's grid."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        if self.scale == 1:
            return x
        return F.interpolate(x, scale_factor=self.scale, mode="bicubic")


class EDSR(Restorer):
    """Residual blocks without norms (Lim et al., 2017); the upsampling is one sub-pixel convolution (Shi et al., 2016).

    What it adds to is the input by bicubic sampling (Kim et al., 2016), which it gives before it has learnt anything.

    * ``head``, ``blocks.*``, ``features`` (all blocks, the head added): maps ``(b, width, h, w)`` on the input's grid
    * ``enlarged``: the input on the output's grid, beside which a discriminator of pairs sees an image
    """

    Config: ClassVar[type[Strict]] = EDSRConfig

    def __init__(self, config: EDSRConfig, *, channels: int, scale: int) -> None:
        super().__init__()
        self.scale, self.reach = scale, 2 * config.blocks + 3
        self.head = _convolution(channels, config.width)
        self.blocks = nn.ModuleList(ResidualBlock(config.width, config.residual_scale) for _ in range(config.blocks))
        self.body = _convolution(config.width, config.width)
        self.features = nn.Identity()
        self.up = _convolution(config.width, channels * scale**2)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]
        self.enlarged = Enlarged(scale)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        head = maps = self.head(x)
        for block in self.blocks:
            maps = block(maps)
        features = self.features(head + self.body(maps))
        return self.enlarged(x) + F.pixel_shuffle(self.up(features), self.scale)  # type: ignore[no-any-return]


def _convolution(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, padding=1)


@torch.no_grad()
def restored(model: Restorer, x: Float[Tensor, "c h w"], tile: int = TILE) -> Float[Tensor, "c i j"]:
    """What `model` makes of one image, on the CPU, tile by tile where it is larger than one.

    A tile is seen with all around it that decides its pixels, so that there are no seams: memory is bounded, and the
    result is that of the whole image.
    """
    (_, height, width), scale, reach = x.shape, model.scale, model.reach
    device = next(model.parameters()).device
    out = x.new_empty(x.shape[0], height * scale, width * scale)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            above, before = max(0, top - reach), max(0, left - reach)
            seen = x[:, above : bottom + reach, before : right + reach]
            made = model(seen[None].to(device))[0].float().cpu()
            inner = made[:, (top - above) * scale :, (left - before) * scale :]
            place = out[:, top * scale : bottom * scale, left * scale : right * scale]
            place.copy_(inner[:, : place.shape[1], : place.shape[2]])
    return out


__all__ = ["EDSR", "TILE", "EDSRConfig", "Enlarged", "ResidualBlock", "Restorer", "restored"]
