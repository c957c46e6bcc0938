"""Labelled points as pictures: range images, views from above, points in the photograph, mIoU against beams."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from xmodal_kd.runtime.checkpoint import write_bytes

from ..data.frame import Frame, Picture, Scan
from ..views.range_image import range_image
from ..views.visibility import visible
from .palette import FAINT, INK, PAPER, colours, font, legend

#: Pixels: width and height of a strip, side of a view from above, width that photographs are shown at least.
STRIP, SIDE, PHOTOGRAPH = (1024, 128), 520, 560
#: Metres from the sensor to the edge of a view from above.
REACH = 40.0
HEAD, GAP = 24, 8
#: Colours of the roles in curves.
ROLES = {"teacher": "#444444", "control": "#c97b12", "student": "#1e6ee6"}
#: Rows of a scan whose rings nobody knows: coarser than any two lasers of an HDL-64E, so that no row stays empty.
BANDS = 40
Panel = tuple[str, Image.Image]


def range_strip(rows: Sequence[tuple[str, np.ndarray]], classes: Sequence[str], *, title: str = "") -> Image.Image:
    """Range images below each other, all of one size on the page whatever their rows and columns.

    Args:
        rows: caption and ``(h, w)`` int labels, or ``(h, w)`` float metres, which are drawn dark where near.
    """
    return sheet(strip_panels(rows), 1, title, classes)


def strip_panels(rows: Sequence[tuple[str, np.ndarray]]) -> list[Panel]:
    panels = []
    for caption, values in rows:
        pixels = shades(values) if values.dtype.kind == "f" else colours(values)
        panels.append((caption, Image.fromarray(pixels).resize(STRIP, Image.Resampling.NEAREST)))
    return panels


def shades(metres: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Distances as greys, dark where near; what is not finite or not above 0 has the colour of nothing."""
    there = np.isfinite(metres) & (metres > 0)
    level = 40 + 160 * np.clip(np.where(there, metres, 0) / REACH, 0, 1) ** 0.5
    return np.where(there[..., None], level[..., None].astype(np.uint8), np.array(FAINT, dtype=np.uint8))


