"""Small streets and small detectors, for the tests of detection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.points.adapter import PointsAdapter
from xmodal_kd.modalities.points.data.config import PointsData
from xmodal_kd.modalities.points.tasks.detection import DetectionAdapter
from xmodal_kd.runtime.random_streams import Streams

#: The smallest detector of points.
PILLARS: tuple[str, dict[str, Any]] = ("centerpoint_pillar", {"width": 4})
RANGE = [-12.8, -6.4, 12.8, 6.4]
#: The smoke recipe made still smaller.
SETS = (
    "data.scenes={train: 4, dev: 1, test: 2}", f"data.detection.range={RANGE}", "data.teacher.columns=64",
    "data.student.columns=64", "teacher.params={width: 4}", "student.params={width: 4}", "teacher.train.steps=3",
    "teacher.train.eval_every=3", "train.steps=3", "train.eval_every=3", "train.batch_size=2",
    "teacher.train.batch_size=2",
)  # fmt: skip


def detection_data(**more: Any) -> PointsData:
    content = {
        "task": "detection", "scenes": {"train": 4, "dev": 1, "test": 2}, "detection": {"range": RANGE},
        "teacher": {"sees": "pillars", "columns": 64}, "student": {"sees": "pillars", "beams": 16, "columns": 64},
        "augment": {"rotate": True, "flip": True, "scale": [0.9, 1.1]},
    }  # fmt: skip
    return PointsData.model_validate(content | more)


def adapter(**more: Any) -> DetectionAdapter:
    data = detection_data(**more)
    made = PointsAdapter.of(data)(data, Streams(1), 2)
    assert isinstance(made, DetectionAdapter)
    return made


def smallest(made: DetectionAdapter, role: str) -> nn.Module:
    """A detector with always the same weights."""
    torch.manual_seed(0)
    sees = made.view(role).sees
    return made.build(role, *(("centerpoint_camera", {"width": 4, "picture": 4}) if sees == "image" else PILLARS))


def run(out: Path, *sets: str, recipe: str = "smoke/detection", more: Sequence[str] = ()) -> int:
    listed = [word for item in [*SETS, *sets] for word in ("--set", item)]
    return call(["run", recipe, "--out", str(out), "--quiet", *listed, *more])
