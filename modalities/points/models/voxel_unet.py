"""A sparse U-Net over voxels (Graham et al., 2018; Choy et al., 2019) with a branch of points beside it.

The points' own branch, as SPVCNN's (Tang et al., 2020), tells points of one voxel apart.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict

from .scene import PointModel
from .voxels import Coarser, Finer, Level, Neighbours, mean_of, voxelise


class VoxelUNetConfig(Strict):
    """The defaults hold 0.27 million parameters."""

    width: int = Field(16, ge=1)
    """Channels of the finest voxels; they double from one level to the next."""
    levels: int = Field(3, ge=1, le=8)
    """Resolutions; voxels are twice as wide from one to the next."""
    blocks: int = Field(1, ge=1)
    """Residual blocks, of two convolutions each, a level and way."""
    cell: float = Field(0.3, gt=0)
    """Metres of the finest voxels' edges."""


class Block(nn.Module):
    """Two convolutions over neighbours with a way past them; norms are of one voxel's channels, not of a batch."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm, self.norm_again = nn.LayerNorm(channels), nn.LayerNorm(width)
        self.conv, self.conv_again = Neighbours(channels, width), Neighbours(width, width)
        self.past = nn.Linear(channels, width, bias=False) if channels != width else nn.Identity()

    def forward(self, x: Float[Tensor, "voxels c"], level: Level) -> Float[Tensor, "voxels d"]:
        y = self.conv(F.relu(self.norm(x)), level)
        y = self.conv_again(F.relu(self.norm_again(y)), level)
        return y + self.past(x)  # type: ignore[no-any-return]


class Blocks(nn.Module):
    def __init__(self, channels: int, width: int, number: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width if i else channels, width) for i in range(number))

    def forward(self, x: Tensor, level: Level) -> Tensor:
        for block in self.blocks:
            x = block(x, level)
        return x


class VoxelUNet(PointModel):
    """``encoder.0`` works on the finest voxels, ``decoder.0`` on the second coarsest, the last decoder stage on the
    finest.

    What the stages put out has a row a voxel; `features` and the logits have one a point, in the points' order. Another
    order of the points changes nothing but the rounding of sums.
    """

    Config: ClassVar[type[Strict]] = VoxelUNetConfig

    def __init__(self, config: VoxelUNetConfig, *, channels: int, classes: int) -> None:
        super().__init__(config, channels=channels, classes=classes)
        self.config = config
        widths = [config.width * 2**level for level in range(config.levels)]
        # where it lies in its voxel, beside what it is
        first = config.width
        self.embed = nn.Sequential(nn.Linear(channels + 3, first), nn.ReLU(), nn.Linear(first, first))
        self.encoder = nn.ModuleList(Blocks(width, width, config.blocks) for width in widths)
        self.coarser = nn.ModuleList(Coarser(fine, coarse) for fine, coarse in pairwise(widths))
        self.finer = nn.ModuleList(Finer(coarse, fine) for coarse, fine in pairwise(reversed(widths)))
        self.decoder = nn.ModuleList(Blocks(2 * width, width, config.blocks) for width in reversed(widths[:-1]))
        self.points = nn.Sequential(nn.LayerNorm(2 * first), nn.Linear(2 * first, first), nn.ReLU())
        self.head = nn.Linear(first, classes)

    def forward(
        self, points: Float[Tensor, "total channels"], lengths: Int[Tensor, " b"]
    ) -> Float[Tensor, "total classes"]:
        """As `PointModel.forward`."""
        numbers = self.numbers(points, lengths)
        xyz = points[:, :3].float()
        of, levels = voxelise(xyz, numbers, cell=self.config.cell, levels=self.config.levels)
        within = (xyz / self.config.cell).remainder(1.0) - 0.5
        own = self.embed(torch.cat([points * self.scale, within.to(points.dtype)], dim=1))
        x, skips = mean_of(own, of, len(levels[0])), []
        for i, stage in enumerate(self.encoder):
            x = stage(x, levels[i])
            if i < len(self.coarser):
                skips.append(x)
                x = self.coarser[i](x, levels[i], levels[i + 1])
        for i, (finer, stage) in enumerate(zip(self.finer, self.decoder, strict=True)):
            level = levels[len(skips) - 1 - i]
            x = stage(torch.cat([finer(x, level), skips[len(skips) - 1 - i]], dim=1), level)
        return self.head(self.features(self.points(torch.cat([x[of], own], dim=1))))  # type: ignore[no-any-return]


__all__ = ["VoxelUNet", "VoxelUNetConfig"]
