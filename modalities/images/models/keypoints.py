"""Heat maps of joints: stacked hourglasses, and a residual network with transposed convolutions behind it."""

from __future__ import annotations

from math import log2
from typing import Any, ClassVar

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.runtime.errors import UserError

from .classifier import Block, Convolution, Norm, residual_stages


class HourglassConfig(Strict):
    """The defaults hold 79 thousand parameters for the fourteen joints of drawn skeletons at a stride of 4."""

    width: int = Field(16, ge=1, le=4096)
    """Channels throughout."""
    depth: int = Field(2, ge=1, le=8)
    """Halvings of the resolution within an hourglass."""
    stacks: int = Field(1, ge=1, le=16)
    """Hourglasses behind one another, each with a head; the last head's maps are the answer."""
    blocks: int = Field(1, ge=1, le=16)
    """Residual blocks at each place of an hourglass."""
    norm: Norm = "group"
    """``batch``: BatchNorm."""


class PoseResNetConfig(Strict):
    """The defaults hold 248 thousand parameters for the fourteen joints of drawn skeletons at a stride of 4."""

    width: int = Field(16, ge=1, le=4096)
    """Channels of the first stage; they double from one stage to the next."""
    depth: int = Field(4, ge=1, le=8)
    """Stages, each at half the resolution of the one before."""
    blocks: int = Field(1, ge=1, le=64)
    """Residual blocks of a stage."""
    up: int = Field(32, ge=1, le=4096)
    """Channels of each transposed convolution."""
    norm: Norm = "group"
    """``batch``: BatchNorm."""


class HeatMaps(nn.Module):
    """Base of what looks for joints: ``(b, c, h, w)`` to heat maps ``(b, joints, h / stride, w / stride)``.

    ``heads.*`` give heat maps too, one for each stack: intermediate supervision is a term on each of them.
    """

    Config: ClassVar[type[Strict]]
    task: ClassVar[str] = "keypoints"
    #: As `Network.card`.
    card: dict[str, Any]
    #: Pixels that the sides of an image are a multiple of.
    whole: int
    #: Whether it is also told where the frame before each image stands, or -1: ``model(x, before)``.
    video: ClassVar[bool] = False


def heat_maps(model: nn.Module, x: Float[Tensor, "b c h w"], before: Int[Tensor, " b"]) -> Float[Tensor, "b j i k"]:
    """Of images that may be frames of clips; a model of single images looks at each alone."""
    maps: Tensor = model(x, before) if getattr(model, "video", False) else model(x)
    return maps


class Hourglass(nn.Module):
    """Down to half the resolution, through a smaller hourglass, and up again beside a path that stays."""

    def __init__(self, width: int, depth: int, blocks: int, norm: Norm) -> None:
        super().__init__()

        def residual() -> nn.Module:
            return nn.Sequential(*(Block(width, width, norm=norm) for _ in range(blocks)))

        self.beside, self.down, self.up = residual(), residual(), residual()
        self.inner = Hourglass(width, depth - 1, blocks, norm) if depth > 1 else residual()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        low = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        return self.beside(x) + F.interpolate(low, scale_factor=2.0, mode="nearest")  # type: ignore[no-any-return]


class StackedHourglass(HeatMaps):
    """Hourglasses behind one another, each with heat maps that the next one starts from.

    Newell et al., "Stacked Hourglass Networks for Human Pose Estimation", ECCV 2016, with the residual blocks of our
    `ResNet`. To capture: ``stem``, ``stacks.*`` (maps that heads read), ``heads.*``.
    """

    Config: ClassVar[type[Strict]] = HourglassConfig

    def __init__(self, config: HourglassConfig, *, channels: int, joints: int, stride: int) -> None:
        super().__init__()
        width, norm = config.width, config.norm
        halvings = int(log2(stride))
        stem: list[nn.Module] = []
        for i in range(max(1, halvings)):
            stem += [Convolution(channels if i == 0 else width, width, 2 if i < halvings else 1, norm), nn.ReLU()]
        self.stem = nn.Sequential(*stem, Block(width, width, norm=norm))
        self.stacks = nn.ModuleList(
            nn.Sequential(
                Hourglass(width, config.depth, config.blocks, norm), Convolution(width, width, norm=norm), nn.ReLU()
            )
            for _ in range(config.stacks)
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, joints, 1) for _ in range(config.stacks))
        self.features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(config.stacks - 1))
        self.answers = nn.ModuleList(nn.Conv2d(joints, width, 1) for _ in range(config.stacks - 1))
        self.whole = stride * 2**config.depth

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b j i k"]:
        x = self.stem(x)
        for i, (stack, head) in enumerate(zip(self.stacks, self.heads, strict=True)):
            seen = stack(x)
            maps: Tensor = head(seen)
            if i < len(self.features):
                x = x + self.features[i](seen) + self.answers[i](maps)
        return maps


class PoseResNet(HeatMaps):
    """A residual network, and transposed convolutions from its last maps up to the stride.

    Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018, on the stages of our `ResNet`.
    To capture: ``stages.*``, ``deconvolutions.*`` (maps), ``heads.0``.
    """

    Config: ClassVar[type[Strict]] = PoseResNetConfig

    def __init__(self, config: PoseResNetConfig, *, channels: int, joints: int, stride: int) -> None:
        super().__init__()
        self.whole = 2 ** (config.depth - 1)
        if self.whole < stride:
            raise UserError(
                f"pose_resnet of depth {config.depth} sees in steps of {self.whole} pixels, and data.keypoints.stride "
                f"is {stride}: give a depth of at least {int(log2(stride)) + 1}"
            )
        self.stages = nn.ModuleList(residual_stages(channels, config.width, config.depth, config.blocks, config.norm))
        width, up = config.width * 2 ** (config.depth - 1), list[nn.Module]()
        for _ in range(int(log2(self.whole // stride))):
            up.append(_Deconvolution(width, config.up, config.norm))
            width = config.up
        self.deconvolutions = nn.ModuleList(up)
        self.heads = nn.ModuleList([nn.Conv2d(width, joints, 1)])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b j i k"]:
        for layer in (*self.stages, *self.deconvolutions, *self.heads):
            x = layer(x)
        return x


class _Deconvolution(nn.Sequential):
    """To twice the resolution, a norm, ReLU."""

    def __init__(self, channels: int, width: int, norm: Norm) -> None:
        up = nn.ConvTranspose2d(channels, width, 4, 2, padding=1, bias=False)
        super().__init__(up, Convolution.norm(width, norm), nn.ReLU())


__all__ = [
    "HeatMaps",
    "Hourglass",
    "HourglassConfig",
    "PoseResNet",
    "PoseResNetConfig",
    "StackedHourglass",
    "heat_maps",
]
