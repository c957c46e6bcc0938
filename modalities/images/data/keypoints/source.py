"""Figures of a split: their images as training moves them, and the heat maps that are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import cos, pi, sin
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.adapter.images.section import SPLITS, TEST, Split
from xmodal_kd.adapter.images.splits import batches, check_there, cut, settled, tested
from xmodal_kd.adapter.long_lists import Batches
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.runtime.random_streams import Streams

from ..keypoints_section import SIZES
from ..source import DECISIVE, ImagesData
from .coco import read_coco
from .figures import Figures, Skeleton
from .skeletons import draw_skeletons


def load_figures(config: ImagesData, split: str) -> Figures:
    """The figures of ``train``, ``dev`` or ``test``; read or drawn once in a process: leave the arrays as they are.

    Raises:
        UserError: what the readers find wrong, splits that leave nothing.
    """
    if split not in SPLITS:
        raise UserError(f"no split {split!r}{nearest(split, SPLITS)}")
    return _splits(settled(config, (*DECISIVE, "task", "keypoints")))[split]


@lru_cache(maxsize=4)
def _splits(config: ImagesData) -> dict[Split, Figures]:
    asked = config.keypoints
    height, width = config.sides or SIZES[config.sources]
    mode = config.mode or "RGB"
    if config.sources == "skeletons":
        counts: dict[Split, int] = {"train": asked.figures, "dev": config.dev, "test": config.test or TEST}
        return {
            split: draw_skeletons(split, count, asked.frames, height, width, mode) for split, count in counts.items()
        }

    def read(path: Path) -> Figures:
        check_there(path, None)
        return read_coco(path, asked.category, asked.margin, height, width, mode, config.skip)

    assert config.path is not None  # the section sees to it
    whole = read(config.path)
    if config.test_path is None:
        test, dev, train = _parted(config, whole, [config.test or TEST, config.dev])
        return {"train": replace(train, skipped=whole.skipped), "dev": dev, "test": test}
    dev, train = _parted(config, whole, [config.dev])
    test = read(config.test_path)
    if test.skeleton != whole.skeleton:
        raise UserError(
            f"data.test_path: {config.test_path}: its joints are {', '.join(test.skeleton.names)}, those of data.path "
            f"{', '.join(whole.skeleton.names)}: give annotations of the same joints, in the same order"
        )
    images = tested(config, config.test_path, int(test.clips.max()) + 1)
    some = test.take(np.flatnonzero(np.isin(test.clips, images)))
    return {
        "train": replace(train, skipped=whole.skipped), "dev": dev, "test": replace(some, skipped=test.skipped),
    }  # fmt: skip


def _parted(config: ImagesData, whole: Figures, sizes: Sequence[int]) -> list[Figures]:
    """`whole` by clip: as many clips as `sizes` say, and what is left over, for training."""
    clips = int(whole.clips.max()) + 1
    parts = [whole.take(np.flatnonzero(np.isin(whole.clips, part))) for part in cut(clips, sizes)]
    if not len(parts[-1]):
        raise UserError(
            f"data: {config.path} has {clips} images with figures, of which dev and test take {sum(sizes)}: none are "
            "left for training: set data.dev and data.test lower"
        )
    return parts


class Sample(NamedTuple):
    """One figure, moved and mirrored."""

    id: int
    #: ``(c, h, w)`` float32 in [-1, 1].
    x: Tensor
    #: ``(j, 2)`` float32: x and y in pixels.
    joints: Tensor
    #: ``(j,)`` uint8: 0 not labelled or out of sight.
    visible: Tensor


class FiguresSource:
    """The figures of one split; order and what moves them are functions of (seed, split, epoch, sample).

    Raises:
        UserError: fewer training figures than a batch.
    """

    def __init__(self, config: ImagesData, split: str, figures: Figures, streams: Streams, batch_size: int) -> None:
        self.config, self.split, self.figures = config, split, figures
        self.streams, self.batch_size = streams, batch_size
        if split == "train" and len(figures) < batch_size:
            raise UserError(f"train.batch_size: {batch_size} is more than the {len(figures)} training samples")
        if split == "train" and batch_size % figures.frames:
            raise UserError(
                f"train.batch_size: {batch_size} images are no whole number of clips of {figures.frames} (data."
                "keypoints.frames): give a multiple of it"
            )

    @property
    def skeleton(self) -> Skeleton:
        return self.figures.skeleton

    @property
    def grid(self) -> tuple[int, int]:
        """Positions of a heat map, down and across."""
        _, height, width = self.figures.shape
        return height // self.config.keypoints.stride, width // self.config.keypoints.stride

    def __len__(self) -> int:
        return len(self.figures)

    def plan(self, epoch: int) -> Batches:
        """Of clips their frames behind one another."""
        frames = self.figures.frames
        clips = batches(self.split, len(self) // frames, max(1, self.batch_size // frames), self.streams, epoch)
        if frames == 1:
            return clips
        order = (clips.order[:, None] * frames + np.arange(frames)).reshape(-1)
        return Batches(order, clips.starts * frames, clips.sizes * frames)

    def sample(self, index: int, epoch: int) -> Sample:
        figures, config = self.figures, self.config
        x = figures.tensor([index])[0]
        joints, visible = torch.from_numpy(figures.joints[index]), torch.from_numpy(figures.visible[index])
        if self.split != "train":
            return Sample(index, x, joints, visible)
        draws = torch.rand(
            5, generator=self.streams.torch("augment", epoch, index // figures.frames), dtype=torch.float64
        ).tolist()
        if config.flip and draws[0] < 0.5:
            x, joints, visible = mirrored(x, joints, visible, self.skeleton)
        turn, larger, right, down = (2 * draw - 1 for draw in draws[1:])
        angle, scale = turn * config.keypoints.rotate / 180 * pi, 1 + larger * config.keypoints.scale
        if config.keypoints.rotate or config.keypoints.scale or config.shift:
            x, joints = moved(x, joints, angle, scale, (right * config.shift, down * config.shift))
            inside = ((joints >= 0) & (joints < joints.new_tensor([x.shape[2], x.shape[1]]))).all(dim=1)
            visible = torch.where(inside, visible, torch.zeros_like(visible))
        return Sample(index, x, joints, visible)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """``ids`` (b,), ``keys``, ``x`` (b, c, h, w), ``joints`` (b, j, 2), ``visible`` (b, j) bool: labelled and in
        sight of the image, ``heatmaps`` (b, j, h, w) float32, ``cells`` (b, j) int64: the position nearest a joint,
        ``before`` (b,) int64: which of them is the frame before, -1 where it is not among them."""
        ids = torch.tensor([sample.id for sample in samples])
        joints = torch.stack([sample.joints for sample in samples])
        stride, sigma = self.config.keypoints.stride, self.config.keypoints.sigma
        return {
            "ids": ids,
            "keys": [self.figures.keys[i] for i in ids.tolist()],
            "x": torch.stack([sample.x for sample in samples]),
            "joints": joints,
            "visible": torch.stack([sample.visible for sample in samples]) > 0,
            "heatmaps": heatmaps(joints / stride, self.grid, sigma),
            "cells": cells(joints / stride, self.grid),
            "before": before(ids.tolist(), self.figures.frames),
        }

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        figures = self.figures
        return {
            "samples": len(figures),
            "skipped": len(figures.skipped),
            "shape": list(figures.shape),
            "joints": len(self.skeleton.names),
            "labelled_joints": int((figures.visible > 0).sum()),
            "hidden_joints": int((figures.visible == 1).sum()),
        }


# ---------------------------------------------------------------- images and their joints


def mirrored(
    x: Float[Tensor, "c h w"], joints: Float[Tensor, "j 2"], visible: Int[Tensor, " j"], skeleton: Skeleton
) -> tuple[Tensor, Tensor, Tensor]:
    """An image in a mirror: its left joints become right ones."""
    order = list(skeleton.mirrored)
    width = x.shape[-1]
    flipped = torch.stack([width - joints[:, 0], joints[:, 1]], dim=1)
    return x.flip(-1), flipped[order], visible[order]


def moved(
    x: Float[Tensor, "c h w"], joints: Float[Tensor, "j 2"], angle: float, scale: float, shift: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """An image turned clockwise by `angle` (radians) about its middle, enlarged, then moved right and down by `shift`
    pixels, the edge repeated where nothing was; its joints with it."""
    _, height, width = x.shape
    turn = torch.tensor([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]], dtype=torch.float64)
    middle = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    by = torch.tensor(shift, dtype=torch.float64)
    after = (joints.double() - middle) @ turn.T * scale + middle + by
    # of each new pixel where it was, in units of half the image: what grid_sample asks for
    back = turn.T / scale
    half = middle
    linear = back * half / half[:, None]
    offset = -(back @ by) / half
    grid = F.affine_grid(
        torch.cat([linear, offset[:, None]], dim=1).float()[None], [1, 1, height, width], align_corners=False
    )
    new = F.grid_sample(x[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    return new, after.float()


def heatmaps(places: Float[Tensor, "b j 2"], grid: tuple[int, int], sigma: float) -> Float[Tensor, "b j h w"]:
    """``exp(-|c - u|^2 / 2 sigma^2)`` of a joint at u, in positions whose middles are c (Tompson et al., 2014)."""
    across, down = (torch.arange(size, dtype=torch.float32) + 0.5 for size in (grid[1], grid[0]))
    x, y = places[..., 0, None] - across, places[..., 1, None] - down
    return torch.exp(-(y.square()[..., :, None] + x.square()[..., None, :]) / (2 * sigma**2))


def before(ids: Sequence[int], frames: int) -> Int[Tensor, " b"]:
    """Where among samples, each clip's `frames` of them numbered on, the frame before each stands; -1 for none.

    >>> before([4, 5, 8, 9, 11], frames=4).tolist()
    [-1, 0, -1, 2, -1]
    """
    at = {number: place for place, number in enumerate(ids)}
    return torch.tensor([at.get(number - 1, -1) if number % frames else -1 for number in ids])


def cells(places: Float[Tensor, "b j 2"], grid: tuple[int, int]) -> Int[Tensor, "b j"]:
    """The number of the position in which a joint lies, by rows; of one out of sight the nearest."""
    x, y = (places[..., axis].floor().long().clamp(0, size - 1) for axis, size in ((0, grid[1]), (1, grid[0])))
    return y * grid[1] + x


def located(maps: Float[Tensor, "b j h w"], stride: int) -> tuple[Float[Tensor, "b j 2"], Float[Tensor, "b j"]]:
    """x and y in pixels of each joint and its score: the middle of the hottest position, moved by a quarter of one
    towards the hotter of its neighbours on each axis (Newell et al., 2016)."""
    *_, height, width = maps.shape
    score, at = maps.flatten(2).max(dim=2)
    y, x = at // width, at % width

    def leaning(place: Tensor, size: int, left: Tensor, right: Tensor) -> Tensor:
        inner = (place > 0) & (place < size - 1)
        return torch.where(inner, torch.sign(right - left), torch.zeros_like(left)) * 0.25

    flat = maps.flatten(2)

    def value(row: Tensor, column: Tensor) -> Tensor:
        number = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        return flat.gather(2, number[..., None])[..., 0]

    over = leaning(x, width, value(y, x - 1), value(y, x + 1))
    under = leaning(y, height, value(y - 1, x), value(y + 1, x))
    return torch.stack([x + 0.5 + over, y + 0.5 + under], dim=-1) * stride, score


__all__ = ["FiguresSource", "Sample", "before", "cells", "heatmaps", "load_figures", "located", "mirrored", "moved"]
