"""Augmentation of the views of a sweep: each returns where every row went, so that labels and matches can follow.

Rows of an image are its cells or pixels, row-major. A row map holds the new row of every old row, -1 where it is gone;
`Correspondence.remap` takes it. All randomness comes from the generator given, so a stream's key replays it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..data.augment_config import Augment
from ..data.frame import UNLABELLED
from .range_image import SCALES


@dataclass(frozen=True)
class Augmented:
    """A view after augmentation.

    Attributes:
        inputs: what the model sees.
        row_map: ``(old rows,)`` the new row of each, -1 where it is gone.
        labels: those given, moved likewise; None where none were given.
    """

    inputs: Tensor
    row_map: Int64[Tensor, " old"]
    labels: Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows now."""
        return len(self.inputs) if self.inputs.ndim == 2 else self.inputs.shape[-2] * self.inputs.shape[-1]


def apply_range(
    channels: Float[Tensor, "c h w"], augment: Augment, rng: np.random.Generator, labels: Tensor | None = None
) -> Augmented:
    """A range image, and its labels ``(h, w)``. A cell's azimuth and elevation remain those of its place."""
    view = Augmented(channels, _identity(channels.shape[-2] * channels.shape[-1]), labels)
    if augment.rotate:
        view = _after(view, lambda x, y: roll(x, int(rng.integers(channels.shape[-1])), y))
    if augment.flip and rng.random() < 0.5:
        view = _after(view, mirror)
    if augment.scale is not None or augment.jitter > 0:
        factor = _factor(augment, rng)  # before the noise: an image of other rows is scaled alike
        noise = rng.standard_normal(channels.shape[-2:], dtype=np.float32) * np.float32(augment.jitter)
        view = Augmented(stretch(view.inputs, factor, _tensor(noise)), view.row_map, view.labels)
    if augment.drop > 0:
        kept = _tensor(rng.random(channels.shape[-2:]) >= augment.drop)
        view = _after(view, lambda x, y: drop_cells(x, kept, y))
    return view


@dataclass(frozen=True)
class Motion:
    """How a scene is moved as a whole: y flipped, turned about z by `angle` in radians (x towards y), scaled."""

    angle: float
    flipped: bool
    scale: float


def drawn(augment: Augment, rng: np.random.Generator) -> Motion:
    """What the section asks for, at random."""
    angle = rng.uniform(-math.pi, math.pi) if augment.rotate else 0.0
    flipped = bool(augment.flip and rng.random() < 0.5)
    return Motion(angle, flipped, _factor(augment, rng))


def turning(motion: Motion) -> Float[Tensor, "3 3"]:
    """The matrix that moves a place so."""
    return _turn(motion.angle, motion.flipped, motion.scale)


def turned(boxes: Float[np.ndarray, "m 7"], motion: Motion) -> Float[np.ndarray, "m 7"]:
    """Boxes (x, y, z, length, width, height, yaw) in a scene that was moved so."""
    moved = boxes.copy()
    moved[:, :3] = boxes[:, :3] @ turning(motion).numpy().T
    moved[:, 3:6] *= motion.scale
    yaw = (-boxes[:, 6] if motion.flipped else boxes[:, 6]) + motion.angle
    moved[:, 6] = (yaw + np.pi) % (2 * np.pi) - np.pi
    return moved


def apply_points(
    points: Float[Tensor, "n c"], augment: Augment, rng: np.random.Generator, labels: Tensor | None = None, *,
    motion: Motion | None = None,
) -> Augmented:  # fmt: skip
    """Points, and their labels ``(n,)``. The first three channels are x, y, z in metres; the others stay as they are.

    At least one point stays.

    Args:
        motion: of the scene as a whole; None: one is drawn.
    """
    motion = motion or drawn(augment, rng)
    moved = points.clone()
    turn = turning(motion)
    moved[:, :3] = points[:, :3] @ turn.to(points.dtype).T
    if augment.jitter > 0:
        noise = rng.standard_normal((len(points), 3), dtype=np.float32) * np.float32(augment.jitter)
        moved[:, :3] += _tensor(noise).to(points.dtype)
    order = np.arange(len(points))
    if augment.drop > 0 and len(points):
        kept = rng.random(len(points)) >= augment.drop
        kept[rng.integers(len(points))] = True
        order = order[kept]
    if augment.shuffle:
        order = rng.permutation(order)
    return choose(moved, _tensor(order), labels)


def apply_image(
    rgb: Float[Tensor, "3 h w"], augment: Augment, rng: np.random.Generator, labels: Tensor | None = None
) -> Augmented:
    """A picture of values 0 to 1, and its labels ``(h, w)``. All crops of one size have one size."""
    view = Augmented(rgb, _identity(rgb.shape[-2] * rgb.shape[-1]), labels)
    if augment.crop is not None:
        height, width = (max(1, round(augment.crop * size)) for size in rgb.shape[-2:])
        top, left = int(rng.integers(rgb.shape[-2] - height + 1)), int(rng.integers(rgb.shape[-1] - width + 1))
        view = _after(view, lambda x, y: crop(x, top, left, height, width, y))
    if augment.flip and rng.random() < 0.5:
        view = _after(view, flip)
    if augment.colour > 0:
        brightness, contrast, saturation = rng.uniform(1 - augment.colour, 1 + augment.colour, 3)
        coloured = recolour(view.inputs, float(brightness), float(contrast), float(saturation))
        view = Augmented(coloured, view.row_map, view.labels)
    return view


