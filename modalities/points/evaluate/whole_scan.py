"""A class for every point of a scan, whatever of them a model itself sees: what its user gets, and benchmarks count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor, nn

from ..data.config import PointsData, View
from ..data.frame import UNLABELLED, Frame
from ..data.frames import Frames
from ..views.views import see
from .metrics import PointTally

#: Metres from the sensor within which returns are from the vehicle that carries it.
VEHICLE = 1.0


@dataclass(frozen=True)
class Answers:
    """Of every point of a sweep.

    Attributes:
        labels: ``(n,)`` class; -1 for returns from the vehicle itself, and for all where the model sees no point.
        confidence: ``(n,)`` probability that the model gives its class, 0 where there is none.
        seen: ``(n,)`` whether the model itself saw the point; others have the answer of the nearest that it saw.
    """

    labels: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    seen: Bool[np.ndarray, " n"]


def whole_scan(model: nn.Module, frames: list[Frame], view: View, data: PointsData) -> Answers:
    """What a model of scans makes of the newest of `frames`, whose rings are known where the view needs them."""
    scan = frames[0].scan
    found = Answers(np.full(len(scan), UNLABELLED), np.zeros(len(scan)), np.zeros(len(scan), bool))
    outside = np.flatnonzero(scan.distance >= VEHICLE)
    if not len(outside):
        return found
    seen = see([replace(frames[0], scan=scan[outside]), *frames[1:]], view, data)
    here = seen.element >= 0
    if not here.any():
        return found
    rows, sure = _sets(model, seen.inputs, view.points) if view.sees == "points" else answer(model, seen.inputs[None])
    # hidden points of a cell, beams and ranges that the model does not see: as the nearest point that it sees
    element, xyz = seen.element.copy(), scan.xyz[outside]
    if not here.all():
        element[~here] = element[here][cKDTree(xyz[here]).query(xyz[~here])[1]]
    found.labels[outside], found.confidence[outside], found.seen[outside] = rows[element], sure[element], here
    return found


def over_points(model: nn.Module, frames: Frames, view: View, data: PointsData) -> dict[str, Any]:
    """Metrics over all labelled points of the labelled frames; empty for a model of photographs, which show few."""
    if view.sees == "image":
        return {}
    tally = PointTally(data.taxonomy.names)
    for index in frames.labelled:
        sweeps = frames[index]
        labels = sweeps[0].scan.labels
        if labels is not None:
            tally.add(whole_scan(model, sweeps, view, data).labels, labels)
    return tally.metrics()


def _sets(model: nn.Module, points: Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Class and confidence of each point.

    The model was trained on so many points drawn from a scan. So the scan is dealt into sets of about that size, each
    spread over all of it, rather than given whole or thinned evenly, at a density that the model never saw.
    """
    rows = len(points)
    labels, confidence = np.empty(rows, dtype=np.int64), np.empty(rows)
    order = np.random.default_rng(0).permutation(rows)
    for part in np.array_split(order, -(-rows // size)):
        part.sort()  # in the order of the file
        labels[part], confidence[part] = answer(model, points[torch.from_numpy(part)], torch.tensor([len(part)]))
    return labels, confidence


@torch.no_grad()
def answer(model: nn.Module, *inputs: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Class and confidence of each row of what a model is given."""
    device = next(model.parameters()).device
    logits = model(*(value.to(device) for value in inputs))
    sure, best = torch.softmax(logits.float(), dim=1).max(dim=1)
    return best.reshape(-1).cpu().numpy(), sure.reshape(-1).double().cpu().numpy()


__all__ = ["VEHICLE", "Answers", "answer", "over_points", "whole_scan"]
