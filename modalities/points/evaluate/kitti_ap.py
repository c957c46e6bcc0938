"""KITTI's average precision of one class: greedy matches by overlap, 40 recall positions (Simonelli et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

#: Recall positions; the one at 0 is not among them.
POSITIONS = 40


@dataclass(frozen=True)
class Scene:
    """One frame as one class at one level sees it.

    Attributes:
        overlap: ``(found, truth)`` of detections with labelled boxes, those of neighbouring classes among the latter.
        scores: ``(found,)`` of the detections.
        passed: ``(truth,)`` boxes that need not be found and cost nothing if they are: of harder levels, of neighbours.
        small: ``(found,)`` detections that count neither way: of fewer pixels than the level asks for.
    """

    overlap: Float[np.ndarray, "found truth"]
    scores: Float[np.ndarray, " found"]
    passed: Bool[np.ndarray, " truth"]
    small: Bool[np.ndarray, " found"]


def average_precision(scenes: Sequence[Scene], least: float) -> float:
    """The mean over recalls 1/40, 2/40, ... 1 of the best precision at that recall or above; NaN without any truth.

    A detection matches a box whose overlap with it is above `least`. Thresholds are the scores at which the recall
    comes nearest to each position; at each of them boxes take, in the file's order, the free detection of largest
    overlap. There are no more thresholds than hits, here as in the benchmark's program: of fewer than 40 boxes even
    perfect detections score less than 1.
    """
    wanted = sum(int((~scene.passed).sum()) for scene in scenes)
    if not wanted:
        return float("nan")
    pairs = [[np.flatnonzero(column > least).tolist() for column in scene.overlap.T] for scene in scenes]
    hits = np.concatenate([_hits(s, p) for s, p in zip(scenes, pairs, strict=True)] or [np.zeros(0)])
    precision = np.zeros(POSITIONS + 1)
    for at, threshold in enumerate(_thresholds(hits, wanted)):
        counts = np.array([_counts(s, p, threshold) for s, p in zip(scenes, pairs, strict=True)]).sum(axis=0)
        precision[at] = counts[0] / max(counts.sum(), 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[1:].mean())


def _hits(scene: Scene, pairs: list[list[int]]) -> Float[np.ndarray, " hits"]:
    """Scores of the detections that boxes take, each its most confident free one."""
    free = np.ones(len(scene.scores), bool)
    found = []
    for box, candidates in enumerate(pairs):
        left = [i for i in candidates if free[i]]
        if not left:
            continue
        taken = max(left, key=lambda i: (scene.scores[i], -i))
        free[taken] = False
        if not (scene.passed[box] or scene.small[taken]):
            found.append(scene.scores[taken])
    return np.array(found)


def _thresholds(hits: Float[np.ndarray, " hits"], wanted: int) -> list[float]:
    """The scores whose recall is nearest to 0, 1/40, ..., as far as hits reach."""
    found: list[float] = []
    hits = np.sort(hits)[::-1]
    recall = 0.0
    for i, score in enumerate(hits):
        here, after = (i + 1) / wanted, (i + 2) / wanted if i < len(hits) - 1 else (i + 1) / wanted
        if i < len(hits) - 1 and after - recall < recall - here:
            continue
        found.append(float(score))
        recall += 1 / POSITIONS
    return found


def _counts(scene: Scene, pairs: list[list[int]], threshold: float) -> tuple[int, int]:
    """Hits and false alarms among the detections of this score or above."""
    shown = scene.scores >= threshold
    free = shown.copy()
    hits = 0
    for box, candidates in enumerate(pairs):
        left = [i for i in candidates if free[i]]
        if not left:
            continue
        counting = [i for i in left if not scene.small[i]]
        taken = max(counting, key=lambda i: (scene.overlap[i, box], -i)) if counting else left[0]
        free[taken] = False
        hits += not (scene.passed[box] or scene.small[taken])
    return hits, int((free & ~scene.small).sum())


__all__ = ["POSITIONS", "Scene", "average_precision"]
