"""A vision transformer, with a second token and head for what a teacher says (DeiT)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.models.attention import attention
from xmodal_kd.runtime.errors import UserError

from .classifier import Network

#: Deviation of fresh weights.
SPREAD = 0.02


class ViTConfig(Strict):
    """The defaults hold 202 thousand parameters on 8x8 grey images of ten classes: DeiT-Ti has 192, 12, 3 and 16."""

    width: int = Field(64, ge=4, le=4096)
    """Channels of a token, a multiple of 4 and of `heads`."""
    depth: int = Field(4, ge=1, le=64)
    """Blocks."""
    heads: int = Field(4, ge=1, le=64)
    """Of attention."""
    patch: int = Field(2, ge=1, le=64)
    """Pixels of a patch's side; images are whole numbers of patches."""
    mlp: int = Field(4, ge=1, le=16)
    """Width of a block's hidden layer, in widths of a token."""
    distilled: bool = True
    """A distillation token beside the class token, with the head ``distilled``."""

    @model_validator(mode="after")
    def _check_width(self) -> ViTConfig:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width: {self.width} is no multiple of 4 and of {self.heads} heads")
        return self


class TokenBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp * width), nn.GELU(), nn.Linear(mlp * width, width))

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).unbind(dim=2)
        x = x + self.out(attention(q, k, v).flatten(2))
        out: Tensor = x + self.mlp(self.norms[1](x))
        return out


class ViT(Network):
    """Patches as tokens, behind a class token and a distillation token; the answer is the mean of both heads' scores.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; Touvron et al., "Training Data-efficient Image
    Transformers and Distillation through Attention", ICML 2021 (the answer as its released code has it). Places are
    told by fixed sines, so that a network takes images of any size. Without `distilled` there is one token and head.

    * ``blocks.*``: tokens ``(b, t, c)``, the class token first, then the distillation token, then the patches by rows
    * ``embedding``: the class token after the last norm ``(b, c)``
    * ``head``: the class token's scores ``(b, classes)``
    * ``distilled``: the distillation token's
    """

    Config: ClassVar[type[Strict]] = ViTConfig

    def __init__(self, config: ViTConfig, *, channels: int, classes: int) -> None:
        super().__init__()
        width = config.width
        self.patch = nn.Conv2d(channels, width, config.patch, config.patch)
        self.tokens = nn.Parameter(torch.empty(1 + config.distilled, width))
        self.blocks = nn.ModuleList(TokenBlock(width, config.heads, config.mlp) for _ in range(config.depth))
        self.norm, self.embedding = nn.LayerNorm(width), nn.Identity()
        self.head = nn.Linear(width, classes)
        self.distilled = nn.Linear(width, classes) if config.distilled else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=SPREAD)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.tokens, std=SPREAD)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        side = self.patch.kernel_size[0]
        if x.shape[2] % side or x.shape[3] % side:
            raise UserError(f"params.patch: images of {x.shape[3]}x{x.shape[2]} are no whole patches of {side} pixels")
        maps = self.patch(x)
        patches = maps.flatten(2).transpose(1, 2) + places(*maps.shape[1:]).to(maps)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), patches], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        scores: Tensor = self.head(self.embedding(x[:, 0]))
        return scores if self.distilled is None else (scores + self.distilled(x[:, 1])) / 2


def places(width: int, height: int, across: int) -> Float[Tensor, "t c"]:
    """Sines and cosines of each patch's row, then of its column, at frequencies from 1 down to 1 / 10000."""
    frequencies = torch.exp(-torch.arange(width // 4) / max(1, width // 4 - 1) * 9.210340371976184)
    down, right = (torch.arange(n)[:, None] * frequencies for n in (height, across))
    rows, columns = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (down, right))
    both = torch.cat([rows[:, None].expand(-1, across, -1), columns[None].expand(height, -1, -1)], dim=2)
    return F.normalize(both.flatten(0, 1), dim=1)


__all__ = ["ViT", "ViTConfig"]
