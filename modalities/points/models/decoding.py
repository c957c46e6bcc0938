"""From what a detector says of cells to boxes: peaks of the heat, of overlapping ones the surest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn import functional as F

from ..views.ground import Ground, decoded
from ..views.overlap import iou
from .centre import Answer

#: Peaks of a frame that are looked at, at most, and the least score of one.
MOST, LEAST = 100, 0.02
#: Overlap from above with a surer box of the class, above which a box is the same thing's.
SAME = 0.2


@dataclass(frozen=True)
class Found:
    """What a detector finds in a frame, the surest first.

    Attributes:
        boxes: ``(n, 7)`` x, y, z, length, width, height in metres, yaw in radians, LiDAR frame.
        numbers: ``(n,)`` classes.
        scores: ``(n,)`` 0 to 1.
    """

    boxes: Float[np.ndarray, "n 7"]
    numbers: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: np.ndarray) -> Found:
        """Those of a bool mask or of indexes."""
        return Found(self.boxes[chosen], self.numbers[chosen], self.scores[chosen])


@torch.no_grad()
def found(answer: Answer, ground: Ground, *, most: int = MOST, least: float = LEAST, same: float = SAME) -> list[Found]:
    """The boxes of each item of a batch.

    A peak is a cell whose heat of a class none of its eight neighbours exceeds (Zhou et al., 2019, 4.1); of the boxes
    of a class that overlap by more than `same` from above, the surest stays.
    """
    heat = torch.sigmoid(answer.heat.float())
    peaks = torch.where(F.max_pool2d(heat, 3, stride=1, padding=1) == heat, heat, 0.0).flatten(1)
    scores, where = (x.cpu().numpy() for x in peaks.topk(min(most, peaks.shape[1]), dim=1))
    codes, centres = answer.boxes.float().flatten(2).transpose(1, 2).cpu().numpy(), ground.centres()
    out = []
    for item, (score, place) in enumerate(zip(scores, where, strict=True)):
        number, row = np.divmod(place[score >= least], ground.cells)
        boxes = decoded(codes[item, row].astype(np.float64), centres[row])
        one = Found(boxes, number, score[score >= least].astype(np.float64))
        out.append(one[kept(one, same)])
    return out


def kept(some: Found, same: float) -> Int[np.ndarray, " k"]:
    """Indexes of those that no surer one of their class overlaps by more than `same`."""
    close = (iou(some.boxes, some.boxes, above=True) > same) & (some.numbers[:, None] == some.numbers)
    left = np.ones(len(some), bool)
    for i in range(len(some)):
        if left[i]:
            left[i + 1 :] &= ~close[i, i + 1 :]
    return np.flatnonzero(left)


__all__ = ["LEAST", "MOST", "Found", "found", "kept"]
