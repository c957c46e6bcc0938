"""A detector of pillars: points pooled by square of ground, a 2D network over the squares, heads at the centres."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict

from ..views.ground import CODE
from .scene import SceneModel, View

#: Channels of a pillar, by size.
WIDTHS = {"tiny": 8, "small": 16, "base": 32}
#: What the heat begins at: a thing in one of a hundred cells (Lin et al., 2017, 4.1).
RARE = -4.6


class CenterPointPillarConfig(Strict):
    """Parameters of `CenterPointPillar`."""

    size: Literal["tiny", "small", "base"] = "small"
    """8, 16 or 32 channels of a pillar."""
    width: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Channels of a pillar, in the place of the size's."""
    depth: Annotated[int, Field(gt=0, le=32)] = 1
    """Blocks of a level after the one that halves it."""

    @property
    def channels(self) -> int:
        return self.width or WIDTHS[self.size]


class Answer(NamedTuple):
    """What a detector says of every cell of two by two pillars.

    Attributes:
        heat: ``(b, classes, h / 2, w / 2)`` logits of a thing's centre being there.
        boxes: ``(b, 8, h / 2, w / 2)`` its box, see `views.ground.encoded`.
    """

    heat: Float[Tensor, "b c h w"]
    boxes: Float[Tensor, "b 8 h w"]


class CenterPointPillar(SceneModel):
    """PointPillars' encoder and backbone (Lang et al., 2019) under CenterPoint's heads (Yin et al., 2021).

    A linear layer makes each point `channels` numbers, a pillar has the largest of its points'; three levels of 3 x 3
    convolutions, each of half the cells of the one before and of 1, 2 and 4 times the channels, are brought to the
    cells of the first and joined. In plain torch, with group and layer norms in the place of batch norms. Modules to
    capture: ``pillars`` (the pooled pillars), ``encoder.*``, ``features`` (what the heads see), ``boxes``.
    """

    Config = CenterPointPillarConfig
    view: ClassVar[View] = "pillars"
    #: Pillars along the side of a cell of its answer.
    merged = 2

    def __init__(self, config: CenterPointPillarConfig, *, channels: int, classes: int) -> None:
        super().__init__(config, channels=channels, classes=classes)
        width = self.width = config.channels
        self.point = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width), nn.ReLU())
        self.pillars = nn.Identity()
        widths = [width, 2 * width, 4 * width]
        self.encoder = nn.ModuleList(
            _level(before, after, config.depth) for before, after in zip([width, *widths], widths, strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, 1) for each in widths)
        self.neck = _block(3 * width, width)
        self.heat = nn.Sequential(_block(width, width), nn.Conv2d(width, classes, 1))
        self.boxes = nn.Sequential(_block(width, width), nn.Conv2d(width, CODE, 1))
        nn.init.constant_(self.heat[1].bias, RARE)  # type: ignore[arg-type]

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
        maps = self.pillars(rearrange(pooled, "(b h w) c -> b c h w", b=items, h=h, w=w))
        levels = []
        for level, lateral in zip(self.encoder, self.lateral, strict=True):
            maps = level(maps)
            levels.append(F.interpolate(lateral(maps), size=(h // 2, w // 2), mode="nearest"))
        seen = self.features(self.neck(torch.cat(levels, dim=1)))
        return Answer(self.heat(seen), self.boxes(seen))


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    norm = nn.GroupNorm(max(1, after // 8), after)
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), norm, nn.ReLU())


def _level(before: int, after: int, depth: int) -> nn.Sequential:
    return nn.Sequential(_block(before, after, 2), *(_block(after, after) for _ in range(depth)))


__all__ = ["Answer", "CenterPointPillar", "CenterPointPillarConfig"]
