"""The ground in cells: which holds a point, which of another division lies in it, what a detector is to say there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from ..data.detection_config import Detection
from .correspondence import Correspondence, collate, from_elements

#: Numbers that a box is at a cell: x and y from its centre, z (metres), logs of the three sides, sine and cosine.
CODE = 8
#: Cells round a centre's own in which the heat falls: CenterPoint's least radius; the Gaussian ends there.
RADIUS = 2


@dataclass(frozen=True)
class Ground:
    """A rectangle of ground in square cells. Cell (i, j) is row i w + j of a map; i counts along x, j along y.

    Attributes:
        corner: least x and y, metres.
        cell: side of a cell, metres.
        shape: cells along x and y, (h, w).
    """

    corner: tuple[float, float]
    cell: float
    shape: tuple[int, int]

    @classmethod
    def of(cls, detection: Detection, cell: float, merged: int = 1) -> Ground:
        """Of pillars of `cell` metres, or of squares of `merged` by `merged` of them."""
        h, w = detection.steps(cell)
        return cls(detection.range[:2], cell * merged, (h // merged, w // merged))

    @property
    def cells(self) -> int:
        return self.shape[0] * self.shape[1]

    def rows(self, xy: Float[np.ndarray, "n _"]) -> Int64[np.ndarray, " n"]:
        """The cell of each place, -1 outside (NaN included)."""
        with np.errstate(invalid="ignore"):
            steps = np.floor((xy[:, :2].astype(np.float64) - self.corner) / self.cell)
            inside: np.ndarray = np.all((steps >= 0) & (steps < self.shape), axis=1)
        i, j = np.where(inside[:, None], steps, 0).astype(np.int64).T
        found: np.ndarray = np.where(inside, i * self.shape[1] + j, -1)
        return found

    def centres(self) -> Float[np.ndarray, "cells 2"]:
        """Metres, by row."""
        i, j = np.divmod(np.arange(self.cells), self.shape[1])
        found: np.ndarray = np.stack([i + 0.5, j + 0.5], axis=1) * self.cell + self.corner
        return found


@lru_cache(maxsize=8)
def matched(theirs: Ground, ours: Ground, items: int) -> Correspondence:
    """From the cells of one division of the ground to those of another: by the coarser cell that holds a finer one."""
    if theirs.cell <= ours.cell:
        one = from_elements(np.arange(theirs.cells), ours.rows(theirs.centres()), theirs.cells, ours.cells)
    else:
        one = from_elements(theirs.rows(ours.centres()), np.arange(ours.cells), theirs.cells, ours.cells)
    return collate([one] * items)


def shifts(theirs: Ground, ours: Ground, match: Correspondence) -> Float[Tensor, "pairs 2"]:
    """What is added to a box's x and y at a cell of theirs to say them at the matching cell of ours, metres."""
    source, target = (side.cpu().numpy() for side in (match.source, match.target))
    away = theirs.centres()[source % theirs.cells] - ours.centres()[target % ours.cells]
    return torch.from_numpy(away).float()


@dataclass(frozen=True)
class Targets:
    """What a detector is to say of the cells of a batch.

    Attributes:
        heat: ``(rows, classes)`` 1 where a thing's centre is, less round it, 0 elsewhere.
        code: ``(rows, 8)`` the box of the thing whose centre is in a cell; 0 elsewhere.
        centre: ``(rows,)`` which cells these are.
    """

    heat: Float32[Tensor, "rows classes"]
    code: Float32[Tensor, "rows 8"]
    centre: Bool[Tensor, " rows"]


def targets(boxes: list[Tensor], numbers: list[Tensor], ground: Ground, classes: int) -> Targets:
    """Of the things of each item: ``(m, 7)`` boxes, ``(m,)`` classes. Of two centres in a cell the later one stays.

    The heat is CenterNet's (Zhou et al., 2019, 3): a Gaussian round each centre, and of several the largest.
    """
    h, w = ground.shape
    heat = np.zeros((len(boxes), classes, h, w), np.float32)
    code, centre = np.zeros((len(boxes), h * w, CODE), np.float32), np.zeros((len(boxes), h * w), bool)
    bump = _bump()
    for item, (some, kinds) in enumerate(zip(boxes, numbers, strict=True)):
        things = some.cpu().numpy().astype(np.float64)
        rows = ground.rows(things)
        there = rows >= 0
        things, rows, kind = things[there], rows[there], kinds.cpu().numpy()[there]
        for row, number in zip(rows.tolist(), kind.tolist(), strict=True):
            i, j = divmod(row, w)
            top, left = max(i - RADIUS, 0), max(j - RADIUS, 0)
            part = heat[item, number, top : i + RADIUS + 1, left : j + RADIUS + 1]
            cut = bump[top - i + RADIUS :, left - j + RADIUS :][: part.shape[0], : part.shape[1]]
            np.maximum(part, cut, out=part)
        code[item, rows] = encoded(things, ground.centres()[rows])
        centre[item, rows] = True
    flat = torch.from_numpy(heat).flatten(2).transpose(1, 2).reshape(-1, classes)
    return Targets(flat, torch.from_numpy(code).reshape(-1, CODE), torch.from_numpy(centre).reshape(-1))


