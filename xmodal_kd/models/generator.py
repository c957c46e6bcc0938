"""A small generator of inputs: noise to maps of any shape, within a range of values."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, gcd

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Generator(nn.Module):
    """A linear layer onto a small grid, convolutions on grids twice as fine each, tanh.

    The shape of Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, whose grid doubles twice: here as
    often as it takes to come from two to three rows (or columns) to the shorter side. Group norm in the place of batch
    norm, so that an input does not depend on those that are made beside it; none after the last convolution.

    Args:
        noise: numbers that an input is made of.
        shape: ``(channels, height, width)`` of what is made, whose values lie in [`low`, `high`].
        width: channels; half of them before the last convolution.
    """

    def __init__(self, noise: int, shape: tuple[int, int, int], low: float, high: float, width: int = 32) -> None:
        super().__init__()
        channels, height, across = shape
        self.low, self.high, self.width = low, high, width
        self.grids = grids(height, across)
        first = self.grids[0]
        self.start = nn.Linear(noise, width * first[0] * first[1])
        self.norm = nn.GroupNorm(gcd(width, 8), width)
        widths = [width] * (len(self.grids) - 1) + [max(1, width // 2)]
        self.stages = nn.ModuleList(_stage(before, after) for before, after in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "b noise"]) -> Float[Tensor, "b c h w"]:
        x = self.norm(self.start(z).unflatten(1, (self.width, *self.grids[0])))
        for grid, stage in zip(self.grids[1:], self.stages, strict=True):
            x = stage(F.interpolate(x, size=grid))
        made: Tensor = self.last(x).tanh()
        return self.low + (self.high - self.low) * (made + 1) / 2


def _stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(gcd(after, 8), after), nn.LeakyReLU(0.2))


def grids(height: int, width: int) -> list[tuple[int, int]]:
    """The grids from the first to ``(height, width)``, each half of the one after it.

    >>> grids(8, 8), grids(80, 30)
    ([(2, 2), (4, 4), (8, 8)], [(10, 4), (20, 8), (40, 15), (80, 30)])
    """
    halvings = max(1, min(height, width).bit_length() - 2)
    return [(ceil(height / 2**i), ceil(width / 2**i)) for i in range(halvings, -1, -1)]


__all__ = ["Generator", "grids"]
