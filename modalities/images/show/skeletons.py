"""Figures on a run's page: an image with the joints that are known, beside those that each role finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor, nn

from xmodal_kd.adapter.panels import Panel, gallery, png

from ..data.keypoints.figures import Skeleton
from ..data.keypoints.source import FiguresSource
from ..evaluate.joints import SHARES, distances, found_in
from .panels import pixels

#: Figures shown, half of them the test split's first, half those that the student finds worst.
SHOWN = 10
#: Dev figures shown at each evaluation.
GLIMPSED = 6
#: Test figures among which the worst are looked for.
SEARCHED = 256
#: The least side of a picture in pixels.
LEAST = 160
BONE, NEAR, FAR = (255, 221, 87), (60, 220, 110), (240, 70, 60)


@torch.no_grad()
def show(source: FiguresSource, models: Mapping[str, nn.Module]) -> Sequence[Panel]:
    """One gallery: a figure a row, what is known and each role's skeleton the columns."""
    batch, right = _first(source, SEARCHED)
    found = {role: found_in(source, model, SEARCHED) for role, model in models.items()}
    sizes = torch.from_numpy(source.figures.sizes[: len(right)])
    near = {role: distances(at, right, sizes) <= SHARES[0] for role, at in found.items()}
    rows = []
    for i in _chosen(near["student"], batch["visible"]):
        seen = batch["visible"][i]
        cells = {"known": (png(drawn(batch["x"][i], right[i], seen, source.skeleton)), "")}
        for role, at in found.items():
            count = int((near[role][i] & seen).sum())
            picture = drawn(batch["x"][i], at[i], seen, source.skeleton, near[role][i])
            cells[role] = (png(picture), f"{count} of {int(seen.sum())} near")
        rows.append((batch["keys"][i], cells))
    note = (
        f"The first test figures, then those that the student finds worst among the first {len(right)}. Joints that "
        f"are labelled: green within {SHARES[0]:g} of the larger side of the figure's box, red beyond."
    )
    return [gallery("The joints that each role finds", ["known", *models], rows, note=note)]


@torch.no_grad()
def glimpse(source: FiguresSource, role: str, model: nn.Module) -> Sequence[Panel]:
    """The first dev figures with the skeletons that one role finds now, beside each other."""
    batch, right = _first(source, GLIMPSED)
    found = found_in(source, model, GLIMPSED)
    near = distances(found, right, torch.from_numpy(source.figures.sizes[: len(right)])) <= SHARES[0]
    pictures = [
        drawn(x, at, seen, source.skeleton, ok)
        for x, at, seen, ok in zip(batch["x"], found, batch["visible"], near, strict=True)
    ]
    seen = batch["visible"]
    cell = (png(np.hstack(pictures)), f"{int((near & seen).sum())} of {int(seen.sum())} near")
    note = (
        f"The first {len(pictures)} dev figures at one evaluation after another: the number is the step. Labelled "
        f"joints are green within {SHARES[0]:g} of the larger side of the figure's box, red beyond."
    )
    return [gallery("What is seen while it learns", [role], [("now", {role: cell})], note=note)]


def _first(source: FiguresSource, most: int) -> tuple[Mapping[str, Any], Tensor]:
    batch = source.collate([source.sample(i, 0) for i in range(min(len(source), most))])
    return batch, batch["joints"]


def _chosen(near: Tensor, visible: Tensor) -> list[int]:
    first = list(range(min(SHOWN // 2, len(near))))
    wrong = (~near & visible).sum(dim=1)
    worst = wrong.argsort(descending=True, stable=True).tolist()
    return first + [i for i in worst if i not in first and wrong[i]][: SHOWN - len(first)]


def drawn(
    image: Float[Tensor, "c h w"], joints: Float[Tensor, "j 2"], seen: Tensor, skeleton: Skeleton,
    near: Tensor | None = None,
) -> UInt8[np.ndarray, "h w 3"]:  # fmt: skip
    """An image in [-1, 1], enlarged, with bones between the joints that are `seen`, and these green or red."""
    picture = pixels(image, LEAST)
    times = picture.shape[0] / image.shape[1]
    canvas = Image.fromarray(picture)
    pen, at = ImageDraw.Draw(canvas), (joints * times).tolist()
    for a, b in skeleton.edges:
        if seen[a] and seen[b]:
            pen.line([tuple(at[a]), tuple(at[b])], fill=BONE, width=2)
    for i, (x, y) in enumerate(at):
        if seen[i]:
            colour = NEAR if near is None or near[i] else FAR
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    return np.asarray(canvas)


__all__ = ["drawn", "glimpse", "show"]
