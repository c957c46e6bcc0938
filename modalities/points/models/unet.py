"""U-Nets (Ronneberger et al., 2015) over range images and photographs, without batch statistics.

Normalisation is by groups of channels of one image, so that an image has the same logits alone and in a batch, in
training and in evaluation, and gradient accumulation changes nothing.
"""

from __future__ import annotations

from math import gcd
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.adapter.adapter import Strict
from xmodal_kd.runtime.errors import UserError

from .scene import SceneModel, View

#: Rows that a range image keeps at its lowest resolution: with fewer, a 3 x 3 kernel sees mostly padding.
FEWEST_ROWS = 4


class RangeUNetConfig(Strict):
    """The defaults hold 0.12 million parameters."""

    width: int = Field(16, ge=1)
    """Channels at full resolution; they double from one level to the next."""
    levels: int = Field(3, ge=1)
    """Resolutions; the number of columns must divide by 2 to the power of one less."""
    around: bool = True
    """Whether the first column is the last one's neighbour, as in a full turn; the data's sensor says it."""


class ImageUNetConfig(Strict):
    """The defaults hold 0.49 million parameters."""

    width: int = Field(16, ge=1)
    """As `RangeUNetConfig.width`."""
    levels: int = Field(4, ge=1)
    """Resolutions, halved from one to the next."""


class Convolution(nn.Module):
    """A 3 x 3 convolution that keeps the size, group norm, ReLU.

    Args:
        around: whether the left neighbour of the first column is the last one, as in a scan of 360 degrees.
    """

    def __init__(self, channels: int, width: int, *, around: bool) -> None:
        super().__init__()
        self.around = around
        self.conv = nn.Conv2d(channels, width, 3, padding=(1, 0 if around else 1), bias=False)
        self.norm = nn.GroupNorm(gcd(width, 4), width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        if self.around:
            x = torch.cat([x[..., -1:], x, x[..., :1]], dim=-1)
        return F.relu(self.norm(self.conv(x)))


class Stage(nn.Sequential):
    """Two convolutions."""

    def __init__(self, channels: int, width: int, *, around: bool) -> None:
        super().__init__(Convolution(channels, width, around=around), Convolution(width, width, around=around))


class UNet(SceneModel):
    """``encoder.0`` is at full resolution, ``decoder.0`` at the second lowest, the last decoder stage at full again."""

    def __init__(self, config: Any, *, channels: int, classes: int) -> None:
        super().__init__(config, channels=channels, classes=classes)
        widths = [config.width * 2**level for level in range(config.levels)]
        around = getattr(config, "around", False)
        self.encoder = nn.ModuleList(
            Stage(c, w, around=around) for c, w in zip([channels, *widths], widths, strict=False)
        )
        self.decoder = nn.ModuleList(
            Stage(2 * w + w, w, around=around) for w in reversed(widths[:-1])
        )  # fmt: skip
        self.head = nn.Conv2d(config.width, classes, 1)

    def _rows(self, x: Tensor) -> Tensor:
        """Features ``(b, width, h, w)`` of an input that halves often enough."""
        skips: list[Tensor] = []
        pools: list[tuple[int, int]] = []
        for level, stage in enumerate(self.encoder):
            if level:
                pools.append(self._pool(x.shape[2]))
                x = F.max_pool2d(x, pools[-1])
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.decoder:
            rows, columns = pools.pop()
            x = F.interpolate(x, scale_factor=(float(rows), float(columns)), mode="nearest")
            x = stage(torch.cat([x, skips.pop()], dim=1))
        return x

    def _pool(self, rows: int) -> tuple[int, int]:
        """By how much the next level is smaller than this one of `rows` rows, in rows and columns."""
        return (2, 2)


class RangeUNet(UNet):
    """Range images, circular in azimuth unless they are of a sensor that does not turn.

    The number of columns must divide by ``2 ** (levels - 1)``; any number of rows will do. Columns are halved at every
    level, rows only where they are even and at least 4 are left, so that 8 beams go through three levels as 8, 4, 4
    rows and 64 beams as 64, 32, 16. Columns rolled by a multiple of that power roll the logits, nothing else.
    """

    Config: ClassVar[type[Strict]] = RangeUNetConfig
    view: ClassVar[View] = "range"

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(b, classes, h, w)`` of a range image ``(b, channels, h, w)``.

        Raises `UserError` for columns that do not halve often enough.
        """
        factor = 2 ** (len(self.encoder) - 1)
        if x.shape[-1] % factor:
            raise UserError(
                f"a range image of {x.shape[-1]} columns: {len(self.encoder)} levels need a number that {factor} "
                "divides: change the columns or the levels"
            )
        return self.head(self.features(self._rows(x)))  # type: ignore[no-any-return]

    def _pool(self, rows: int) -> tuple[int, int]:
        return (2 if rows % 2 == 0 and rows // 2 >= FEWEST_ROWS else 1, 2)


class ImageUNet(UNet):
    """Photographs of any size: the last row and column are repeated until the size halves often enough.

    What `decoder` and `encoder` put out has that larger size; `features` and the logits have the picture's.
    """

    Config: ClassVar[type[Strict]] = ImageUNetConfig
    view: ClassVar[View] = "image"

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(b, classes, h, w)`` of pictures ``(b, channels, h, w)``."""
        factor = 2 ** (len(self.encoder) - 1)
        down, right = ((size + factor - 1) // factor * factor - size for size in x.shape[2:])
        y = self._rows(F.pad(x, (0, right, 0, down), mode="replicate"))
        # cut off by negative padding, whose size torch.export can follow
        return self.head(self.features(F.pad(y, (0, -right, 0, -down))))  # type: ignore[no-any-return]


__all__ = ["ImageUNet", "ImageUNetConfig", "RangeUNet", "RangeUNetConfig"]
