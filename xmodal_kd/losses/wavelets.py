"""What a discrete wavelet transform sees of two grids: their edges and textures, coarse to fine."""

from __future__ import annotations

from itertools import product
from math import prod, sqrt
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .base import loss, same_shape, to_maps

Wave = Literal["haar", "db3"]
_A, _B = sqrt(10), sqrt(5 + 2 * sqrt(10))
#: Low-pass filters of Daubechies (1988), of length 2 and 6, the first value that of the latest sample.
LOW: dict[Wave, tuple[float, ...]] = {
    "haar": (1 / sqrt(2), 1 / sqrt(2)),
    "db3": tuple(
        value / (16 * sqrt(2))
        for value in (
            1 + _A - _B, 5 + _A - 3 * _B, 10 - 2 * _A - 2 * _B, 10 - 2 * _A + 2 * _B, 5 + _A + 3 * _B, 1 + _A + _B,
        )
    ),
}  # fmt: skip


@loss(
    "wavelet_kd", reduction="items", family="features", year=2022, needs="features maps",
    paper="Zhang et al.: Wavelet Knowledge Distillation: Towards Efficient Image-to-Image Translation",
    properties="zero_at_teacher",
)  # fmt: skip
def wavelet_kd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], cell: Int[Tensor, " n"], items: int,
    grid: tuple[int, ...], *, levels: Annotated[int, Field(ge=1, le=16)] = 4, wave: Wave = "haar",
) -> tuple[Float[Tensor, " b"], Tensor]:  # fmt: skip
    """``sum_j mean |H_j(s) - H_j(t)|`` over levels j: H_j are the high bands of a level, its low band the next level.

    Of an item, over what is there of it. An image has three high bands a level, a sequence one, a volume seven. The
    mean of every level counts alike though a coarse one has fewer coefficients. Beyond its edges a grid is 0, as in the
    release: a coefficient across an odd edge is most of the pixel itself. Published on the images that generators make,
    with a weight of 0.1 to 0.4 in [-1, 1], ``haar`` of four levels or ``db3`` of three. The paper's L1; its release
    trains with squares.
    """
    same_shape(student, teacher)
    there = torch.bincount(cell // prod(grid), minlength=items)
    values = student.new_zeros(items)
    low = to_maps(student - teacher, cell, items, grid)  # the transform is linear
    for _ in range(levels):
        low, high = transformed(low, wave)
        values = values + torch.stack([band.abs().flatten(1).mean(dim=1) for band in high]).mean(dim=0)
    return values * prod(grid) / there.clamp(min=1), there > 0


def transformed(maps: Float[Tensor, "b c *grid"], wave: Wave) -> tuple[Tensor, list[Tensor]]:
    """One level of the transform: the low band, and the others, of half the grid each."""
    axes = range(2, maps.ndim)
    low, *high = product((False, True), repeat=len(axes))
    bands: dict[tuple[bool, ...], Tensor] = {(): maps}
    for axis in axes:
        bands = {(*key, up): _filtered(band, axis, wave, up) for key, band in bands.items() for up in (False, True)}
    return bands[low], [bands[key] for key in high]


def _filtered(maps: Tensor, axis: int, wave: Wave, high: bool) -> Tensor:
    """``out[n] = sum_k h[k] x[2n + 1 - k]`` along one axis, x being 0 outside: ``(N + len(h) - 1) // 2`` values."""
    taps = LOW[wave]
    if high:  # the quadrature mirror of the low-pass filter
        taps = tuple((-1) ** (k + 1) * tap for k, tap in enumerate(reversed(taps)))
    lines = maps.movedim(axis, -1)
    count = (lines.shape[-1] + len(taps) - 1) // 2
    padded = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (len(taps) - 2, 2 * count - lines.shape[-1]))
    out = F.conv1d(padded, maps.new_tensor(taps[::-1]).reshape(1, 1, -1), stride=2)
    return out.reshape(*lines.shape[:-1], count).movedim(-1, axis)


__all__ = ["transformed", "wavelet_kd"]
