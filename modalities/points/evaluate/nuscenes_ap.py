"""nuScenes' average precision of one class: matches by the distance of centres on the ground (Caesar et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

#: Metres within which a detection is a hit.
DISTANCES = (0.5, 1.0, 2.0, 4.0)
#: Recall and precision below which nothing counts.
LEAST = 0.1


@dataclass(frozen=True)
class Places:
    """One frame as one class sees it.

    Attributes:
        truth: ``(t, 2)`` centres of the labelled boxes on the ground, metres.
        found: ``(f, 2)`` those of the detections.
        scores: ``(f,)`` of the detections.
    """

    truth: Float[np.ndarray, "t 2"]
    found: Float[np.ndarray, "f 2"]
    scores: Float[np.ndarray, " f"]


def average_precision(frames: Sequence[Places], distance: float) -> float:
    """The area under the precision over recalls above 0.1, of which 0.1 is taken off, scaled to 1; NaN without truth.

    Detections of all frames in order of their scores: each takes the nearest box of its frame that is free, and is a
    hit if that is nearer than `distance`. Precision is interpolated at 101 recalls and 0 beyond the largest.
    """
    wanted = sum(len(frame.truth) for frame in frames)
    if not wanted:
        return float("nan")
    scores = np.concatenate([frame.scores for frame in frames])
    owner = np.repeat(np.arange(len(frames)), [len(frame.scores) for frame in frames])
    place = np.concatenate([np.arange(len(frame.scores)) for frame in frames])
    away = [np.linalg.norm(frame.found[:, None] - frame.truth[None], axis=2) for frame in frames]
    hits = np.zeros(len(scores), bool)
    order = np.argsort(scores, kind="stable")[::-1]
    for rank, i in enumerate(order):
        row = away[owner[i]][place[i]]
        if len(row) and row.min() < distance:
            hits[rank] = True
            away[owner[i]][:, row.argmin()] = np.inf
    if not hits.any():
        return 0.0
    right = np.cumsum(hits)
    recalls = np.linspace(0, 1, 101)
    precision = np.interp(recalls, right / wanted, right / np.arange(1, len(hits) + 1), right=0)
    counted = np.maximum(precision[round(100 * LEAST) + 1 :] - LEAST, 0)
    return float(counted.mean() / (1 - LEAST))


__all__ = ["DISTANCES", "Places", "average_precision"]
