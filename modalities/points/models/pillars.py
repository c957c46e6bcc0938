"""A detector of pillars: points pooled by square of ground, and `CenterPoint` over the squares."""

from __future__ import annotations

from typing import ClassVar

from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .centre import Answer, CenterPoint, CenterPointConfig
from .scene import View


class CenterPointPillarConfig(CenterPointConfig):
    """Parameters of `CenterPointPillar`."""


class CenterPointPillar(CenterPoint):
    """PointPillars' encoder (Lang et al., 2019) under `CenterPoint`.

    A linear layer with a layer norm makes each point `width` numbers, a pillar has the largest of its points'.
    """

    Config = CenterPointPillarConfig
    view: ClassVar[View] = "pillars"

    def __init__(self, config: CenterPointPillarConfig, *, channels: int, classes: int) -> None:
        super().__init__(config, channels=channels, classes=classes)
        self.point = nn.Sequential(nn.Linear(channels, self.width), nn.LayerNorm(self.width), nn.ReLU())
        self.stand(config)

    def forward(self, points: Float[Tensor, "n c"], cell: Int64[Tensor, " n"], shape: tuple[int, int, int]) -> Answer:
        """What is there.

        Args:
            points: of all items, see `views.ground.pillars`.
            cell: the pillar of each, counted through the batch.
            shape: items, pillars along x and y: both multiples of 8.
        """
        items, h, w = shape
        rows = self.point(points)
        empty = rows.new_zeros(items * h * w, rows.shape[1])
        pooled = empty.scatter_reduce(0, cell[:, None].expand_as(rows), rows, "amax")
        return self.answer(rearrange(pooled, "(b h w) c -> b c h w", b=items, h=h, w=w))


__all__ = ["CenterPointPillar", "CenterPointPillarConfig"]
