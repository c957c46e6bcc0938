"""Statistics: intervals over items drawn together, and when a gap means nothing."""

from __future__ import annotations

import numpy as np
import pytest

from xmodal_kd.adapter.adapter import Score
from xmodal_kd.report.content import _gain
from xmodal_kd.report.markdown import _lead, of_items
from xmodal_kd.report.statistics import gap_closed, paired_interval, ratio


def scores(errors: list[float], units: float = 10.0) -> list[Score]:
    return [Score(f"item{i}", "g", e, units) for i, e in enumerate(errors)]


def noisy(mean: float, seed: int, n: int = 200) -> list[Score]:
    return scores(np.random.default_rng(seed).poisson(mean, n).astype(float).tolist())


def test_ratio_is_over_units_not_a_mean_of_ratios() -> None:
    assert ratio([Score("a", "g", 1, 1), Score("b", "g", 0, 9)]) == 0.1
    assert ratio([]) == 0


def test_a_constant_difference_has_an_interval_of_no_width() -> None:
    a = noisy(4, 0)
    b = [Score(s.item, s.group, s.errors + 1, s.units) for s in a]
    assert paired_interval(b, a) == pytest.approx((0.1, 0.1))


def test_pairing_is_by_item_whatever_the_order() -> None:
    a, b = noisy(4, 0), noisy(3, 1)
    assert paired_interval(a, b[::-1]) == paired_interval(a, b)
    assert paired_interval(a, [*b, Score("only here", "g", 1e6, 1)]) == paired_interval(a, b)


def test_one_item_gives_no_interval() -> None:
    gain = _gain({"control": scores([3]), "student": scores([2])}, "control")
    assert gain == {"difference": pytest.approx(0.1), "interval": None}
    assert _lead(gain, "control", lower=True) == "Control less student: +0.1000 (one test item: no interval). "
    assert _lead(gain, "control", lower=False).startswith("Student less control: +0.1000 "), "of an accuracy"
    several = _gain({"control": scores([3, 3]), "student": scores([2, 2])}, "control")
    assert several is not None and several["interval"] == pytest.approx([0.1, 0.1])


def test_swapping_sides_mirrors_the_interval() -> None:
    a, b = noisy(4, 0), noisy(3, 1)
    low, high = paired_interval(a, b)
    assert low < high and paired_interval(b, a) == pytest.approx((-high, -low))


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of 200 pairs of models that differ by 0.1, about 95 % of the intervals hold it."""
    hits = 0
    for seed in range(200):
        low, high = paired_interval(noisy(4, seed, 80), noisy(3, 1000 + seed, 80), resamples=400)
        hits += low <= 0.1 <= high
    assert 180 <= hits <= 199


def test_no_item_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="no item was scored on both sides"):
        paired_interval(scores([1, 2]), [])


@pytest.mark.parametrize(("student", "share"), [(6.0, 0.0), (4.0, 0.5), (2.0, 1.0), (1.0, 1.25), (7.0, -0.25)])
def test_gap_closed_by_hand(student: float, share: float) -> None:
    assert gap_closed(scores([2.0] * 9), scores([6.0] * 9), scores([student] * 9)) == (pytest.approx(share), None)


def test_a_gap_within_the_noise_is_null_with_a_reason() -> None:
    share, reason = gap_closed(noisy(4, 0), noisy(4, 1), noisy(4, 2))
    assert share is None and reason is not None and "less than the noise" in reason


def test_equal_models_have_no_gap() -> None:
    same = scores([3.0] * 5)
    assert gap_closed(same, same, same)[0] is None


def test_a_teacher_worse_than_the_control_is_null_with_a_reason() -> None:
    """Else a student that got worse would have closed a positive share."""
    share, reason = gap_closed(scores([6.0] * 9), scores([2.0] * 9), scores([4.0] * 9))
    assert share is None and reason is not None and "worse than the control" in reason


@pytest.mark.parametrize("missing", range(3))
def test_what_was_not_scored_gives_no_gap(missing: int) -> None:
    given = [scores([float(i)] * 5) for i in (1, 3, 2)]
    given[missing] = []
    share, reason = gap_closed(*given)
    assert share is None and reason is not None and "not scored" in reason


def test_one_item_closes_no_gap() -> None:
    one = [Score("draw-0", "test", 1.0, 1.0)]
    assert gap_closed(one, [Score("draw-0", "test", 2.0, 1.0)], one) == (
        None, "one test item (or draw) says nothing of noise"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "lower", "said"),
    [
        ((0.30, 0.20), True, ""),
        ((0.70, 0.80), False, ""),
        ((0.05, 0.06), False, "the student is 0.0100 better"),
        ((0.06, 0.04), False, "the student is 0.0200 worse"),
    ],
)
def test_a_gain_that_is_not_the_table_s_difference_says_so(values: tuple[float, float], lower: bool, said: str) -> None:
    """Of items one by one it is another number where a metric is no mean over items, as mAP and mIoU are none."""
    roles = {role: {"metrics": {"m": value}} for role, value in zip(("control", "student"), values, strict=True)}
    content = {"metric": {"name": "m", "lower_is_better": lower}, "roles": roles, "gain": {"difference": 0.1}}
    assert said in of_items(content) and bool(of_items(content)) == bool(said)
