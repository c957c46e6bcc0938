"""Detection metrics from their definitions: clipping edge by edge, benchmark protocols in loops over dictionaries.

KITTI: Geiger et al., 2012, with the 40 recall positions of Simonelli et al., 2019. nuScenes: Caesar et al., 2020, 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, hypot, sin
from typing import Any

Point = tuple[float, float]
Box = Sequence[float]
Thing = Mapping[str, Any]


def ring(box: Box) -> list[Point]:
    """Corners anticlockwise of (x, y, z, length, width, height, yaw)."""
    x, y, _, length, width, _, yaw = box
    return [
        (
            x + cos(yaw) * a * length / 2 - sin(yaw) * b * width / 2,
            y + sin(yaw) * a * length / 2 + cos(yaw) * b * width / 2,
        )
        for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ]


def area(polygon: Sequence[Point]) -> float:
    following = [*polygon[1:], *polygon[:1]]
    return abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(polygon, following, strict=True))) / 2


def clipped(polygon: Sequence[Point], start: Point, end: Point) -> list[Point]:
    """What of a convex polygon lies left of the line from `start` to `end` (Sutherland, Hodgman, 1974)."""

    def side(p: Point) -> float:
        return (end[0] - start[0]) * (p[1] - start[1]) - (end[1] - start[1]) * (p[0] - start[0])

    kept: list[Point] = []
    for here, after in zip(polygon, [*polygon[1:], *polygon[:1]], strict=True):
        a, b = side(here), side(after)
        if a >= 0:
            kept.append(here)
        if (a >= 0) != (b >= 0):
            share = a / (a - b)
            kept.append((here[0] + share * (after[0] - here[0]), here[1] + share * (after[1] - here[1])))
    return kept


def overlap(one: Box, other: Box, above: bool) -> float:
    """Intersection over union, from above or of the volumes."""
    polygon, edges = ring(one), ring(other)
    for start, end in zip(edges, [*edges[1:], *edges[:1]], strict=True):
        polygon = clipped(polygon, start, end) if polygon else polygon
    shared = area(polygon) if polygon else 0.0
    if above:
        return shared / (one[3] * one[4] + other[3] * other[4] - shared)
    top = min(one[2] + one[5] / 2, other[2] + other[5] / 2)
    bottom = max(one[2] - one[5] / 2, other[2] - other[5] / 2)
    shared *= max(top - bottom, 0.0)
    return shared / (one[3] * one[4] * one[5] + other[3] * other[4] * other[5] - shared)


def kitti_ap(frames: Sequence[tuple[Sequence[Thing], Sequence[Thing]]], least: float, above: bool) -> float:
    """AP of one class over R40, from 0 to 1.

    Args:
        frames: labelled things (``box``, ``optional``: it need not be found) and detections (``box``, ``score``,
            ``optional``: it is never a false alarm, and a hit of it counts nothing).
    """
    wanted = sum(not thing["optional"] for truth, _ in frames for thing in truth)
    hit_scores: list[float] = []
    for truth, found in frames:  # every thing takes its most confident detection
        used: set[int] = set()
        for thing in truth:
            best = None
            for i, one in enumerate(found):
                if i in used or overlap(one["box"], thing["box"], above) <= least:
                    continue
                if best is None or one["score"] > found[best]["score"]:
                    best = i
            if best is not None:
                used.add(best)
                if not thing["optional"] and not found[best]["optional"]:
                    hit_scores.append(found[best]["score"])
    hit_scores.sort(reverse=True)
    thresholds: list[float] = []
    position = 0.0  # the recall that a threshold is looked for
    for i, score in enumerate(hit_scores):
        last = i + 1 == len(hit_scores)
        now, later = (i + 1) / wanted, (i + 2) / wanted
        if last or later - position >= position - now:  # the next hit would not come nearer to it
            thresholds.append(score)
            position += 1 / 40
    precision = [0.0] * 41
    for k, threshold in enumerate(thresholds):
        hits = alarms = 0
        for truth, found in frames:
            free = [i for i, one in enumerate(found) if one["score"] >= threshold]
            for thing in truth:
                near = [(overlap(found[i]["box"], thing["box"], above), -i) for i in free]
                serious = [(o, i) for o, i in near if o > least and not found[-i]["optional"]]
                others = [i for o, i in near if o > least and found[-i]["optional"]]
                if not serious and not others:
                    continue
                taken = -max(serious)[1] if serious else -max(others)
                free.remove(taken)
                hits += not thing["optional"] and not found[taken]["optional"]
            alarms += sum(not found[i]["optional"] for i in free)
        precision[k] = hits / (hits + alarms) if hits + alarms else 0.0
    return sum(max(precision[k:]) for k in range(1, 41)) / 40


def nuscenes_ap(frames: Sequence[tuple[Sequence[Point], Sequence[tuple[Point, float]]]], distance: float) -> float:
    """AP of one class: recall and precision above 0.1, 101 recalls, centres nearer than `distance` on the ground."""
    wanted = sum(len(truth) for truth, _ in frames)
    ranked = [(score, f, i) for f, (_, found) in enumerate(frames) for i, (_, score) in enumerate(found)]
    ranked.sort(reverse=True)
    taken: set[tuple[int, int]] = set()
    recall, precision, hits = [], [], 0
    for rank, (_, f, i) in enumerate(ranked, 1):
        truth, found = frames[f]
        x, y = found[i][0]
        free = [(hypot(x - tx, y - ty), t) for t, (tx, ty) in enumerate(truth) if (f, t) not in taken]
        if free and min(free)[0] < distance:
            taken.add((f, min(free)[1]))
            hits += 1
        recall.append(hits / wanted)
        precision.append(hits / rank)
    total = 0.0
    for step in range(11, 101):
        total += max(between(step / 100, recall, precision) - 0.1, 0.0)
    return total / 90 / 0.9 if hits else 0.0


def between(at: float, recall: Sequence[float], precision: Sequence[float]) -> float:
    """Linear between the last point not beyond `at` and the next; before the first its value, after the last 0."""
    if not recall or at > recall[-1]:
        return 0.0
    if at < recall[0]:
        return precision[0]
    last = max(i for i, r in enumerate(recall) if r <= at)
    if last + 1 == len(recall):
        return precision[last]
    share = (at - recall[last]) / (recall[last + 1] - recall[last])
    return precision[last] + share * (precision[last + 1] - precision[last])
