"""Labels as a detector's features: what a teacher's heads would have to see to answer the boxes that are right."""

from __future__ import annotations

from math import gcd

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float32
from torch import Tensor, nn

from ..views.ground import CODE, Ground, encoded, objects


def drawn(boxes: list[Tensor], numbers: list[Tensor], ground: Ground, classes: int) -> Float32[Tensor, "rows inputs"]:
    """The things of each item on the cells that their boxes cover: ``(rows, 8 + classes)``, 0 elsewhere.

    A cell says the box of its thing as a head would (`views.ground.encoded`), and its class as ones and zeros.
    """
    on = objects(boxes, ground).numpy().reshape(len(boxes), ground.cells)
    out = np.zeros((len(boxes), ground.cells, CODE + classes), np.float32)
    centres = ground.centres()
    for item, (some, kinds) in enumerate(zip(boxes, numbers, strict=True)):
        cells = np.flatnonzero(on[item])
        thing = on[item, cells] - 1
        out[item, cells, :CODE] = encoded(some.cpu().numpy().astype(np.float64)[thing], centres[cells])
        out[item, cells, CODE + kinds.cpu().numpy()[thing]] = 1
    return torch.from_numpy(out).reshape(-1, CODE + classes)


def block(before: int, after: int) -> nn.Sequential:
    norm = nn.GroupNorm(gcd(after, max(1, after // 8)), after)
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), norm, nn.ReLU())


class LabelEncoder(nn.Module):
    """Boxes and classes of cells, each through two layers, their sum through two more, and convolutions.

    Kim et al. (2024): LabelDistill.

    In the place of the release's residual block and layer norms of whole maps there are two convolutions with group
    norms, so that maps of any size are taken.
    """

    def __init__(self, classes: int, hidden: int, width: int) -> None:
        super().__init__()
        self.box, self.kind = _two(CODE, hidden), _two(classes, hidden)
        self.both = nn.Sequential(_two(hidden, hidden), nn.LayerNorm(hidden))
        self.maps = nn.Sequential(block(hidden, hidden), block(hidden, width))

    def forward(self, rows: Float[Tensor, "rows inputs"], items: int, shape: tuple[int, int]) -> Tensor:
        """``(b, width, h, w)`` features of what `drawn` made."""
        both = self.both(self.box(rows[:, :CODE]) + self.kind(rows[:, CODE:]))
        h, w = shape
        out: Tensor = self.maps(rearrange(both, "(b h w) c -> b c h w", b=items, h=h, w=w))
        return out


def _two(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after))


__all__ = ["LabelEncoder", "block", "drawn"]
