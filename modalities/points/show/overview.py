"""What takes all roles to see: the sweep over beams, recorded frames, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from xmodal_kd.adapter.adapter import Evaluation, Overview
from xmodal_kd.runtime.progress import console
from xmodal_kd.runtime.random_streams import Streams

from ..data.config import Folder, PointsData, View
from ..data.frame import Frame
from ..data.frames import Recorded
from ..data.readers.base import in_view
from ..evaluate.metrics import balanced_agreement, confusion, in_boxes, majority_agreement
from ..models.onnx_network import OnnxSegmenter
from ..views.source import PointsSource
from ..views.views import Seen, see
from .pictures import density_curve, overview_pictures

#: Shares of the sensor's beams that the sweep leaves.
SHARES = (1, 2, 4, 8)
CAR = "car"
#: What the boxes of a data set call what our classes call a car.
CARS = frozenset({"Car", "car", "Van"})
#: Metres by which a box is enlarged: labellers draw them tight.
MARGIN = 0.1


class Segmenting(Protocol):
    """What knows frames, views and scores of the roles: the adapter."""

    config: PointsData
    streams: Streams
    batch_size: int
    real: list[Recorded]
    classes: tuple[str, ...]

    def data(self, split: str) -> PointsSource: ...

    def view(self, role: str) -> View: ...

    def measure(self, role: str, model: nn.Module, source: PointsSource) -> Evaluation: ...


def overview(adapter: Segmenting, models: Mapping[str, nn.Module], folder: Path) -> Overview:
    """mIoU of every role by number of beams, agreement and boxes on recorded frames, pictures of a test frame."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    curve = list(density(adapter, models))
    found: dict[str, Path] = {}
    if curve:
        density_curve(pictures / "density.png", curve)
        found["mIoU against the beams of the scan"] = pictures / "density.png"
    real = [
        recorded(adapter, models, frames, pictures, found, name)
        for name, frames in zip(_names(adapter.real), adapter.real, strict=True)
    ]
    frames = adapter.data("test").frames[0]
    found |= overview_pictures(pictures, frames[0], answers(adapter, models, frames), adapter.classes)
    return Overview(curve, {"recorded": real} if real else {}, found)


