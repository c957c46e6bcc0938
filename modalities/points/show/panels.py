"""Clouds on a run's page: what each role makes of a frame's points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from xmodal_kd.adapter.panels import Panel, clouds

from ..data.frame import Frame
from .overview import Segmenting, answers
from .palette import COLOURS


def show(adapter: Segmenting, models: Mapping[str, nn.Module]) -> Sequence[Panel]:
    """The first test frame, and the last of each folder of recorded frames."""
    frames = adapter.data("test").frames[0]
    made = [_cloud(frames[0], answers(adapter, models, frames), "The first frame of the test split.", adapter.classes)]
    for recorded in adapter.real:
        moment = recorded[len(recorded) - 1]
        source = recorded.folder.sources
        said = answers(adapter, models, moment)
        made.append(_cloud(moment[0], said, f"A recorded frame ({source}).", adapter.classes))
    return made


def glimpse(adapter: Segmenting, role: str, model: nn.Module) -> Sequence[Panel]:
    """The first dev frame, as one role labels it now."""
    frames = adapter.data("dev").frames[0]
    note = "The first frame of the dev split at one evaluation after another: the number is the step."
    panel = _cloud(frames[0], answers(adapter, {role: model}, frames), note, adapter.classes)
    return [replace(panel, title="What is seen while it learns", replaces=())]


def _cloud(frame: Frame, said: Mapping[str, np.ndarray], note: str, classes: Sequence[str]) -> Panel:
    """Held against the labels, or against the teacher where there are none."""
    views, reference, labels = dict(said), "teacher" if "teacher" in said else None, frame.scan.labels
    if labels is not None and (labels >= 0).any():
        views, reference = {"labels": labels} | views, "labels"
    note += " A role shows the points that its own view holds: fewer beams, fewer points."
    return clouds(
        f"Points of {frame.key}", frame.scan.xyz, views, classes=classes, reference=reference, note=note,
        colours=[COLOURS[i % len(COLOURS)] for i in range(len(classes))],
        replaces=["mIoU against the beams of the scan"],
    )  # fmt: skip


__all__ = ["glimpse", "show"]
