"""Segmenters of photographs on an encoder of torchvision or timm, whose weights may be a file's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict

from .scene import SceneModel, View
from .trunks import Library, Trunk, load_trunk
from .unet import Convolution

Colour = Annotated[float, Field(ge=-10, le=10)]
Spread = Annotated[float, Field(gt=0, le=10)]


class PretrainedConfig(Strict):
    """Parameters of `TorchvisionSegmenter` and `TimmSegmenter`."""

    name: str
    """Of the network in its library, as ``resnet18``."""
    weights: Path | None = None
    """A file of its weights, or the folder of one: safetensors, or a checkpoint of torch. None: it starts at random."""
    layers: tuple[str, ...] | None = None
    """Modules whose maps the decoder sees, the finest first, as ``[layer1, layer2]``; None: of each resolution the
    last."""
    width: int = Field(32, ge=1, le=4096)
    """Channels of the decoder."""
    mean: tuple[Colour, Colour, Colour] | None = None
    """Of the colours that the weights were trained with, as `std`; None: what the library says of its own."""
    std: tuple[Spread, Spread, Spread] | None = None
    groups: bool | None = None
    """Whether norms by groups of channels stand in the place of batch norms, whose statistics are else those of the
    weights; None: where there are no weights."""

    @model_validator(mode="after")
    def _both_or_none(self) -> PretrainedConfig:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are of the same colours: give both")
        return self


P = TypeVar("P", bound=PretrainedConfig)


class PretrainedSegmenter(SceneModel):
    """A feature pyramid (Lin et al., 2017) over an encoder: each map by a 1 x 1 convolution to `width` channels, from
    the coarsest to the finest added and convolved, and the last brought to the picture's size.

    Modules to capture: ``trunk.encoder.*``, whose tokens and maps with channels last are turned to maps, ``decoder.*``,
    the coarsest first, and ``features``.
    """

    Config: ClassVar[type[Strict]] = PretrainedConfig
    view: ClassVar[View] = "image"
    free_size: ClassVar[bool] = False
    library: ClassVar[Library]

    def __init__(self, config: Any, *, channels: int, classes: int) -> None:
        super().__init__(config, channels=channels, classes=classes)
        self.trunk, self.again = trunk_of(self.library, config)
        self.patch = self.trunk.patch
        self.lateral = nn.ModuleList(nn.Conv2d(width, config.width, 1) for width in reversed(self.trunk.widths))
        self.decoder = nn.ModuleList(Convolution(config.width, config.width, around=False) for _ in self.lateral)
        self.head = nn.Conv2d(config.width, classes, 1)

    def fits(self, size: tuple[int, int]) -> None:
        self.trunk.fits(size)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes h w"]:
        """Logits of pictures whose colours are 0 to 1."""
        y = pyramid(self.decoder, self.lateral, self.trunk(x))
        y = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.head(self.features(y))  # type: ignore[no-any-return]


def trunk_of(library: Library, config: P) -> tuple[Trunk, P]:
    """A network with its weights, and the parameters that build it again where its weights are known."""
    groups = config.weights is None if config.groups is None else config.groups
    given = None if config.mean is None or config.std is None else (config.mean, config.std)
    trunk = Trunk(library, config.name, config.layers, groups=groups, colours=given)
    if config.weights is not None:
        load_trunk(trunk, config.weights)
    again = config.model_copy(
        update={
            "weights": None, "groups": groups, "layers": trunk.layers,
            "mean": tuple(trunk.mean.flatten().tolist()), "std": tuple(trunk.std.flatten().tolist()),
        }
    )  # fmt: skip
    return trunk, again


def pyramid(decoder: nn.ModuleList, lateral: nn.ModuleList, maps: Sequence[Tensor]) -> Float[Tensor, "b c i j"]:
    """Maps, the finest first, joined from the coarsest to the finest; modules stand the other way round."""
    y: Tensor | None = None
    for stage, way, given in zip(decoder, lateral, reversed(maps), strict=True):
        mine = way(given)
        y = stage(mine if y is None else mine + F.interpolate(y, size=mine.shape[2:], mode="nearest"))
    assert y is not None
    return y


class TorchvisionSegmenter(PretrainedSegmenter):
    """On a network of torchvision that classifies."""

    library: ClassVar[Library] = "torchvision"


class TimmSegmenter(PretrainedSegmenter):
    """On a network of timm (extra ``timm``)."""

    library: ClassVar[Library] = "timm"


__all__ = [
    "PretrainedConfig", "PretrainedSegmenter", "TimmSegmenter", "TorchvisionSegmenter", "pyramid", "trunk_of",
]  # fmt: skip