def roll(channels: Float[Tensor, "c h w"], columns: int, labels: Tensor | None = None) -> Augmented:
    """A range image `columns` columns further right, x and y turned so that azimuth stays the column's.

    Azimuth falls as the column rises, so the scan turns by ``-2 pi columns / w``.
    """
    height, width = channels.shape[-2:]
    turned = channels.clone()
    turn = _turn(-2 * math.pi * columns / width)[:2, :2].to(channels.dtype)
    turned[1:3] = torch.einsum("ij,jhw->ihw", turn, channels[1:3])
    grid = torch.arange(height * width).reshape(height, width)
    return _rearranged(turned, grid.roll(columns, dims=1), labels)


def mirror(channels: Float[Tensor, "c h w"], labels: Tensor | None = None) -> Augmented:
    """A range image with left and right exchanged: columns reversed, y negated."""
    height, width = channels.shape[-2:]
    mirrored = channels.clone()
    mirrored[2] = 0 - channels[2]  # no -0 in empty cells
    return _rearranged(mirrored, torch.arange(height * width).reshape(height, width).flip(1), labels)


def stretch(channels: Float[Tensor, "c h w"], scale: float, noise: Float[Tensor, "h w"]) -> Float[Tensor, "c h w"]:
    """A range image whose points lie at `scale` times their range plus `noise` metres, on the ray they were on."""
    metres = channels[0] * float(SCALES[0])
    there = metres > 0
    factor = scale + torch.where(there, noise.to(metres) / metres.where(there, torch.ones_like(metres)), 0.0)
    return torch.cat([channels[:4] * factor.clamp_min(0.05), channels[4:]])  # nothing jumps behind the sensor


def drop_cells(channels: Float[Tensor, "c h w"], kept: Bool[Tensor, "h w"], labels: Tensor | None = None) -> Augmented:
    """A range image in which the cells not kept are empty, and match nothing."""
    cells = torch.arange(kept.numel())
    labels = None if labels is None else torch.where(kept, labels, UNLABELLED)
    return Augmented(channels * kept, torch.where(kept.flatten(), cells, -1), labels)


def choose(points: Float[Tensor, "n c"], order: Int64[Tensor, " m"], labels: Tensor | None = None) -> Augmented:
    """The points `order`, in that order."""
    return Augmented(points[order], _inverse(order, len(points)), None if labels is None else labels[order])


def flip(rgb: Float[Tensor, "c h w"], labels: Tensor | None = None) -> Augmented:
    """A picture with left and right exchanged."""
    height, width = rgb.shape[-2:]
    return _rearranged(rgb, torch.arange(height * width).reshape(height, width).flip(1), labels)


def crop(
    rgb: Float[Tensor, "c h w"], top: int, left: int, height: int, width: int, labels: Tensor | None = None
) -> Augmented:
    """The part of a picture that begins `top` pixels down and `left` pixels to the right."""
    grid = torch.arange(rgb.shape[-2] * rgb.shape[-1]).reshape(rgb.shape[-2:])
    return _rearranged(rgb, grid[top : top + height, left : left + width], labels)


def recolour(
    rgb: Float[Tensor, "3 h w"], brightness: float, contrast: float, saturation: float
) -> Float[Tensor, "3 h w"]:
    """A picture with its values, their distance from its mean grey and that from each pixel's grey multiplied."""
    rgb = (rgb * brightness).clamp(0, 1)
    mean = _grey(rgb).mean()
    rgb = (mean + contrast * (rgb - mean)).clamp(0, 1)
    grey = _grey(rgb)
    return (grey + saturation * (rgb - grey)).clamp(0, 1)


def compose(first: Int64[Tensor, " old"], second: Int64[Tensor, " middle"]) -> Int64[Tensor, " old"]:
    """The row map of `first` and then `second`."""
    if len(second) == 0:
        return torch.full_like(first, -1)
    return torch.where(first >= 0, second[first.clamp_min(0)], -1)


def _after(view: Augmented, step: Callable[[Tensor, Tensor | None], Augmented]) -> Augmented:
    found = step(view.inputs, view.labels)
    return Augmented(found.inputs, compose(view.row_map, found.row_map), found.labels)


def _rearranged(image: Float[Tensor, "c h w"], old: Int64[Tensor, "h2 w2"], labels: Tensor | None) -> Augmented:
    """The image whose cells show the old cells `old`, each at most once."""
    moved = image.flatten(1)[:, old.flatten()].reshape(len(image), *old.shape)
    row_map = _inverse(old.flatten(), image.shape[-2] * image.shape[-1])
    return Augmented(moved, row_map, None if labels is None else labels.flatten()[old])


def _inverse(old: Int64[Tensor, " new"], rows: int) -> Int64[Tensor, " old"]:
    """The row map of new rows that show the rows `old` of `rows` before."""
    row_map = torch.full((rows,), -1, dtype=torch.int64)
    row_map[old] = torch.arange(len(old))
    return row_map


def _identity(rows: int) -> Int64[Tensor, " rows"]:
    return torch.arange(rows)


def _turn(angle: float, flipped: bool = False, scale: float = 1.0) -> Float[Tensor, "3 3"]:
    """The matrix that flips y, turns about z (x towards y) and scales, in that order."""
    cos, sin, side = math.cos(angle), math.sin(angle), -1.0 if flipped else 1.0
    return scale * torch.tensor([[cos, -sin * side, 0], [sin, cos * side, 0], [0, 0, 1]], dtype=torch.float64)


def _factor(augment: Augment, rng: np.random.Generator) -> float:
    return 1.0 if augment.scale is None else float(rng.uniform(*augment.scale))


def _grey(rgb: Float[Tensor, "3 h w"]) -> Float[Tensor, "h w"]:
    """Luma after ITU-R BT.601."""
    return torch.einsum("c,chw->hw", rgb.new_tensor([0.299, 0.587, 0.114]), rgb)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values)
