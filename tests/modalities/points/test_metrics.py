from collections.abc import Callable

import numpy as np
import pytest

from xmodal_kd.modalities.points.evaluate.metrics import (
    Tally,
    balanced_agreement,
    confusion,
    in_boxes,
    iou,
    majority_agreement,
    miou,
    miou_interval,
    miou_labelled,
)

NAMES = ("ground", "car", "person")


def test_iou_is_that_of_sets_of_rows() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(-1, 3, 500), rng.integers(0, 3, 500)
    found = iou(confusion(predicted, labels, 3))
    known = np.flatnonzero(labels >= 0)
    for c in range(3):
        said, true = {i for i in known if predicted[i] == c}, {i for i in known if labels[i] == c}
        assert found[c] == pytest.approx(len(said & true) / len(said | true))


def test_a_class_that_is_only_predicted_counts_0_in_miou_and_not_among_the_labelled() -> None:
    """The union decides, as benchmarks have it; a class that is neither there nor predicted counts nowhere."""
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    matrix = confusion(predicted, labels, 4)
    assert iou(matrix)[2] == 0 and np.isnan(iou(matrix)[3])
    assert miou(matrix) == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert miou_labelled(matrix) == pytest.approx((0.5 + 1.0) / 2)
    tally = Tally(("ground", "car", "person", "pole"))
    tally.add(predicted, np.full(4, 0.9), labels, np.ones(4))
    found = tally.metrics()
    assert (found["miou"], found["miou_labelled"]) == (pytest.approx(0.5), pytest.approx(0.75))
    assert found["iou"] == {"ground": 0.5, "car": 1.0, "person": 0.0}


@pytest.mark.parametrize("mean", [miou, miou_labelled])
def test_a_mean_over_no_class_is_no_number(mean: Callable[[np.ndarray], float]) -> None:
    assert np.isnan(mean(np.zeros((3, 3), dtype=np.int64)))


def test_agreement_weighs_classes_alike_and_the_majority_gets_one_of_them() -> None:
    reference = np.array([0] * 90 + [1] * 10)
    always = confusion(np.zeros(100, dtype=np.int64), reference, 3)
    assert balanced_agreement(always) == majority_agreement(always) == 0.5
    half = confusion(np.array([0] * 45 + [1] * 45 + [1] * 10), reference, 3)
    assert balanced_agreement(half) == pytest.approx((0.5 + 1.0) / 2)


def test_rows_fall_into_bins_of_distance_and_all_count_once() -> None:
    tally = Tally(NAMES)
    labels = np.array([0, 0, 1, 1, 2, -1])
    predicted = np.array([0, 1, 1, 1, 0, 0])
    distance = np.array([1.0, 14.9, 20.0, 29.0, np.inf, 3.0])
    own = tally.add(predicted, np.full(6, 0.9), labels, distance)
    found = tally.metrics()
    assert own.sum() == found["rows"] == 5
    assert found["miou_by_range"] == {"0-15 m": pytest.approx(0.25), "15-30 m": pytest.approx(1.0)}, (
        "a car is predicted nearby"
    )
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["iou"]["person"] == 0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    tally = Tally(NAMES)
    labels = np.zeros(100, dtype=np.int64)
    predicted = np.array([0] * 70 + [1] * 30)
    tally.add(predicted, np.full(100, 0.9), labels, np.ones(100))
    assert tally.metrics()["ece"] == pytest.approx(0.2)
    sure = Tally(NAMES)
    sure.add(labels, np.ones(100), labels, np.ones(100))
    assert sure.metrics()["ece"] == pytest.approx(0.0)


def test_points_in_boxes_count_where_boxes_are_labelled() -> None:
    predicted, inside = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert in_boxes(predicted, inside, np.ones(4, bool)) == {"hits": 1, "predicted": 2, "inside": 2}
    assert in_boxes(predicted, inside, np.array([0, 1, 1, 1], bool)) == {"hits": 0, "predicted": 1, "inside": 1}


def test_the_interval_of_miou_is_over_frames() -> None:
    rng = np.random.default_rng(0)
    frames = [confusion(np.where(rng.random(200) < 0.7, y, 1 - y), y, 2) for y in rng.integers(0, 2, (20, 200))]
    found = miou_interval(frames)
    assert found is not None
    low, high = found
    assert low < miou(np.sum(frames, axis=0)) < high and high - low < 0.1
    assert miou_interval(frames) == [low, high], "the same frames, the same interval"
    assert miou_interval(frames[:1]) is None


def test_the_interval_is_that_of_resamples_taken_one_by_one() -> None:
    """To the bit; of 12 classes some are in few frames, so that resamples lack them, and one is in none."""
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 50, (12, 12)) for _ in range(9)]
    for number, frame in enumerate(frames):
        for lacking in (3, *((5,) if number else ()), *((7, 8) if number > 1 else ())):
            frame[lacking] = frame[:, lacking] = 0
    drawn = np.random.Generator(np.random.Philox(0)).multinomial(9, np.full(9, 1 / 9), size=1000)
    one_by_one = [miou(np.tensordot(weights, np.stack(frames), axes=1)) for weights in drawn]
    assert miou_interval(frames) == np.nanpercentile(one_by_one, [2.5, 97.5]).tolist()
