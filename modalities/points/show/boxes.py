"""Boxes from above on a run's page: what is labelled, what each role finds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import nn

from xmodal_kd.adapter.adapter import Batch, Overview
from xmodal_kd.adapter.panels import Panel, gallery

from ..models.decoding import Found
from ..views.detection_source import DetectionSource, Moment
from ..views.overlap import corners
from .palette import FAINT, INK, PAPER, colours
from .pictures import sheet, write_picture

#: Pixels along the longer side of a view, score from which a box is drawn, frames on the page.
LONG, SHOWN, FRAMES = 560, 0.25, 2
LABELLED = (70, 160, 90)


class Detecting(Protocol):
    """What knows frames and finds of the roles: the adapter."""

    classes: tuple[str, ...]
    config: Any

    def data(self, split: str) -> DetectionSource: ...

    def found(self, role: str, model: nn.Module, batch: Batch) -> list[Found]: ...


def from_above(
    xyz: Float[np.ndarray, "n 3"], labelled: Float[np.ndarray, "m 7"], found: Found, limits: Sequence[float]
) -> Image.Image:
    """Points in grey, labelled boxes in green, found ones in their class's colour, a line to the front of each.

    Args:
        limits: least x and y, largest x and y, metres. x goes up, y to the left.
    """
    x0, y0, x1, y1 = limits
    scale = LONG / max(x1 - x0, y1 - y0)
    page = Image.new("RGB", (max(1, round((y1 - y0) * scale)), max(1, round((x1 - x0) * scale))), PAPER)
    pixels = np.array(page)
    across, down = ((y1 - xyz[:, 1]) * scale).astype(int), ((x1 - xyz[:, 0]) * scale).astype(int)
    there = (across >= 0) & (across < page.width) & (down >= 0) & (down < page.height)
    pixels[down[there], across[there]] = np.array(FAINT, np.uint8) - 60
    page = Image.fromarray(pixels)
    draw = ImageDraw.Draw(page)
    paints = [LABELLED] * len(labelled) + [tuple(c) for c in colours(found.numbers).tolist()]
    every = np.concatenate([labelled, found.boxes])
    for paint, box, ring in zip(paints, every, corners(every), strict=True):
        places = [((y1 - y) * scale, (x1 - x) * scale) for x, y in ring]
        draw.polygon(places, outline=paint, width=2 if paint != LABELLED else 3)
        front = ((places[0][0] + places[3][0]) / 2, (places[0][1] + places[3][1]) / 2)
        draw.line([((y1 - box[1]) * scale, (x1 - box[0]) * scale), front], fill=paint, width=2)
    draw.rectangle((0, 0, page.width - 1, page.height - 1), outline=INK)
    return page


def overview(adapter: Detecting, models: Mapping[str, nn.Module], folder: Path) -> Overview:
    """The first test frame as every role sees it."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    source = adapter.data("test")
    moment, batch = source.moment(0), source.collate([source.clean(0)])
    panels = [
        (role, _view(adapter, role, moment, _finds(adapter, role, model, batch))) for role, model in models.items()
    ]
    path = write_picture(pictures / "boxes.png", sheet(panels, min(len(panels), 3), moment.key, adapter.classes))
    return Overview(pictures={f"Boxes from above: green is labelled, scores of {SHOWN:g} and more are drawn": path})


def show(adapter: Detecting, models: Mapping[str, nn.Module]) -> Sequence[Panel]:
    """The first frames of the test split, a column a role."""
    source = adapter.data("test")
    return [_gallery(adapter, models, source, range(min(FRAMES, len(source))), "Boxes from above")]


def glimpse(adapter: Detecting, role: str, model: nn.Module) -> Sequence[Panel]:
    """The first dev frame, as one role sees it now."""
    return [_gallery(adapter, {role: model}, adapter.data("dev"), range(1), "What is found while it learns")]


def _gallery(
    adapter: Detecting, models: Mapping[str, nn.Module], source: DetectionSource, frames: Sequence[int], title: str
) -> Panel:
    rows = []
    for index in frames:
        moment, batch = source.moment(index), source.collate([source.clean(index)])
        cells = {}
        for role, model in models.items():
            finds = _finds(adapter, role, model, batch)
            wanted = f"{len(moment.boxes)} labelled, {len(finds)} found with a score of {SHOWN:g} or more"
            cells[role] = (_png(_view(adapter, role, moment, finds)), wanted)
        rows.append((moment.key, cells))
    note = (
        f"The first frames of the {source.split} split from above, x up. Green: labelled boxes; other colours: found "
        f"ones by class ({', '.join(adapter.classes)}); a line goes to the front. Points are those that the role sees, "
        "of photographs those that they show."
    )
    return gallery(title, list(models), rows, note=note, replaces=["Boxes from above"])


def _finds(adapter: Detecting, role: str, model: nn.Module, batch: Batch) -> Found:
    device = next(model.parameters()).device
    seen = {
        key: {name: part.to(device) if hasattr(part, "to") else part for name, part in one.items()}
        for key, one in batch["seen"].items()
    }
    found = adapter.found(role, model, {**batch, "seen": seen})[0]
    return found[found.scores >= SHOWN]


def _view(adapter: Detecting, role: str, moment: Moment, found: Found) -> Image.Image:
    side = role if role in moment.seen else "teacher" if role.startswith("teacher") else "student"
    return from_above(moment.points(side), moment.boxes, found, adapter.config.detection.range)


def _png(page: Image.Image) -> bytes:
    buffer = io.BytesIO()
    page.quantize(32).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


__all__ = ["from_above", "glimpse", "overview", "show"]
