"""Samples as pictures: grids, and sheets that show the same noise through several models."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from xmodal_kd.runtime.checkpoint import write_bytes

#: The least side of an image in a grid, in pixels: smaller ones are enlarged by a whole number.
LEAST = 48
GAP, PAPER, INK = 2, (255, 255, 255), (40, 40, 40)


def enlargement(side: int) -> int:
    """The whole number by which an image of `side` pixels is enlarged to be seen."""
    return max(1, math.ceil(LEAST / side))


def as_pixels(images: Tensor) -> np.ndarray:
    """``(n, c, h, w)`` in [-1, 1], clipped, to ``(n, h, w, 3)`` uint8.

    One channel is grey, three are colours; of any other number, or of values that are no picture, see `as_heat`.
    """
    grey = images.detach().cpu().float().nan_to_num(nan=-1).clamp(-1, 1)
    pixels = ((grey + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels


def as_heat(images: Tensor) -> np.ndarray:
    """``(n, c, h, w)`` in [-1, 1] to ``(n, c * h, w, 3)`` uint8 in viridis: channels below each other, low rows below.

    So a spectrogram stands as people draw it, with low frequencies at the bottom.
    """
    from matplotlib import colormaps

    n, c, h, w = images.shape
    values = images.detach().cpu().float().nan_to_num(nan=-1).clamp(-1, 1).flip(2).reshape(n, c * h, w)
    coloured = colormaps["viridis"](((values + 1) / 2).numpy())[..., :3]
    return np.asarray((coloured * 255).round().astype(np.uint8))


def pixels_of(images: Tensor, heat: bool) -> np.ndarray:
    """`as_heat` where asked for, or where there are neither one nor three channels of rows and columns."""
    if images.ndim == 4 and images.shape[1] in (1, 3) and not heat:
        return as_pixels(images)
    if images.ndim < 4:  # a vector is a row, a matrix a channel
        images = images.reshape(len(images), 1, *(1,) * (3 - images.ndim), *images.shape[1:])
    return as_heat(images.flatten(1, -3))


def grid(images: Tensor, columns: int | None = None, scale: int | None = None, *, heat: bool = False) -> Image.Image:
    """Images side by side, row by row.

    Args:
        images: ``(n, c, h, w)`` in [-1, 1]; arrays of other axes are coloured by value.
        columns: None: as square as possible.
        scale: enlargement by nearest neighbour, so that pixels stay pixels; None: to at least 48 a side.
        heat: colour values instead of showing a picture, for arrays that are no image.
    """
    if images.ndim < 2 or not images.numel():
        raise ValueError(f"images of shape {tuple(images.shape)}: (n, c, h, w) with n > 0 is needed")
    pixels = pixels_of(images, heat)
    n, h, w, _ = pixels.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    scale = scale or enlargement(min(h, w))
    rows = -(-n // columns)
    high, wide = h * scale + GAP, w * scale + GAP
    sheet = np.full((rows * high + GAP, columns * wide + GAP, 3), PAPER, dtype=np.uint8)
    for i, image in enumerate(pixels):
        top, left = GAP + i // columns * high, GAP + i % columns * wide
        sheet[top : top + h * scale, left : left + w * scale] = image.repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(sheet)


def write_grid(
    path: Path, images: Tensor, columns: int | None = None, scale: int | None = None, *, heat: bool = False
) -> Path:
    """`grid` as a PNG file."""
    return write_image(path, grid(images, columns, scale, heat=heat))


def contact_sheet(path: Path, rows: Sequence[tuple[str, Tensor]], title: str = "", *, heat: bool = False) -> Path:
    """A PNG of labelled rows, ``(label, images (n, c, h, w))`` each: column i is the same noise through every model."""
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    font = ImageFont.load_default(14)
    strips = [grid(images, len(images), heat=heat) for _, images in rows]
    margin = max(math.ceil(font.getlength(label)) for label, _ in rows) + 16
    head = 28 if title else 0
    width = max(margin + max(strip.width for strip in strips), math.ceil(font.getlength(title)) + 16)
    sheet = Image.new("RGB", (width, head + sum(strip.height for strip in strips)), PAPER)
    draw, top = ImageDraw.Draw(sheet), head
    draw.text((8, 6), title, fill=INK, font=font)
    for (label, _), strip in zip(rows, strips, strict=True):
        draw.text((8, top + strip.height / 2), label, fill=INK, font=font, anchor="lm")
        sheet.paste(strip, (margin, top))
        top += strip.height
    return write_image(path, sheet)


def write_image(path: Path, image: Image.Image) -> Path:
    """A PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
    return path


__all__ = ["as_heat", "as_pixels", "contact_sheet", "grid", "write_grid", "write_image"]
