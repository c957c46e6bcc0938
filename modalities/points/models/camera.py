"""A detector of photographs: each pixel's features at the depths that it may have, summed over squares of ground."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal_kd.runtime.errors import UserError

from ..views.frustum import frustum_cells
from ..views.ground import Ground
from .centre import Answer, CenterPoint, CenterPointConfig, block
from .pretrained import PretrainedConfig, pyramid, trunk_of
from .scene import View
from .trunks import Library

#: Pixels along the side of a cell of the coarsest of a photograph's own maps.
COARSEST = 16
Metres = Annotated[float, Field(ge=-1000, le=1000)]


class CameraTrunk(PretrainedConfig):
    """A network of torchvision or timm that sees the photograph."""

    library: Library = "torchvision"


class CenterPointCameraConfig(CenterPointConfig):
    """Parameters of `CenterPointCamera`."""

    picture: Annotated[int, Field(gt=0, le=1024)] = 16
    """Channels of a photograph's finest map, which double from one to the next; the lifted one has twice as many."""
    stride: Literal[4, 8, 16] = 4
    """Pixels along the side of a cell of the map that is lifted."""
    trunk: CameraTrunk | None = None
    """A network by its name, which may have weights of a file, in the place of one that begins anew; `picture` is then
    not read: its `width` is the lifted map's."""
    depths: tuple[Metres, Metres, Metres] = (1.0, 41.0, 1.0)
    """Least and largest depth along the camera's axis, and the step between, metres."""
    heights: tuple[Metres, Metres] = (-5.0, 3.0)
    """Least and largest height over the sensor of what is summed, metres."""

    @model_validator(mode="after")
    def _holds_something(self) -> CenterPointCameraConfig:
        least, largest, step = self.depths
        if not (0 < least < largest and step > 0) or self.bins > 1000:
            raise ValueError(f"depths: {list(self.depths)}: give least, largest, step, of at most 1000 steps")
        if self.heights[0] >= self.heights[1]:
            raise ValueError(f"heights: {list(self.heights)} hold nothing: give the least, then the largest")
        return self

    @property
    def bins(self) -> int:
        return max(1, round((self.depths[1] - self.depths[0]) / self.depths[2]))


