"""A small transformer over points: attention within windows along space-filling curves."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.models.attention import attention

from .scene import PointModel
from .serial import Windows, windows


class PointTransformerConfig(Strict):
    """The defaults hold 0.16 million parameters."""

    width: int = Field(64, ge=1)
    blocks: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    window: int = Field(64, ge=2)
    """Points that see each other in a block."""
    mlp: int = Field(2, ge=1)
    """Hidden width of a block's MLP, in units of `width`."""
    cell: float = Field(0.2, gt=0)
    """Metres; points closer than this have no order of their own along the curve."""

    @model_validator(mode="after")
    def _fits(self) -> PointTransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.window % 2:
            raise ValueError(f"window must be even, because every other block shifts it by half, got {self.window}")
        return self


class Attention(nn.Module):
    """Every point sees its window, itself included."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "total c"], lengths: list[int]) -> Float[Tensor, "total c"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(dim=1)
        return self.out(attention(q, k, v, lengths=lengths).flatten(1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm attention and MLP; where a point lies in its window is an MLP's sum beside the features."""

    def __init__(self, config: PointTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.position = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, config.heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp * width), nn.GELU(), nn.Linear(config.mlp * width, width)
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "total c"], within: Windows) -> Float[Tensor, "total c"]:
        y = x[within.order] + self.position(within.centred)
        y = y + self.attention(self.norm_attention(y), within.lengths)
        y = y + self.mlp(self.norm_mlp(y))
        return y[within.place]  # type: ignore[no-any-return]


class PointTransformer(PointModel):
    """``encoder.*`` are the blocks, ``decoder.0`` the norm and layer before the head; rows stay in the points' order.

    The blocks alternate between two orders of the curve, and after both between windows that begin at the first point
    and in the middle of a window. Points of one cell keep the file's order, so another order of the file may change
    who shares a window, and by that the logits a little; what lies in other items changes nothing.
    """

    Config: ClassVar[type[Strict]] = PointTransformerConfig

    def __init__(self, config: PointTransformerConfig, *, channels: int, classes: int) -> None:
        super().__init__(config, channels=channels, classes=classes)
        self.config = config
        self.embed = nn.Sequential(nn.Linear(channels, config.width), nn.GELU(), nn.Linear(config.width, config.width))
        self.encoder = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.decoder = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.width), nn.GELU())]
        )
        self.head = nn.Linear(config.width, classes)

    def forward(
        self, points: Float[Tensor, "total channels"], lengths: Int[Tensor, " b"]
    ) -> Float[Tensor, "total classes"]:
        """As `PointModel.forward`."""
        numbers = self.numbers(points, lengths)
        blocks = len(self.encoder)
        ways = windows(
            points[:, :3].float(), numbers, window=self.config.window, cell=self.config.cell,
            orders=min(2, blocks), shifts=1 if blocks <= 2 else 2,
        )  # fmt: skip
        turns = ways if blocks <= 2 else [ways[0], ways[2], ways[1], ways[3]]
        x = self.embed(points * self.scale)
        for i, block in enumerate(self.encoder):
            x = block(x, turns[i % len(turns)])
        for stage in self.decoder:
            x = stage(x)
        return self.head(self.features(x))  # type: ignore[no-any-return]


__all__ = ["PointTransformer", "PointTransformerConfig"]
