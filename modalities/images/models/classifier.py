"""Classifiers of small images; by default without batch statistics."""

from __future__ import annotations

from math import gcd
from typing import Any, ClassVar, Literal

from einops.layers.torch import Reduce
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict

Norm = Literal["group", "batch"]


class CNNConfig(Strict):
    """The defaults hold 20 thousand parameters on 8x8 grey images of ten classes."""

    width: int = Field(16, ge=1, le=4096)
    """Channels of the first stage; they double from one stage to the next."""
    depth: int = Field(2, ge=1, le=8)
    """Stages, each at half the resolution of the one before."""
    convolutions: int = Field(2, ge=1, le=64)
    """Of a stage."""
    norm: Norm = "group"
    """``batch``: BatchNorm, whose statistics of the training data the method deepinversion reads."""
    dominant: int | None = Field(None, ge=1, le=9)
    """Kernels of each input channel, of which every output is a mixture (after Wang et al., ECCV 2016); None: each
    output has kernels of its own."""


class ResNetConfig(Strict):
    """The defaults hold 175 thousand parameters on 32x32 colour images of ten classes: a ResNet-14 by its depth."""

    width: int = Field(16, ge=1, le=4096)
    """As `CNNConfig.width`."""
    depth: int = Field(3, ge=1, le=8)
    """As `CNNConfig.depth`."""
    blocks: int = Field(2, ge=1, le=64)
    """Residual blocks of a stage, of two convolutions each."""
    norm: Norm = "group"
    """As `CNNConfig.norm`."""


class Convolution(nn.Sequential):
    """A 3 x 3 convolution, a norm."""

    def __init__(self, channels: int, width: int, stride: int = 1, norm: Norm = "group") -> None:
        super().__init__(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), self.norm(width, norm))

    @staticmethod
    def norm(width: int, kind: Norm) -> nn.Module:
        return nn.BatchNorm2d(width) if kind == "batch" else nn.GroupNorm(gcd(width, 8), width)


class Dominant(nn.Sequential):
    """A 3 x 3 convolution whose kernels are mixtures of a few: ``W[o, i] = sum_r mix[o, i, r] K[i, r]``, a norm.

    Inspired by Wang, Deng, Wang, "Accelerating Convolutional Neural Networks with Dominant Convolutional Kernel and
    Knowledge Pre-regression", ECCV 2016, whose equations could not be read: `count` kernels K of each input channel,
    then a 1 x 1 convolution, nothing between them. Nine of them are any 3 x 3 convolution.
    """

    def __init__(self, channels: int, width: int, count: int, norm: Norm = "group") -> None:
        kernels = nn.Conv2d(channels, channels * count, 3, padding=1, groups=channels, bias=False)
        mix = nn.Conv2d(channels * count, width, 1, bias=False)
        super().__init__(kernels, mix, Convolution.norm(width, norm))


class Block(nn.Module):
    """``relu(x + f(x))`` (He et al., 2016, figure 5 left); a 1 x 1 convolution of x where its shape changes."""

    def __init__(self, channels: int, width: int, stride: int = 1, norm: Norm = "group") -> None:
        super().__init__()
        self.body = nn.Sequential(
            Convolution(channels, width, stride, norm), nn.ReLU(), Convolution(width, width, norm=norm)
        )
        same = stride == 1 and channels == width
        self.skip = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return F.relu(self.skip(x) + self.body(x))


class Cells(nn.Module):
    """Scores of positions one after another, laid out as a map."""

    def forward(self, scores: Float[Tensor, "b hw k"], height: int, width: int) -> Float[Tensor, "b k h w"]:
        cells: Tensor = scores.transpose(1, 2).unflatten(2, (height, width))
        return cells


class Network(nn.Module):
    """Base of all classifiers: ``(b, c, h, w)`` to scores ``(b, classes)``."""

    Config: ClassVar[type[Strict]]
    #: Its name and parameters, as a recipe and a saved folder give them; set by whoever builds it from them.
    card: dict[str, Any]


class Classifier(Network):
    """Stages of convolutions, the mean over positions, one linear layer.

    The scores of an image are the mean of those of its positions, for the head is linear: so there is a path for each.

    * ``stages.*``: maps ``(b, c, h, w)``, each at half the resolution of the one before; the output of the last is
      what all below sees
    * ``embedding``: its mean over positions ``(b, c)``, whose scores by ``head`` are the logits
    * ``cells``: the scores of each position ``(b, classes, h, w)``, whose mean are the logits
    """

    def __init__(self, stages: list[nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.embedding = Reduce("b c h w -> b c", "mean")
        self.head = nn.Linear(width, classes)
        self.cells = Cells()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        for stage in self.stages:
            x = stage(x)
        self.embedding(x)  # nothing stands on it here: it is there to be captured
        cells = self.cells(self.head(x.flatten(2).transpose(1, 2)), *x.shape[2:])
        return cells.mean(dim=(2, 3))  # type: ignore[no-any-return]


class CNN(Classifier):
    """Convolutions one after another, a max-pool between stages."""

    Config: ClassVar[type[Strict]] = CNNConfig

    def __init__(self, config: CNNConfig, *, channels: int, classes: int) -> None:
        stages: list[nn.Module] = []
        for level in range(config.depth):
            width = config.width * 2**level
            layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if level else []
            for _ in range(config.convolutions):
                layers += [self.convolution(channels, width, config), nn.ReLU()]
                channels = width
            stages.append(nn.Sequential(*layers))
        super().__init__(stages, channels, classes)

    @staticmethod
    def convolution(channels: int, width: int, config: CNNConfig) -> nn.Module:
        if config.dominant is None:
            return Convolution(channels, width, norm=config.norm)
        return Dominant(channels, width, config.dominant, config.norm)


def residual_stages(channels: int, width: int, depth: int, blocks: int, norm: Norm) -> list[nn.Module]:
    """A stem and `depth` stages of `blocks` residual blocks, the first of a stage but the first one with stride 2;
    `width` channels, which double from one stage to the next."""
    stages: list[nn.Module] = []
    for level in range(depth):
        wide = width * 2**level
        first: list[nn.Module] = [] if level else [Convolution(channels, wide, norm=norm), nn.ReLU()]
        before = wide if level == 0 else wide // 2
        layers = [
            Block(before if i == 0 else wide, wide, stride=2 if level and i == 0 else 1, norm=norm)
            for i in range(blocks)
        ]
        stages.append(nn.Sequential(*first, *layers))
    return stages


class ResNet(Classifier):
    """A stem and stages of residual blocks, the first of a stage but the first one with stride 2."""

    Config: ClassVar[type[Strict]] = ResNetConfig

    def __init__(self, config: ResNetConfig, *, channels: int, classes: int) -> None:
        stages = residual_stages(channels, config.width, config.depth, config.blocks, config.norm)
        super().__init__(stages, config.width * 2 ** (config.depth - 1), classes)


__all__ = ["CNN", "CNNConfig", "Classifier", "Network", "ResNet", "ResNetConfig", "residual_stages"]
