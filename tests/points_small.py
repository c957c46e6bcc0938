"""Small streets, small segmenters and runs of them, for the tests of points."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch
from xmodal_kd.cli.main import call
from xmodal_kd.modalities.points.adapter import PointsAdapter
from xmodal_kd.modalities.points.data.config import PointsData, View
from xmodal_kd.modalities.points.data.frame import CLASSES, Scan
from xmodal_kd.modalities.points.data.simulator.cast import simulate
from xmodal_kd.modalities.points.data.simulator.sensors import SENSORS
from xmodal_kd.modalities.points.data.simulator.write import write_semantickitti
from xmodal_kd.modalities.points.export.saved_folder import save_model
from xmodal_kd.modalities.points.models import MODELS
from xmodal_kd.modalities.points.views.source import PointsSource
from xmodal_kd.runtime.random_streams import Streams

COLUMNS = 64
IMAGE = (24, 64)
#: From the LiDAR's axes to those of a camera at its place.
AHEAD = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
#: What each kind of view is called in a recipe, by a name for it here. The simulator takes its columns from all views.
VIEWS: dict[str, dict[str, Any]] = {
    "scan": {"sees": "range", "columns": COLUMNS},
    "sparse": {"sees": "range", "beams": 16, "columns": COLUMNS},
    "image": {"sees": "image", "columns": COLUMNS},
    "points": {"sees": "points", "beams": 16, "columns": COLUMNS, "points": 300},
    "fused": {"sees": "range", "columns": COLUMNS, "sweeps": 2},
}
#: A model of each kind of view, as small as it gets.
SMALLEST: dict[str, tuple[str, dict[str, Any]]] = {
    "range": ("range_unet", {"width": 4, "levels": 2}),
    "image": ("image_unet", {"width": 4, "levels": 2}),
    "points": ("point_transformer", {"width": 8, "blocks": 1, "heads": 2, "window": 16}),
}
#: The smoke recipe made still smaller.
SETS = (
    "data.scenes={train: 6, dev: 2, test: 3}", f"data.teacher.columns={COLUMNS}", f"data.student.columns={COLUMNS}",
    "teacher.params={width: 4, levels: 2}", "student.params={width: 4, levels: 2}", "teacher.train.steps=4",
    "teacher.train.eval_every=4", "train.steps=4", "train.eval_every=4", "train.batch_size=4",
    "train.checkpoint_every=2", "train.keep=9",
)  # fmt: skip


def points_data(
    teacher: str | dict[str, Any] = "scan", student: str | dict[str, Any] = "sparse", **more: Any
) -> PointsData:
    """Simulated frames by default: six to train with, two and two to measure on."""
    seen, sees = (VIEWS[side] if isinstance(side, str) else side for side in (teacher, student))
    content = {
        "scenes": {"train": 6, "dev": 2, "test": 2}, "teacher": seen, "student": sees,
        "image": IMAGE, "augment": {"rotate": True, "flip": True}, "supervoxels": 3,
    }  # fmt: skip
    return PointsData.model_validate(content | more)


def adapter(
    teacher: str | dict[str, Any] = "scan", student: str | dict[str, Any] = "sparse", size: int = 2, **more: Any
) -> PointsAdapter:
    return PointsAdapter(points_data(teacher, student, **more), Streams(1), size)


def smallest(made: PointsAdapter, role: str) -> nn.Module:
    """A model of what the role sees, always with the same weights."""
    name, params = SMALLEST[made.view(role).sees]
    torch.manual_seed(0)
    return made.build(role, name, params)


def batch_of(source: PointsSource, indexes: Sequence[int] = (0, 1), epoch: int = 0) -> Batch:
    return source.collate([source.sample(i, epoch) for i in indexes])


def equal(one: Any, other: Any) -> bool:
    """Whether two batches are the same to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, Tensor):
        return torch.equal(torch.nan_to_num(one, nan=-7.0), torch.nan_to_num(other, nan=-7.0))
    if hasattr(one, "source"):  # a correspondence
        return all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("source", "target", "weight", "item"))
    return bool(one == other)


def drive(folder: Path, frames: int = 4, *, sequence: int = 0, camera: bool = False, index: int = 0) -> Path:
    """A SemanticKITTI folder with one more sequence of simulated frames in it."""
    from xmodal_kd.modalities.points.data.simulator.camera import CameraSpec

    spec = CameraSpec(height=IMAGE[0], width=IMAGE[1]) if camera else None
    sensor = SENSORS["hdl64e"].with_columns(COLUMNS)
    made = simulate("train", index, sensor, camera=spec, sweeps=frames)
    write_semantickitti(folder, sequence, made[::-1])
    return folder


def run(
    out: Path, *sets: str, recipe: str = "smoke/points", more: Sequence[str] = (), export: bool = False
) -> int:  # fmt: skip
    """The smoke recipe, smaller; a later setting of a key takes the place of an earlier one."""
    listed = [word for item in [*SETS, *sets] for word in ("--set", item)]
    listed += [] if export else ["--no-export"]
    return call(["run", recipe, "--out", str(out), "--quiet", *listed, *more])


def street(sensor: str = "hdl64e", columns: int = 128) -> Scan:
    """A flat road between two walls with a box on it, in the order in which the sensor's lasers see it."""
    spec = SENSORS[sensor].with_columns(columns)
    rays = spec.rays().reshape(-1, 3).astype(np.float64)
    with np.errstate(divide="ignore"):
        ground = np.where(rays[:, 2] < 0, -spec.height / rays[:, 2], np.inf)
        walls = 8 / np.maximum(abs(rays[:, 1]), 1e-9)
    box = np.where((abs(rays[:, 1]) < 0.1) & (rays[:, 0] > 0.8), 6 / np.maximum(rays[:, 0], 1e-9), np.inf)
    distance = np.minimum(np.minimum(ground, walls), box)
    hit = np.flatnonzero(distance < 60)
    xyz = (rays[hit] * distance[hit, None]).astype(np.float32)
    return Scan(xyz, np.full(len(hit), 0.5, np.float32), hit // columns, spec.beams)


def save(folder: Path, name: str, view: View, channels: int, **params: Any) -> Path:
    torch.manual_seed(0)
    kind = MODELS[name]
    model = kind(kind.Config(**params), channels=channels, classes=len(CLASSES)).eval()
    if hasattr(model, "head"):
        with torch.no_grad():  # an untrained model that is sure of something
            model.head.weight.mul_(20)
    card = {"model": name, "params": params, "channels": channels, "classes": CLASSES, "view": view}
    return save_model(folder, model, {**card, "image": (32, 64), "sensor": "hdl64e"})


class Inside:
    """Cells of a comparison, each run in this process to its end."""

    def __call__(self, arguments: Sequence[str], log: IO[bytes], env: dict[str, str], lock: int) -> Any:
        text = io.StringIO()
        with redirect_stdout(text), redirect_stderr(text):
            status = call(list(arguments))
        log.write(text.getvalue().encode())
        return Ended(status)


class Ended:
    def __init__(self, status: int) -> None:
        self.status = status

    def poll(self) -> int:
        return self.status

    def send_signal(self, number: int) -> None: ...


def write_calibration(path: Path, **changes: object) -> Path:
    matrices = {"intrinsics": [[64, 0, 64], [0, 64, 32], [0, 0, 1]], "lidar_to_camera": AHEAD.tolist()}
    path.write_text(json.dumps(matrices | changes))
    return path