def objects(boxes: list[Tensor], ground: Ground) -> Int64[Tensor, " rows"]:
    """``(rows,)``: which of its item's things stands on a cell, counted from 1, 0 where there is none.

    A thing stands on the cells whose centres its box covers from above and on the one of its own centre; where boxes
    overlap, the smallest one's.
    """
    found = np.zeros((len(boxes), ground.cells), np.int64)
    centres = ground.centres()
    for item, some in enumerate(boxes):
        things = some.cpu().numpy().astype(np.float64)
        rows = ground.rows(things)
        for number in np.argsort(-things[:, 3] * things[:, 4], kind="stable"):
            x, y, _, length, width, _, yaw = things[number]
            east, north = centres[:, 0] - x, centres[:, 1] - y
            near = np.flatnonzero(east**2 + north**2 <= (length**2 + width**2) / 4)
            along = east[near] * np.cos(yaw) + north[near] * np.sin(yaw)
            across = north[near] * np.cos(yaw) - east[near] * np.sin(yaw)
            found[item, near[(abs(along) <= length / 2) & (abs(across) <= width / 2)]] = number + 1
            if rows[number] >= 0:
                found[item, rows[number]] = number + 1
    return torch.from_numpy(found).reshape(-1)


def _bump() -> Float[np.ndarray, "d d"]:
    steps = np.arange(-RADIUS, RADIUS + 1)
    sigma = (2 * RADIUS + 1) / 6
    found: np.ndarray = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * sigma**2)).astype(np.float32)
    return found


def encoded(boxes: Float[np.ndarray, "m 7"], centres: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m 8"]:
    """Boxes (x, y, z, length, width, height, yaw) as the cells at these centres say them."""
    yaw = boxes[:, 6]
    parts = [boxes[:, :2] - centres, boxes[:, 2:3], np.log(boxes[:, 3:6]), np.stack([np.sin(yaw), np.cos(yaw)], 1)]
    found: np.ndarray = np.concatenate(parts, axis=1)
    return found


def decoded(code: Float[np.ndarray, "m 8"], centres: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m 7"]:
    """The boxes that cells at these centres say."""
    yaw = np.arctan2(code[:, 6], code[:, 7])
    sides = np.exp(np.clip(code[:, 3:6], -5, 5))
    found: np.ndarray = np.concatenate([code[:, :2] + centres, code[:, 2:3], sides, yaw[:, None]], axis=1)
    return found


def pillars(points: Float[np.ndarray, "n c"], ground: Ground) -> tuple[Float32[Tensor, "m f"], Int64[Tensor, " m"]]:
    """The points on the ground of interest as a detector sees them, and the pillar of each.

    A point is z, its place from the mean of its pillar's points (3) and from the pillar's centre (2), its distance on
    the ground in units of 40 m, the log of the number of points in its pillar, and what it has behind x, y and z.
    """
    rows = ground.rows(points)
    points, rows = points[rows >= 0].astype(np.float64), rows[rows >= 0]
    xyz, more = points[:, :3], points[:, 3:]
    number = np.bincount(rows, minlength=ground.cells)
    mean = [np.bincount(rows, xyz[:, k], ground.cells) / np.maximum(number, 1) for k in range(3)]
    around = xyz - np.stack(mean, axis=1)[rows]
    centred = xyz[:, :2] - ground.centres()[rows]
    away, many = np.hypot(xyz[:, 0], xyz[:, 1]) / 40, np.log(number[rows])
    features = np.concatenate([xyz[:, 2:], around, centred, away[:, None], many[:, None], more], axis=1)
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(rows)


__all__ = [
    "CODE", "Ground", "Targets", "decoded", "encoded", "matched", "objects", "pillars", "shifts", "targets",
]  # fmt: skip