def density(adapter: Segmenting, models: Mapping[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """Every role that sees single scans as range images, on scans of 1, 1/2, 1/4, 1/8 of the beams that it takes."""
    seers = {
        role: m for role, m in models.items() if adapter.view(role).sees == "range" and adapter.view(role).sweeps == 1
    }
    frames = adapter.data("test").frames
    total = adapter.config.lidar.beams
    for share in (share for share in SHARES if seers and total % share == 0):
        sources = {}
        for role, model in seers.items():
            if not _takes(model, total // share, adapter.config.student.columns):
                continue
            if (intensity := adapter.view(role).intensity) not in sources:
                columns = adapter.config.student.columns
                view = View(sees="range", beams=total // share, columns=columns, intensity=intensity)
                config = adapter.config.model_copy(update={"teacher": view, "teachers": {}, "student": view})
                sources[intensity] = PointsSource(config, "test", adapter.streams, adapter.batch_size, frames)
            console.print(f"beams  {total // share} {role}", highlight=False)
            metrics = adapter.measure("student", model, sources[intensity]).metrics
            metrics.pop("miou_own")
            yield {"role": role, "beams": total // share, "metrics": metrics}


def _takes(model: nn.Module, rows: int, columns: int) -> bool:
    """Whether a model sees range images of this size: one in an ONNX file may know one size alone."""
    return not isinstance(model, OnnxSegmenter) or model.takes((rows, columns))


def answers(
    adapter: Segmenting,
    models: Mapping[str, nn.Module],
    frames: list[Frame],
    views: Mapping[str, View] | None = None,
) -> dict[str, np.ndarray]:
    """What each role makes of the points of the current sweep: a class, or -1 where it does not see a point."""
    found = {}
    for role, model in models.items():
        seen = see(frames, (views or {}).get(role, adapter.view(role)), adapter.config)
        found[role] = predict(model, seen)
    return found


def predict(model: nn.Module, seen: Seen) -> np.ndarray:
    """``(N,)`` class of each point of the sweep that `seen` shows, -1 for the others."""
    device = next(model.parameters()).device
    inputs = seen.inputs.to(device)
    with torch.no_grad():
        if inputs.ndim == 3:
            rows = model(inputs[None]).argmax(dim=1).reshape(-1)
        else:
            rows = model(inputs, torch.tensor([len(inputs)], device=device)).argmax(dim=1)
    return np.where(seen.element >= 0, rows.cpu().numpy()[seen.element], -1)


def recorded(
    adapter: Segmenting, models: Mapping[str, nn.Module], frames: Recorded, pictures: Path, found: dict[str, Path],
    name: str,
) -> dict[str, Any]:  # fmt: skip
    """Every role on recorded frames, on the points that the student's view shows.

    ``agreement``: class-balanced, with the teacher on its own view. ``car_recall``, ``car_precision``: of points in
    labelled boxes of cars, among the points in the photograph where boxes are labelled there only. The teacher stands
    there once more as ``teacher_direct``: given the student's view, which is what its user has without distillation.
    Pictures of the last frame go into a folder `name` of `pictures`, and into `found` by their captions.
    """
    source = frames.folder
    names, views = dict(models), {role: adapter.view(role) for role in models}
    theirs, ours = adapter.config.teacher, adapter.config.student
    alike = theirs.sees == ours.sees == "range" and theirs.intensity == ours.intensity
    rows = ours.beams or adapter.config.lidar.beams
    if "teacher" in models and alike and _takes(models["teacher"], rows, ours.columns):
        names["teacher_direct"], views["teacher_direct"] = models["teacher"], ours
    n, car = len(adapter.classes), adapter.classes.index(CAR) if CAR in adapter.classes else None
    matrices = {role: np.zeros((n, n), np.int64) for role in names}
    boxes = {role: {"hits": 0, "predicted": 0, "inside": 0} for role in names}
    for i in range(len(frames)):
        moment = frames[i]
        said = answers(adapter, names, moment, views)
        shown = said["student"] >= 0
        if "teacher" in said:
            reference = np.where(shown, said["teacher"], -1)
            for role, answer in said.items():
                both = (answer >= 0) & (reference >= 0)
                matrices[role] += confusion(answer[both], reference[both], n)
        if moment[0].boxes is not None and car is not None:
            inside, counted = _in_cars(moment[0]), shown & _labelled_area(moment[0], source)
            for role, answer in said.items():
                for key, value in in_boxes(answer == car, inside, counted & (answer >= 0)).items():
                    boxes[role][key] += value
        if i == len(frames) - 1:
            place = pictures / name
            place.mkdir(exist_ok=True)
            drawn = {r: a for r, a in said.items() if r != "teacher_direct"}
            made = overview_pictures(place, moment[0], drawn, adapter.classes)
            found |= {f"{name}: {caption}": path for caption, path in made.items()}
    return {
        "sources": source.sources, "frames": len(frames),
        "roles": {role: _summary(matrices[role], boxes[role]) for role in names},
        "majority_agreement": majority_agreement(matrices["teacher"]) if "teacher" in matrices else None,
        "warnings": list(frames.reader.warnings),
        **({} if car is not None else {"boxes": f"not measured: no class is called {CAR!r}"}),
    }  # fmt: skip


def _names(folders: Sequence[Recorded]) -> list[str]:
    """Each folder's layout, with a number where several have one."""
    layouts = [frames.folder.sources for frames in folders]
    return [x if layouts.count(x) == 1 else f"{x} {layouts[: i + 1].count(x)}" for i, x in enumerate(layouts)]


def _summary(matrix: np.ndarray, boxes: Mapping[str, int]) -> dict[str, float]:
    out = {}
    if matrix.any():
        out["agreement"] = balanced_agreement(matrix)
    if boxes["inside"]:
        out["car_recall"] = boxes["hits"] / boxes["inside"]
        out["car_precision"] = boxes["hits"] / max(boxes["predicted"], 1)
        out["points_in_cars"] = boxes["inside"]
    return out


def _in_cars(frame: Frame) -> np.ndarray:
    inside = np.zeros(len(frame.scan), dtype=bool)
    for box in frame.boxes or ():
        if box.name in CARS:
            inside |= box.inside(frame.scan.xyz, MARGIN)
    return inside


def _labelled_area(frame: Frame, source: Folder) -> np.ndarray:
    """KITTI labels what its photograph shows; elsewhere cars stand without a box."""
    if source.sources != "kitti" or not frame.pictures:
        return np.ones(len(frame.scan), dtype=bool)
    return in_view(frame.pictures[0].camera, frame.scan)