def birds_eye(
    scenes: Sequence[tuple[str, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    *,
    reach: float = REACH,
    title: str = "",
) -> Image.Image:
    """Scenes from above, side by side: x (forward) up, y to the left, circles every 10 m round the sensor.

    Args:
        scenes: caption, ``(n, 3)`` metres and ``(n,)`` labels. Higher points hide lower ones.
        reach: metres to the edge; points beyond are left out.
    """
    panels = [(caption, above(xyz, labels, reach)) for caption, xyz, labels in scenes]
    return sheet(panels, min(len(panels), 3), title, classes)


def above(xyz: Float[np.ndarray, "n 3"], labels: Int[np.ndarray, " n"], reach: float) -> Image.Image:
    """One view of `birds_eye`."""
    canvas = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw, middle, scale = ImageDraw.Draw(canvas), SIDE / 2, SIDE / (2 * reach)
    circles = [float(radius) for radius in range(10, math.ceil(reach), 10)]
    for radius in circles:
        r = radius * scale
        draw.ellipse((middle - r, middle - r, middle + r, middle + r), outline=FAINT)
    order = np.argsort(xyz[:, 2], kind="stable")
    across, down = middle - xyz[order, 1] * scale, middle - xyz[order, 0] * scale
    canvas = _dots(canvas, across, down, colours(labels[order]), 2 if len(xyz) > 20_000 else 3)
    draw = ImageDraw.Draw(canvas)
    draw.polygon([(middle, middle - 7), (middle - 5, middle + 5), (middle + 5, middle + 5)], fill=INK, outline=PAPER)
    for radius in circles:
        place = (middle + radius * scale * 0.707, middle + radius * scale * 0.707)
        draw.text(place, f"{radius:.0f} m", fill=INK, font=font(11), anchor="mm", stroke_width=2, stroke_fill=PAPER)
    return canvas


def projected(
    rgb: UInt8[np.ndarray, "h w 3"], uv: Float[np.ndarray, "n 2"], by_role: Mapping[str, np.ndarray],
    classes: Sequence[str], *, title: str = "",
) -> Image.Image:  # fmt: skip
    """The photograph once for each role, with the points that it sees coloured by that role's labels.

    Args:
        uv: pixel positions of visible points only, the farthest first: later ones hide earlier ones.
        by_role: ``(n,)`` labels of these points; those without a label are not drawn.
    """
    panels = [(role, in_photograph(rgb, uv, labels)) for role, labels in by_role.items()]
    columns = max(1, min(len(panels), 1700 // max((page.width for _, page in panels), default=1700)))
    return sheet(panels, columns, title, classes)


def in_photograph(
    rgb: UInt8[np.ndarray, "h w 3"], uv: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"]
) -> Image.Image:
    """One photograph of `projected`."""
    page, scale = dimmed(rgb)
    known = labels >= 0
    across, down = (uv[known] * scale).T
    return _dots(page, across, down, colours(labels[known]), 3)


def dimmed(rgb: UInt8[np.ndarray, "h w 3"]) -> tuple[Image.Image, int]:
    """A photograph nearly grey and darker than any label, so that colours are the labels' alone; how much enlarged."""
    scale = max(1, math.ceil(PHOTOGRAPH / rgb.shape[1]))
    dim = (rgb.mean(axis=2, keepdims=True) * 0.25 + rgb * 0.12 + 8).astype(np.uint8)
    size = (rgb.shape[1] * scale, rgb.shape[0] * scale)
    return Image.fromarray(dim).resize(size, Image.Resampling.BILINEAR), scale


def painted(rgb: UInt8[np.ndarray, "h w 3"], labels: Int[np.ndarray, "h w"]) -> Image.Image:
    """A photograph under the colours of its pixels' labels."""
    page, _ = dimmed(rgb)
    paint = Image.fromarray(colours(labels)).resize(page.size, Image.Resampling.NEAREST)
    mixed = np.asarray(page) * 0.8 + np.asarray(paint) * 0.6
    return Image.fromarray(np.minimum(mixed, 255).astype(np.uint8))


def _dots(
    image: Image.Image, across: np.ndarray, down: np.ndarray, filling: UInt8[np.ndarray, "n 3"], size: int
) -> Image.Image:
    """A copy with a square of `size` pixels at each position; later ones hide earlier ones."""
    pixels = np.array(image)
    height, width, _ = pixels.shape
    left, top = np.floor(across).astype(np.int64) - size // 2, np.floor(down).astype(np.int64) - size // 2
    offsets = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).reshape(1, -1, 2)
    x, y = (left[:, None] + offsets[..., 0]).ravel(), (top[:, None] + offsets[..., 1]).ravel()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    pixels[y[inside], x[inside]] = np.repeat(filling, size * size, axis=0)[inside]
    return Image.fromarray(pixels)


def sheet(panels: Sequence[Panel], columns: int, title: str, classes: Sequence[str]) -> Image.Image:
    """Captioned panels row by row, a title above and the legend below."""
    if not panels:
        raise ValueError("a picture needs at least one panel")
    wide = max(panel.width for _, panel in panels) + GAP
    highs = [max(panel.height for _, panel in panels[i : i + columns]) + HEAD for i in range(0, len(panels), columns)]
    letters, head = font(), 28 if title else 0
    captions = [math.ceil(letters.getlength(caption)) for caption, _ in panels]
    wide = max(wide, max(captions) + 2 * GAP)
    width = max(columns * wide + GAP, math.ceil(letters.getlength(title)) + 2 * GAP)
    below = legend(width, classes)
    page = Image.new("RGB", (width, head + sum(highs) + GAP + below.height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 7), title, fill=INK, font=letters)
    for i, (caption, panel) in enumerate(panels):
        left, top = GAP + i % columns * wide, head + sum(highs[: i // columns])
        draw.text((left, top + HEAD / 2), caption, fill=INK, font=letters, anchor="lm")
        page.paste(panel, (left, top + HEAD))
        draw.rectangle((left - 1, top + HEAD - 1, left + panel.width, top + HEAD + panel.height), outline=FAINT)
    page.paste(below, (0, page.height - below.height))
    return page


def overview_pictures(
    folder: Path, frame: Frame, by_role: Mapping[str, np.ndarray], classes: Sequence[str], *, columns: int = 256
) -> dict[str, Path]:
    """One frame as every role labels it: range images, the view from above, and its first photograph if it has one.

    Args:
        folder: PNG files named after the frame are written there.
        by_role: ``(n,)`` labels of the scan's points, below 0 where a role says nothing: beams it does not see, points
            outside its picture. The scan's own labels, where it has some, come first.
        columns: of the range images; no more than the sensor has, or they show gaps.

    Returns:
        Files by caption.
    """
    scan, key = frame.scan, frame.key
    shown = {} if scan.labels is None else {"labels": scan.labels}
    shown |= dict(by_role)
    stem = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in key)
    scenes = [(role, scan.xyz, labels) for role, labels in shown.items()]
    pages = {
        f"Range images of {key}": ("range", range_strip(strips(scan, shown, columns), classes)),
        f"{key} from above": ("above", birds_eye(scenes, classes)),
    }
    if frame.pictures:
        picture = frame.pictures[0]
        seen, uv = in_view(scan, picture)
        page = projected(picture.rgb, uv, {role: labels[seen] for role, labels in shown.items()}, classes)
        pages[f"{key} in the photograph"] = ("photograph", page)
    return {caption: write_picture(folder / f"{stem}-{name}.png", page) for caption, (name, page) in pages.items()}


def strips(scan: Scan, by_role: Mapping[str, np.ndarray], columns: int) -> list[tuple[str, np.ndarray]]:
    """Rows of a `range_strip`: distance, then each role's labels.

    Of a role that labels at most half of the rows with points only these are shown: a student of 16 beams has 16, as
    it sees them.
    A scan that does not know its rings is shown in 40 bands between its lowest and its highest point.
    """
    rows, limits = scan.beams or BANDS, None
    if scan.ring is None:
        up = np.arcsin(np.clip(scan.xyz[:, 2] / np.maximum(scan.distance, 1e-6), -1, 1))
        rows, limits = BANDS, (float(up.min()) - 1e-3, float(up.max()) + 1e-3)
    found = range_image(scan, rows, columns, elevations=limits, max_range=float("inf"))
    shown = (found.index >= 0).any(axis=1).sum()
    images = [("distance", found.show(scan.distance.astype(np.float32), np.nan))]
    for role, labels in by_role.items():
        image = found.show(labels, -1)
        said = (image >= 0).any(axis=1)
        image = image[said] if 0 < 2 * said.sum() <= shown else image
        images.append((f"{role}, {len(image)} rows", image))
    return images


def in_view(scan: Scan, picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Indexes of the points that a picture shows, the farthest first, and their ``(m, 2)`` positions in it."""
    uv, depth = picture.camera.project(scan.xyz)
    pixel = visible(uv, depth, picture.camera, picture.depth)
    seen = np.flatnonzero(pixel >= 0)
    seen = seen[np.argsort(-depth[seen], kind="stable")]
    return seen, uv[seen]


def write_picture(path: Path, image: Image.Image) -> Path:
    """A PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
    return path


def density_curve(path: Path, points: Sequence[Mapping[str, Any]], metric: str = "miou", *, title: str = "") -> Path:
    """A PNG of `metric` in percent against the number of beams, a line for each role.

    Args:
        points: ``{"role", "beams", "metrics"}`` each; those without a finite `metric` are left out. A role that occurs
            at one number of beams several times (seeds) is drawn as its mean with the range.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes, found = figure.add_subplot(), lines(points, metric)
    for role in sorted(found, key=[*ROLES, *found].index):
        line = found[role]
        x, mean, low, high = (np.array(values) for values in zip(*line, strict=True))
        style = "o--" if role.startswith("teacher") else "s-"
        axes.errorbar(
            x, 100 * mean, yerr=100 * np.stack([mean - low, high - mean]), fmt=style, capsize=2, markersize=4,
            label=role, color=ROLES.get(role),
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    counts = sorted({beams for line in found.values() for beams, *_ in line})
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes.set_xticks([], minor=True)
    axes.set(xlabel="beams", ylabel="mIoU, %" if metric == "miou" else f"{metric}, %", title=title)
    axes.grid(alpha=0.3)
    if found:
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
    return path


def lines(points: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[tuple[int, float, float, float]]]:
    """(beams, mean, least, greatest) along each role, in order of beams."""
    kept = [
        (str(p["role"]), int(p["beams"]), float(p["metrics"][metric]))
        for p in points
        if math.isfinite(float(p["metrics"].get(metric, math.nan)))
    ]
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for (role, beams), group in groupby(sorted(kept), key=lambda point: point[:2]):
        values = [value for *_, value in group]
        found.setdefault(role, []).append((beams, sum(values) / len(values), min(values), max(values)))
    return found


__all__ = [
    "birds_eye", "density_curve", "in_view", "overview_pictures", "projected", "range_strip", "sheet", "strips",
    "write_picture",
]  # fmt: skip
