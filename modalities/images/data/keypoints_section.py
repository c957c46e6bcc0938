"""The section ``keypoints`` of a recipe: which figures there are, and how fine their heat maps are."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from xmodal_kd.adapter.adapter import Strict

#: Sides of a sample unless the recipe says them, by its source: height, width.
SIZES: dict[str, tuple[int, int]] = {"skeletons": (64, 64), "coco": (256, 192)}


class Keypoints(Strict):
    """Of the task keypoints."""

    #: Those that one source alone reads.
    of: ClassVar[dict[str, tuple[str, ...]]] = {"skeletons": ("figures", "frames"), "coco": ("category", "margin")}

    figures: int = Field(1000, ge=1, le=1 << 20)
    """Training figures that the source skeletons draws, each of `frames` images; ``dev`` and ``test`` count figures
    too."""
    frames: int = Field(1, ge=1, le=256)
    """Consecutive images of a figure that moves, a clip: training batches are then whole clips, in order, and what
    moves an image moves all of its clip."""
    category: str | None = None
    """Of the source coco: whose joints, where its file has several categories with joints."""
    margin: Annotated[float, Field(ge=1, le=3)] = 1.25
    """Of the source coco: how much wider than a person's box its image is cut."""
    stride: Literal[1, 2, 4, 8] = 4
    """Pixels of an image on a side of one position of a heat map: of all roles, which meet on these positions."""
    sigma: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Deviation of the Gaussian that a heat map should show, in positions."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Degrees by which a training image is turned at most, each way."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share by which a training image is made larger or smaller at most."""


__all__ = ["SIZES", "Keypoints"]
