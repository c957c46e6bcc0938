"""Overlap of rotated boxes and average precision, against slow ones written from the definitions and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import detection as oracle

from xmodal_kd.modalities.points.evaluate import kitti_ap, nuscenes_ap
from xmodal_kd.modalities.points.views.overlap import iou

CAR = (0.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0)


def boxes(*some: tuple[float, ...]) -> np.ndarray:
    return np.array(some, float).reshape(-1, 7)


def some_boxes(n: int, rng: np.random.Generator) -> np.ndarray:
    low, high = [-9, -9, -0.3, 3, 1.5, 1.3, -3.2], [9, 9, 0.3, 5, 2, 1.8, 3.2]
    return rng.uniform(low, high, (n, 7))


@pytest.mark.parametrize(("other", "above", "space"), [
    (CAR, 1.0, 1.0),
    ((2.0, *CAR[1:]), 1 / 3, 1 / 3),
    ((0, 0, 0.75, 4, 2, 1.5, 0), 1.0, 1 / 3),
    ((0, 0, 0, 4, 2, 1.5, np.pi), 1.0, 1.0),
    ((0, 0, 0, 4, 2, 1.5, np.pi / 2), 1 / 3, 1 / 3),
    ((0, 0, 0, 2, 1, 1.5, 0.3), 1 / 4, 1 / 4),  # inside
    ((4.0, *CAR[1:]), 0.0, 0.0),  # touching
    ((9.0, *CAR[1:]), 0.0, 0.0),
    ((0, 0, 2, 4, 2, 1.5, 0), 1.0, 0.0),
])  # fmt: skip
def test_overlap_by_hand(other: tuple[float, ...], above: float, space: float) -> None:
    for one, two in ((CAR, other), (other, CAR)):
        assert iou(boxes(one), boxes(two), above=True).item() == pytest.approx(above, abs=1e-12)
        assert iou(boxes(one), boxes(two), above=False).item() == pytest.approx(space, abs=1e-12)


def test_overlap_agrees_with_clipping_edge_by_edge() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = some_boxes(30, rng), some_boxes(20, rng)
    theirs = np.concatenate([theirs, ours[:5] + 1e-3, ours[5:8]])
    for above in (True, False):
        expected = [[oracle.overlap(a.tolist(), b.tolist(), above) for b in theirs] for a in ours]
        np.testing.assert_allclose(iou(ours, theirs, above=above), expected, atol=1e-12)
    assert iou(ours[:0], theirs, above=True).shape == (0, 28)


def scenes(seed: int, *, rounded: bool) -> list[tuple[list[oracle.Thing], list[oracle.Thing]]]:
    """Frames of things, of which most are found, some twice, and of false alarms."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(8):
        truth = some_boxes(int(rng.integers(0, 7)), rng)
        near = truth[rng.random(len(truth)) < 0.8]
        found = np.concatenate([near + rng.normal(0, 0.08, near.shape), near[:1], some_boxes(2, rng)])
        scores = rng.random(len(found))
        scores = scores.round(1) if rounded else scores
        free = rng.random(len(truth)) < 0.3, rng.random(len(found)) < 0.15
        made.append((
            [{"box": b.tolist(), "optional": bool(o)} for b, o in zip(truth, free[0], strict=True)],
            [
                {"box": b.tolist(), "score": float(s), "optional": bool(o)}
                for b, s, o in zip(found, scores, free[1], strict=True)
            ],
        ))  # fmt: skip
    return made


def as_scene(truth: list[oracle.Thing], found: list[oracle.Thing], above: bool) -> kitti_ap.Scene:
    return kitti_ap.Scene(
        iou(boxes(*(one["box"] for one in found)), boxes(*(one["box"] for one in truth)), above=above),
        np.array([one["score"] for one in found]), np.array([one["optional"] for one in truth], bool),
        np.array([one["optional"] for one in found], bool),
    )  # fmt: skip


@pytest.mark.parametrize("rounded", [False, True], ids=["scores apart", "equal scores"])
@pytest.mark.parametrize("above", [True, False], ids=["bev", "3d"])
def test_kitti_ap_agrees_with_its_definition(above: bool, rounded: bool) -> None:
    """It also equals the evaluation that OpenPCDet ships, tried on 360 sets of boxes: to 1e-16."""
    values = []
    for seed in range(4):
        frames = scenes(seed, rounded=rounded)
        for least in (0.3, 0.6):
            found = kitti_ap.average_precision([as_scene(*frame, above) for frame in frames], least)
            assert found == pytest.approx(oracle.kitti_ap(frames, least, above), abs=1e-12)
            values.append(found)
    assert len(set(values)) > 4 and max(values) > 0.15


def test_kitti_ap_by_hand() -> None:
    """One thing found with certainty, one missed: every threshold has precision 1, up to the recall of half."""
    car, there = [{"box": CAR, "optional": False}], [{"box": CAR, "score": 0.9, "optional": False}]
    frames = [as_scene(car, there, True), as_scene(car, [], True)]
    assert kitti_ap.average_precision(frames, 0.7) == 0.0, "one threshold stands for recall 0, which is not counted"
    many = [as_scene(car, there, True)] * 40 + [as_scene(car, [], True)] * 40
    assert kitti_ap.average_precision(many, 0.7) == pytest.approx(0.5, abs=0.03)
    assert np.isnan(kitti_ap.average_precision([as_scene([], there, True)], 0.7))


@pytest.mark.parametrize("rounded", [False, True], ids=["scores apart", "equal scores"])
def test_nuscenes_ap_agrees_with_its_definition(rounded: bool) -> None:
    """It also equals nuScenes' own evaluation, tried on 160 sets of boxes: to the bit."""
    values = []
    for seed in range(4):
        frames = [
            ([tuple(thing["box"][:2]) for thing in truth], [(tuple(one["box"][:2]), one["score"]) for one in found])
            for truth, found in scenes(seed, rounded=rounded)
        ]
        places = [
            nuscenes_ap.Places(
                np.array(truth).reshape(-1, 2), np.array([p for p, _ in found]).reshape(-1, 2),
                np.array([s for _, s in found]),
            )
            for truth, found in frames
        ]  # fmt: skip
        for distance in nuscenes_ap.DISTANCES[::2]:
            found = nuscenes_ap.average_precision(places, distance)
            assert found == pytest.approx(oracle.nuscenes_ap(frames, distance), abs=1e-12)
            values.append(found)
    assert len(set(values)) > 4 and max(values) > 0.3


def test_nuscenes_ap_by_hand() -> None:
    """Everything found before any false alarm. Half of it: the recalls up to one half, of those from 0.11 to 1."""
    here = nuscenes_ap.Places(np.zeros((1, 2)), np.array([[0.1, 0.0], [9.0, 9.0]]), np.array([0.9, 0.1]))
    gone = nuscenes_ap.Places(np.zeros((1, 2)), np.zeros((0, 2)), np.zeros(0))
    last = 0.5  # at a recall of 1 the precision is that behind the false alarm
    assert nuscenes_ap.average_precision([here], 0.5) == pytest.approx((89 + (last - 0.1) / 0.9) / 90)
    assert nuscenes_ap.average_precision([gone], 0.5) == 0.0
    sure = nuscenes_ap.Places(here.truth, here.found[:1], here.scores[:1])
    assert nuscenes_ap.average_precision([sure, gone], 0.5) == pytest.approx(40 / 90)
    assert np.isnan(nuscenes_ap.average_precision([nuscenes_ap.Places(here.truth[:0], here.found, here.scores)], 0.5))
