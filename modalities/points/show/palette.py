"""Colours of classes. Each stands out from white and from black paper, since a PLY is seen on either."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (255, 255, 255), (40, 40, 40), (222, 222, 226)
#: By class, those of the simulator's eight first; a model with more classes begins again.
COLOURS = (
    (132, 134, 150), (186, 92, 190), (30, 110, 230), (0, 152, 164), (170, 92, 32), (172, 140, 0), (36, 144, 62),
    (228, 36, 48), (252, 14, 252), (112, 28, 238), (168, 14, 126), (252, 56, 154), (98, 98, 84), (154, 126, 252),
    (224, 112, 98), (252, 84, 0), (84, 84, 182), (0, 112, 0), (28, 98, 126), (182, 14, 0),
)  # fmt: skip
#: Side of a legend's square and the room above and below it, pixels.
SQUARE, MARGIN = 14, 8


def colours(labels: Int[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """The colour of each label; light grey for what has none."""
    table = np.array([*COLOURS, FAINT], dtype=np.uint8)
    found: np.ndarray = table[np.where(labels >= 0, labels % len(COLOURS), len(COLOURS))]
    return found


def font(size: int = 14) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def legend(width: int, classes: Sequence[str]) -> Image.Image:
    """Squares with the names of classes, in as many lines as `width` pixels take."""
    letters, items = font(), [*zip(range(len(classes)), classes, strict=True), (-1, "no label or no return")]
    places, left, top = [], MARGIN, MARGIN
    for _, name in items:
        wide = SQUARE + 5 + int(letters.getlength(name)) + 16
        if left + wide > width and left > MARGIN:
            left, top = MARGIN, top + SQUARE + MARGIN
        places.append((left, top))
        left += wide
    sheet = Image.new("RGB", (width, top + SQUARE + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for (label, name), (x, y) in zip(items, places, strict=True):
        fill = tuple(int(value) for value in colours(np.array(label)))
        draw.rectangle((x, y, x + SQUARE, y + SQUARE), fill=fill)
        draw.text((x + SQUARE + 5, y + SQUARE / 2), name, fill=INK, font=letters, anchor="lm")
    return sheet


__all__ = ["COLOURS", "FAINT", "INK", "PAPER", "colours", "font", "legend"]
