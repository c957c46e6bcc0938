"""What detectors share whatever they see: a 2D network over squares of ground, heads at the centres of things."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict

from ..views.ground import CODE
from .scene import SceneModel

#: Channels of a pillar, by size.
WIDTHS = {"tiny": 8, "small": 16, "base": 32}
#: What the heat begins at: a thing in one of a hundred cells (Lin et al., 2017, 4.1).
RARE = -4.6


class CenterPointConfig(Strict):
    """Parameters of every `CenterPoint`."""

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


class CenterPoint(SceneModel):
    """PointPillars' backbone (Lang et al., 2019) under CenterPoint's heads (Yin et al., 2021), on maps of the ground.

    Three levels of 3 x 3 convolutions, each of half the cells of the one before and of 1, 2 and 4 times the channels,
    are brought to the cells of the first and joined. Group norms stand in the place of batch norms. Modules to
    capture: ``pillars`` (what stands on the ground before any convolution), ``encoder.*``, ``features`` (what the heads
    see), ``boxes``; ``depth`` of those that see photographs.
    """

    detects: ClassVar[bool] = True
    #: Pillars along the side of a cell of its answer.
    merged: ClassVar[int] = 2

    def __init__(self, config: CenterPointConfig, *, channels: int, classes: int) -> None:
        super().__init__(config, channels=channels, classes=classes)
        self.width = config.channels
        #: Of those that see no photographs a name alone, so that one objective trains both.
        self.depth: nn.Module = nn.Identity()

    def stand(self, config: CenterPointConfig) -> None:
        """Make all that comes after the pillars; a subclass calls it behind what makes its pillars."""
        width = self.width
        self.pillars = nn.Identity()
        widths = [width, 2 * width, 4 * width]
        self.encoder = nn.ModuleList(
            _level(before, after, config.depth) for before, after in zip([width, *widths], widths, strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, 1) for each in widths)
        self.neck = block(3 * width, width)
        self.heat = nn.Sequential(block(width, width), nn.Conv2d(width, self.classes, 1))
        self.boxes = nn.Sequential(block(width, width), nn.Conv2d(width, CODE, 1))
        nn.init.constant_(self.heat[1].bias, RARE)  # type: ignore[arg-type]

    @abstractmethod
    def forward(self, seen: Tensor, cell: Int64[Tensor, " n"], shape: tuple[int, int, int]) -> Answer:
        """What is there.

        Args:
            seen: of all items.
            cell: where on the ground each part of it stands, counted through the batch.
            shape: items, pillars along x and y: both multiples of 8.
        """

    def answer(self, ground: Float[Tensor, "b c h w"]) -> Answer:
        """What stands on the ground, of its pillars."""
        maps, (h, w) = self.pillars(ground), ground.shape[2:]
        levels = []
        for level, lateral in zip(self.encoder, self.lateral, strict=True):
            maps = level(maps)
            levels.append(F.interpolate(lateral(maps), size=(h // 2, w // 2), mode="nearest"))
        seen = self.features(self.neck(torch.cat(levels, dim=1)))
        return Answer(self.heat(seen), self.boxes(seen))


def block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution, a norm by groups, ReLU."""
    norm = nn.GroupNorm(max(1, after // 8), after)
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), norm, nn.ReLU())


def _level(before: int, after: int, depth: int) -> nn.Sequential:
    return nn.Sequential(block(before, after, 2), *(block(after, after) for _ in range(depth)))


__all__ = ["Answer", "CenterPoint", "CenterPointConfig", "block"]
