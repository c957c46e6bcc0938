"""Joints in video: what a pose looked like in one frame is looked for in the next by a much smaller network."""

from __future__ import annotations

from math import log2
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict

from .classifier import Block, Convolution
from .keypoints import HeatMaps, HourglassConfig, StackedHourglass


class DynamicKernelsConfig(Strict):
    """Of a network of clips."""

    first: HourglassConfig = HourglassConfig()
    """The hourglass that looks at the first frame of a clip."""
    width: int = Field(8, ge=1, le=1024)
    """Channels of the small network that looks at every frame, and of a kernel."""
    blocks: int = Field(1, ge=1, le=16)
    """Its residual blocks."""
    kernel: Literal[1, 3, 5, 7] = 5
    """Positions on a side of a joint's kernel."""
    hidden: int = Field(16, ge=1, le=1024)
    """Channels of what makes kernels of features and heat maps."""


class Distillator(nn.Module):
    """Kernels of one frame: features ``(b, c, h, w)`` and heat maps ``(b, j, h, w)`` to ``(b, j, c, k, k)``."""

    def __init__(self, width: int, joints: int, kernel: int, hidden: int) -> None:
        super().__init__()
        self.shape = joints, width, kernel, kernel
        self.see = nn.Sequential(
            Convolution(width + joints, hidden), nn.ReLU(), Convolution(hidden, hidden, 2), nn.ReLU()
        )
        self.make = nn.Conv2d(hidden, joints * width, 1)

    def forward(self, features: Float[Tensor, "b c h w"], maps: Float[Tensor, "b j h w"]) -> Float[Tensor, "b j c k k"]:
        seen = self.see(torch.cat([features, maps], dim=1))
        small = F.interpolate(seen, size=self.shape[2:], mode="bilinear", align_corners=False)
        return self.make(small).unflatten(1, self.shape[:2]) / (self.shape[2] * self.shape[3])  # type: ignore[no-any-return]


def matched(features: Float[Tensor, "b c h w"], kernels: Float[Tensor, "b j c k k"]) -> Float[Tensor, "b j h w"]:
    """Each sample's features correlated with its own kernels, with zeros around."""
    k = kernels.shape[-1]
    patches = F.unfold(features, k, padding=k // 2)
    maps: Tensor = (kernels.flatten(2) @ patches).unflatten(2, features.shape[2:])
    return maps


class DynamicKernels(HeatMaps):
    """An hourglass finds joints in the first frame of a clip; kernels made of each frame find them in the next.

    Nie et al., "Dynamic Kernel Distillation for Efficient Pose Estimation in Videos", ICCV 2019: kernels k_t are made
    of features and heat maps of frame t (`Distillator`), and the maps of the next frame are the features of a small
    network correlated with them, ``h_{t+1} = k_t * F(I_{t+1})``. Gradients flow through all frames. The sizes of its
    parts are ours: the paper's were not at hand. An image alone is a first frame. To capture: ``encoder``, a map of
    each frame.
    """

    Config: ClassVar[type[Strict]] = DynamicKernelsConfig
    video: ClassVar[bool] = True

    def __init__(self, config: DynamicKernelsConfig, *, channels: int, joints: int, stride: int) -> None:
        super().__init__()
        self.first = StackedHourglass(config.first, channels=channels, joints=joints, stride=stride)
        halvings, width = int(log2(stride)), config.width
        small: list[nn.Module] = []
        for i in range(max(1, halvings)):
            small += [Convolution(channels if i == 0 else width, width, 2 if i < halvings else 1), nn.ReLU()]
        self.encoder = nn.Sequential(*small, *(Block(width, width) for _ in range(config.blocks)))
        self.distillator = Distillator(width, joints, config.kernel, config.hidden)
        self.whole = self.first.whole

    def forward(self, x: Float[Tensor, "b c h w"], before: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b j i k"]:
        """
        Args:
            before: where among `x` the frame before each stands; -1, and None for all: there is none.
        """
        if before is None:
            return self.first(x)  # type: ignore[no-any-return]
        now = (before < 0).nonzero().flatten()
        begun = self.first(x[now])
        maps: Tensor = begun.new_zeros(len(x), *begun.shape[1:]).index_copy(0, now, begun)
        features = self.encoder(x)
        while len(later := torch.isin(before, now).nonzero().flatten()):
            now = before[later]
            maps = maps.index_copy(0, later, self.follow(features[now], maps[now], features[later]).to(maps))
            now = later
        return maps

    def follow(self, seen: Tensor, maps: Tensor, later: Tensor) -> Tensor:
        """Heat maps of frames whose features are `later`, of the features `seen` and maps of those before them."""
        return matched(later, self.distillator(seen, maps))


class NextFrame(nn.Module):
    """What a saved model does with the frame after one: its image, the one before and that one's heat maps."""

    def __init__(self, model: DynamicKernels) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, previous: Tensor, heatmaps: Tensor) -> Tensor:
        return self.model.follow(self.model.encoder(previous), heatmaps, self.model.encoder(x))


__all__ = ["Distillator", "DynamicKernels", "DynamicKernelsConfig", "NextFrame", "matched"]
