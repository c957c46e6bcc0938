"""One side's view of a frame: what its model is given, and what each row of that means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Kind

from ..data.augment_config import Augment
from ..data.config import CHANNELS, Answers, PointsData, View
from ..data.frame import UNLABELLED, Frame, Picture, Scan
from ..data.fuse import fuse
from ..data.rings import keep_beams, thin
from .augment import apply_image, apply_points, apply_range
from .range_image import SCALES, range_image
from .visibility import point_index, visible

#: Kind of the rows by the number of the axes of their grid: points, or cells and pixels.
KINDS: dict[int, Kind] = {0: "point", 2: "pixel"}


@dataclass(frozen=True)
class Seen:
    """What a model is given of a frame.

    Attributes:
        inputs: ``(5, h, w)`` of a range image, ``(3, h, w)`` from 0 to 1 of a picture, ``(n, 4)`` x, y, z and distance
            in metres of points, the first and the last with one channel more where intensity is seen; ``(n, classes)``
            logits of a teacher that ran elsewhere.
        element: ``(N,)`` row that shows each point of the current sweep, -1 for none.
        labels: ``(rows,)`` class of each row, -1 for none.
        valid: ``(rows,)`` whether a row shows anything.
        xyz: ``(rows, 3)`` metres; NaN where no point is known.
    """

    inputs: Tensor
    element: Int[np.ndarray, " N"]
    labels: Int[np.ndarray, " rows"]
    valid: Bool[np.ndarray, " rows"]
    xyz: Float[np.ndarray, "rows 3"]

    @property
    def nbytes(self) -> int:
        return int(self.inputs.nbytes) + sum(x.nbytes for x in (self.element, self.labels, self.valid, self.xyz))

    @property
    def rows(self) -> int:
        return len(self.labels)


def see(frames: list[Frame], view: View, data: PointsData) -> Seen:
    """The view of the newest of `frames`, as it is. Raises `UserError` for a frame that lacks what is to be seen."""
    if isinstance(view, Answers):
        return _answers(frames[0].scan, view.role, len(data.taxonomy))
    if view.sees == "image":
        return _image(frames[0], data)
    scan, chosen = seen_scan(frames, view)
    if view.sees == "range":
        return _range(scan, chosen, len(frames[0].scan), view, data)
    return _points(scan, chosen, len(frames[0].scan), view)


def seen_scan(frames: list[Frame], view: View) -> tuple[Scan, Int[np.ndarray, " n"]]:
    """The points that `view` leaves, and which point of the current sweep each is, -1 for older sweeps'."""
    frames = frames[: view.sweeps]
    chosen = np.arange(len(frames[0].scan))
    if view.beams is not None:
        chosen = np.flatnonzero(keep_beams(frames[0].scan, view.beams))
        frames = [replace(frame, scan=thin(frame.scan, view.beams)) for frame in frames]
    if view.sweeps == 1:
        return frames[0].scan, chosen
    fused = fuse(frames)
    return fused, np.pad(chosen, (0, len(fused) - len(chosen)), constant_values=-1)


def _range(scan: Scan, chosen: np.ndarray, points: int, view: View, data: PointsData) -> Seen:
    sensor = data.lidar
    ringed = scan if view.sweeps == 1 else replace(scan, ring=None)
    rows = scan.beams if ringed.ring is not None and scan.beams else view.beams or sensor.beams
    image = range_image(
        ringed, rows, view.columns, elevations=sensor.edges, max_range=sensor.max_range, intensity=view.intensity,
        azimuth=sensor.azimuth,
    )  # fmt: skip
    shown, index = image.index.reshape(-1) >= 0, image.index.reshape(-1)
    labels = np.full(len(index), UNLABELLED)
    if scan.labels is not None:
        labels[shown] = scan.labels[index[shown]]
    xyz = np.full((len(index), 3), np.nan, np.float32)
    xyz[shown] = scan.xyz[index[shown]]
    return Seen(torch.from_numpy(image.channels), _elements(points, chosen, image.cell), labels, shown, xyz)


def _points(scan: Scan, chosen: np.ndarray, points: int, view: View) -> Seen:
    labels = np.full(len(scan), UNLABELLED) if scan.labels is None else scan.labels
    more = [scan.intensity[:, None]] if view.intensity else []
    inputs = np.concatenate([scan.xyz, scan.distance[:, None], *more], axis=1).astype(np.float32)
    element = _elements(points, chosen, np.arange(len(scan)))
    return Seen(torch.from_numpy(inputs), element, labels, np.ones(len(scan), bool), scan.xyz)


def _answers(scan: Scan, role: str, classes: int) -> Seen:
    """Logits in the place of points; of a scan of which nothing was said no point is seen."""
    said, labels = scan.said.get(role), np.full(len(scan), UNLABELLED) if scan.labels is None else scan.labels
    inputs = torch.zeros(len(scan), classes) if said is None else torch.from_numpy(said)
    element = np.full(len(scan), -1) if said is None else np.arange(len(scan))
    return Seen(inputs, element, labels, np.full(len(scan), said is not None), scan.xyz)


