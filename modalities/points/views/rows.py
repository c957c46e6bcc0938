"""What a model says of its view as rows: cells, pixels or points, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout

from .views import KINDS


@dataclass(frozen=True)
class Rows:
    """What a teacher said of one frame, by signal."""

    values: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values.values())


def layout_of(side: Mapping[str, Any], also: Tensor | None = None) -> Layout:
    """Of the rows of what was seen: the valid ones, and of these only those that are in `also`."""
    valid: Tensor = side["valid"] if also is None else side["valid"] & also
    grid, items = tuple(side["inputs"].shape[2:]), len(side["lengths"])
    item = torch.repeat_interleave(side["lengths"], output_size=len(valid))
    return Layout(KINDS[len(grid)], valid, item, items, grid or None)


def as_rows(name: str, value: Tensor, grid: tuple[int, ...], rows: int) -> Tensor:
    """``(rows, c)`` of maps ``(b, c, h, w)`` of any resolution, or of points ``(total, c)``."""
    if grid and value.ndim == 4:
        if tuple(value.shape[2:]) != grid:
            value = F.interpolate(value, size=grid, mode="nearest")
        return rearrange(value, "b c h w -> (b h w) c")
    if not grid and value.ndim == 2 and len(value) == rows:
        return value
    raise UserError(
        f"module {name!r} gives {tuple(value.shape)}: a feature here is (b, c, h, w), or (points, c) of a point model"
    )


__all__ = ["Rows", "as_rows", "layout_of"]