class Picture(nn.Module):
    """A photograph to a map whose cells have `stride` pixels: maps of a half, a quarter, an eighth and a sixteenth of
    its size, of which those that are no finer are brought to the finest of them and joined.

    Beside its colours it is told where in the photograph each pixel lies (Liu et al., 2018), for the ground's depth
    hangs on it and a small network does not see the edges from everywhere.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, widths = stride, [width, 2 * width, 4 * width, 8 * width]
        #: The first that is joined.
        self.first = stride.bit_length() - 2
        self.stages = nn.ModuleList(
            nn.Sequential(block(before, after, 2), block(after, after))
            for before, after in zip([channels + 2, *widths], widths, strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(each, 2 * width, 1) for each in widths[self.first :])
        self.joined = block(2 * width * len(self.lateral), 2 * width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Of colours from 0 to 1."""
        h, w = x.shape[2:]
        down, right = (torch.linspace(-1, 1, side, dtype=x.dtype, device=x.device) for side in (h, w))
        where = torch.stack([down[:, None].expand(h, w), right.expand(h, w)]).expand(len(x), 2, h, w)
        maps, size = torch.cat([x, where], dim=1), (h // self.stride, w // self.stride)
        found = []
        for at, stage in enumerate(self.stages):
            maps = stage(maps)
            if at >= self.first:
                found.append(F.interpolate(self.lateral[at - self.first](maps), size=size, mode="nearest"))
        return self.joined(torch.cat(found, dim=1))  # type: ignore[no-any-return]


class TrunkPicture(nn.Module):
    """The same through a network of torchvision or timm under a feature pyramid (Lin et al., 2017)."""

    def __init__(self, config: CameraTrunk, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.trunk, self.again = trunk_of(config.library, config)
        #: Of the maps those that are no finer than what is lifted, or else the coarsest.
        self.used = [at for at, side in enumerate(self.trunk.strides) if side >= stride] or [-1]
        widths = [self.trunk.widths[at] for at in reversed(self.used)]
        self.lateral = nn.ModuleList(nn.Conv2d(width, config.width, 1) for width in widths)
        self.decoder = nn.ModuleList(block(config.width, config.width) for _ in widths)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Of colours from 0 to 1."""
        maps = self.trunk(x)
        joined = pyramid(self.decoder, self.lateral, [maps[at] for at in self.used])
        return F.interpolate(joined, size=(x.shape[2] // self.stride, x.shape[3] // self.stride), mode="nearest")


class CenterPointCamera(CenterPoint):
    """Lift-Splat (Philion and Fidler, 2020), as BEVDet (Huang et al., 2021) has it, under `CenterPoint`.

    Each cell of a photograph's map says how probable it is to be in each of the steps of depth, and what it shows; the
    product stands at the place that the camera's calibration gives, and is summed over pillars (``splat``). Further
    modules to capture: ``picture`` (the map), ``depth`` (logits of the steps, on the map's cells), ``context``.
    """

    Config = CenterPointCameraConfig
    view: ClassVar[View] = "image"

    def __init__(self, config: CenterPointCameraConfig, *, channels: int, classes: int) -> None:
        super().__init__(config, channels=channels, classes=classes)
        self.config, trunk = config, config.trunk
        wide = 2 * config.picture if trunk is None else trunk.width
        self.picture: Picture | TrunkPicture
        if trunk is None:
            self.picture = Picture(channels, config.picture, config.stride)
        else:
            self.picture = TrunkPicture(trunk, config.stride)
            self.again = config.model_copy(update={"trunk": self.picture.again})
        self.depth = nn.Sequential(block(wide, wide), nn.Conv2d(wide, config.bins, 1))
        self.context = nn.Conv2d(wide, self.width, 1)
        self.stand(config)

    def fits(self, size: tuple[int, int]) -> None:
        if isinstance(self.picture, TrunkPicture):
            self.picture.trunk.fits(size)
        if any(side % COARSEST for side in size):
            raise UserError(
                f"data.image: {list(size)}: a detector of photographs halves them four times: set it to multiples of "
                f"{COARSEST}"
            )

    def cells(self, lift: Float[Tensor, "b n 3 4"], size: tuple[int, int], ground: Ground) -> Int64[Tensor, " all"]:
        """Where on the ground of pillars all that photographs of height and width `size` may show stands: what
        `forward` takes; it hangs on the calibration alone."""
        least, _, step = self.config.depths
        middles = least + step * (torch.arange(self.config.bins, dtype=torch.float64) + 0.5)
        stride = self.config.stride
        grid = size[0] // stride, size[1] // stride
        return frustum_cells(lift, grid, stride, middles, self.config.heights, ground)

    def steps(self, depth: Float[Tensor, "b n h w"]) -> Int64[Tensor, " cells"]:
        """The step of depth of each cell of the maps, by the nearest of its pixels; -1 where none is known, or none of
        the steps'.

        Args:
            depth: metres along the camera's axis, inf where nobody knows.
        """
        least, largest, step = self.config.depths
        nearest = -F.max_pool2d(-depth, self.config.stride)
        number = torch.floor((nearest - least) / step)
        there = (nearest >= least) & (nearest < largest)
        return torch.where(there, number, -1.0).clamp(max=self.config.bins - 1).long().flatten()

    def forward(
        self, pictures: Float[Tensor, "b n c h w"], cell: Int64[Tensor, " all"], shape: tuple[int, int, int]
    ) -> Answer:
        """What is there.

        Args:
            pictures: n photographs of each item, colours from 0 to 1.
            cell: see `cells`.
            shape: items, pillars along x and y: both multiples of 8.
        """
        items, h, w = shape
        maps = self.picture(rearrange(pictures, "b n c h w -> (b n) c h w"))
        depth, context = self.depth(maps).softmax(dim=1), self.context(maps)
        lifted = rearrange(depth, "b d i j -> b d i j 1") * rearrange(context, "b c i j -> b 1 i j c")
        rows = rearrange(lifted, "b d i j c -> (b d i j) c")
        # the last row takes what stands outside
        ground = rows.new_zeros(items * h * w + 1, self.width).index_add(0, cell, rows)[:-1]
        return self.answer(rearrange(ground, "(b h w) c -> b c h w", b=items, h=h, w=w))


__all__ = ["CenterPointCamera", "CenterPointCameraConfig"]