def _image(frame: Frame, data: PointsData) -> Seen:
    picture = fitted(frame, data.image)
    camera, height, width = picture.camera, picture.camera.height, picture.camera.width
    uv, depth = camera.project(frame.scan.xyz)
    element = visible(uv, depth, camera, picture.depth)
    index = point_index(element, depth, height, width).reshape(-1)
    shown = index >= 0
    xyz = np.full((height * width, 3), np.nan, np.float32)
    xyz[shown] = frame.scan.xyz[index[shown]]
    labels = np.full(height * width, UNLABELLED)
    if data.pixel_labels == "all" and picture.labels is not None:
        labels = picture.labels.reshape(-1)
    elif frame.scan.labels is not None:
        labels[shown] = frame.scan.labels[index[shown]]
    inputs = torch.from_numpy(np.ascontiguousarray(picture.rgb.transpose(2, 0, 1))).float() / 255
    return Seen(inputs, element, labels, np.ones(height * width, bool), xyz)


def fitted(frame: Frame, size: tuple[int, int]) -> Picture:
    """The frame's first picture at height and width `size`."""
    return sized(taken(frame)[0], size)


def taken(frame: Frame, cameras: Sequence[str] = ()) -> tuple[Picture, ...]:
    """The frame's pictures of these cameras, in their order; of none: the first. Raises `UserError` where one lacks."""
    if not frame.pictures:
        raise UserError(f"{frame.key}: it has no picture, and an image is to be seen")
    known = {picture.name: picture for picture in frame.pictures}
    if absent := next((name for name in cameras if name not in known), None):
        there = ", ".join(filter(None, known)) or "one without a name: leave cameras out"
        raise UserError(f"{frame.key}: no camera is called {absent!r} (there is {there})")
    return tuple(known[name] for name in cameras) or frame.pictures[:1]


def sized(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture at height and width `size`."""
    height, width = size
    if picture.rgb.shape[:2] == size:
        return picture
    rgb = np.asarray(Image.fromarray(picture.rgb).resize((width, height), Image.Resampling.BILINEAR))
    down, right = (np.arange(n) * m // n for n, m in zip(size, picture.rgb.shape[:2], strict=True))

    def nearest(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[np.ix_(down, right)]

    camera = picture.camera.resized(height, width)
    return Picture(camera, rgb, nearest(picture.depth), nearest(picture.labels), picture.name)


def _elements(points: int, chosen: np.ndarray, element: np.ndarray) -> np.ndarray:
    """``(points,)`` element of each point of the sweep, from those of the points that were `chosen` from it."""
    found = np.full(points, -1, dtype=np.int64)
    own = chosen >= 0
    found[chosen[own]] = element[own]
    return found


def thinned(seen: Seen, most: int, rng: np.random.Generator) -> Seen:
    """A set of points with at most so many of them."""
    if seen.inputs.ndim != 2 or seen.rows <= most:
        return seen
    kept = np.sort(rng.permutation(seen.rows)[:most])
    moved = np.full(seen.rows, -1, dtype=np.int64)
    moved[kept] = np.arange(most)
    return _moved(seen, seen.inputs[torch.from_numpy(kept)], moved, most)


def augmented(seen: Seen, view: View, augment: Augment, rng: np.random.Generator) -> Seen:
    """The view after the augmentations of its kind; rows have moved with it. What was said stays as it is."""
    if isinstance(view, Answers):
        return seen
    apply = {"range": apply_range, "image": apply_image, "points": apply_points}[view.sees]
    found = apply(seen.inputs, augment, rng)
    return _moved(seen, found.inputs, found.row_map.numpy(), found.rows)


def _moved(seen: Seen, inputs: Tensor, moved: np.ndarray, rows: int) -> Seen:
    """`seen` whose old rows are now at `moved`, -1 where they are gone."""
    stay = moved >= 0
    labels, valid = np.full(rows, UNLABELLED), np.zeros(rows, bool)
    labels[moved[stay]], valid[moved[stay]] = seen.labels[stay], seen.valid[stay]
    element = np.where(seen.element >= 0, moved[seen.element], -1)
    if inputs.ndim == 2:
        xyz = inputs[:, :3].numpy()
        inputs = torch.cat([inputs[:, :3], inputs[:, :3].norm(dim=1, keepdim=True), inputs[:, 4:]], dim=1)
    elif len(inputs) >= CHANNELS["range"]:
        xyz = inputs[1:4].numpy().reshape(3, -1).T * SCALES[1:]
        xyz = np.where(valid[:, None], xyz, np.nan)
    else:
        xyz = np.full((rows, 3), np.nan, np.float32)
        xyz[moved[stay]] = seen.xyz[stay]
    return Seen(inputs, element, labels, valid, xyz)


__all__ = ["KINDS", "Seen", "augmented", "fitted", "see", "sized", "taken", "thinned"]
