"""Numbers of a comparison: against scipy, closed forms and examples by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from xmodal_kd.adapter.adapter import Score
from xmodal_kd.compare.statistics import BySeed, Comparison, Measured, family, summary
from xmodal_kd.report.statistics import drawn_together, holm, paired_interval, paired_t, t_interval


def scores(errors: list[float], groups: int = 1) -> list[Score]:
    return [Score(f"item{i}", f"g{i % groups}", e, 10.0) for i, e in enumerate(errors)]


def noisy(mean: float, seed: int, groups: int = 1) -> list[Score]:
    return scores(np.random.default_rng(seed).poisson(mean, 60).astype(float).tolist(), groups)


def arm(*metrics: float, seeds: tuple[int, ...] = ()) -> BySeed:
    cost = {"seconds": 2.0, "flops_per_step": None}
    return {s: Measured(m, m, scores([m, m]), cost) for s, m in zip(seeds or range(1, 99), metrics, strict=False)}


# ---------------------------------------------------------------- tests and intervals


def test_t_interval_by_hand_and_by_scipy() -> None:
    values = [1.0, 2.0, 4.5, 3.0]
    mean, low, high = t_interval(values)
    expected = scipy_stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert (low, high) == pytest.approx(expected) and mean == 2.625
    mean, low, high = t_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert t_interval([5.0]) == (5.0, None, None)


@pytest.mark.parametrize("seed", range(5))
def test_paired_t_is_scipys(seed: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, 3 + seed))
    assert paired_t((a - b).tolist()) == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)


def test_differences_that_do_not_vary_cannot_be_tested() -> None:
    assert paired_t([0.1] * 3) is None and paired_t([0.0] * 3) is None and paired_t([0.3]) is None
    assert paired_t([0.3 - 0.2, 0.2 - 0.1, 0.1]) is None, "but for rounding they are equal"
    assert paired_t([1.0, 1.0, 1.001]) is not None


def test_the_p_is_below_five_percent_just_where_the_interval_leaves_zero() -> None:
    for seed in range(40):
        differences = np.random.default_rng(seed).normal(0.8, 1, 5).tolist()
        p, (_, low, high) = paired_t(differences), t_interval(differences)
        assert p is not None and low is not None and high is not None
        assert (p < 0.05) == (not low <= 0 <= high)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]), "3 x .01, 2 x .03, then never less"
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_holm_holds_the_family() -> None:
    """Of 400 families of 5 true nulls, about 5 % have any false finding; uncorrected it would be 23 %."""
    p = np.random.default_rng(0).uniform(size=(400, 5))
    assert 0.02 < np.mean([min(holm(row.tolist())) < 0.05 for row in p]) < 0.08
    assert np.mean(p.min(axis=1) < 0.05) > 0.18


# ---------------------------------------------------------------- bootstrap


def test_one_pair_is_the_interval_of_a_run() -> None:
    a, b = noisy(4, 0), noisy(3, 1)
    found = drawn_together([(a, b)])
    assert found is not None and found[:2] == pytest.approx(paired_interval(a, b)) and found[2] == 60


def test_seeds_are_averaged_item_by_item() -> None:
    """A shift that two seeds undo leaves nothing, however large each is."""
    a = noisy(4, 0)
    up, down = ([Score(s.item, s.group, s.errors + d, s.units) for s in a] for d in (2.0, -2.0))
    found = drawn_together([(up, a), (down, a)])
    assert found is not None and found[:2] == pytest.approx((0.0, 0.0), abs=1e-12)


def test_groups_are_drawn_whole() -> None:
    """Where all the difference is between speakers, items taken one by one would be far too sure."""
    errors = [1.0 if i % 4 < 2 else 5.0 for i in range(60)]
    a, b = scores(errors, 4), scores([3.0] * 60, 4)
    items, groups = drawn_together([(a, b)]), drawn_together([(a, b)], groups=True)
    assert items is not None and groups is not None and groups[2] == 4
    assert groups[1] - groups[0] > 2 * (items[1] - items[0])
    assert groups[:2] == pytest.approx((-0.2, 0.2)), "all of one kind: the most that four speakers can be off"


def test_one_group_is_no_sample_of_groups() -> None:
    assert drawn_together([(noisy(4, 0), noisy(3, 1))], groups=True) is None
    assert drawn_together([(noisy(4, 0), [])]) is None


# ---------------------------------------------------------------- verdicts


def verdicts(arms: list[BySeed], reference: BySeed, lower: bool = True) -> list[str | None]:
    found = family([Comparison(f"a{i}", "kd", a, reference) for i, a in enumerate(arms)], lower)
    return [c["verdict"] for c in found]


KD = arm(0.50, 0.52, 0.48)
LESS, MORE, SAME = arm(0.402, 0.42, 0.379), arm(0.60, 0.622, 0.581), arm(0.53, 0.49, 0.50)


def test_a_verdict_follows_the_metrics_direction() -> None:
    assert verdicts([LESS, MORE, SAME], KD) == ["better", "worse", "not distinguishable"]
    assert verdicts([LESS, MORE, SAME], KD, lower=False) == ["worse", "better", "not distinguishable"]


def test_intervals_over_items_have_the_sign_of_the_difference() -> None:
    fewer, more = ({seed: Measured(m, m, noisy(e, seed), {}) for seed in (1, 2, 3)} for m, e in ((0.9, 2), (0.6, 6)))
    [wrong] = family([Comparison("a", "kd", fewer, more)], True)
    [right] = family([Comparison("a", "kd", fewer, more)], False)
    assert wrong["over_items"]["high"] < 0 < right["over_items"]["low"] == -wrong["over_items"]["high"]
    assert right["difference"]["mean"] > 0


def test_more_comparisons_ask_for_more() -> None:
    close = arm(0.47, 0.495, 0.462)
    [alone] = family([Comparison("a", "kd", close, KD)], True)
    assert alone["verdict"] == "better" and alone["p"] == alone["p_holm"] < 0.05
    many = family([Comparison("a", "kd", close, KD)] + [Comparison(f"s{i}", "kd", SAME, KD) for i in range(5)], True)
    assert many[0]["p"] == alone["p"] and many[0]["p_holm"] == pytest.approx(6 * alone["p"])
    assert many[0]["verdict"] == "not distinguishable"


def test_two_seeds_have_numbers_and_no_verdict() -> None:
    [found] = family([Comparison("a", "kd", arm(0.1, 0.2), KD)], True)
    assert found["verdict"] is None and "2 seed(s) finished on both sides: a verdict needs 3" in found["reason"]
    assert found["differences"] == pytest.approx([-0.4, -0.32]) and found["p"] is not None


def test_equal_differences_are_not_a_certainty() -> None:
    [shift, same] = family([Comparison("a", "kd", arm(0.4, 0.42, 0.38), KD), Comparison("b", "kd", KD, KD)], True)
    assert shift["verdict"] is None and "cannot be estimated" in shift["reason"] and shift["p_holm"] is None
    assert same["verdict"] == "not distinguishable" and "equal for every seed" in same["reason"]


def test_pairs_are_of_the_same_seed() -> None:
    ours, theirs = arm(1.0, 2.0, 3.0, seeds=(3, 1, 2)), arm(10.0, 20.0, seeds=(2, 3))
    [found] = family([Comparison("a", "kd", ours, theirs)], True)
    assert found["seeds"] == [2, 3] and found["differences"] == [3.0 - 10.0, 1.0 - 20.0]
    [none] = family([Comparison("a", "kd", ours, {})], True)
    assert none["difference"] is None and none["verdict"] is None and none["over_items"] is None


def test_what_was_not_scored_by_item_has_no_bootstrap() -> None:
    bare = {seed: Measured(m.metric, m.dev, [], m.cost) for seed, m in LESS.items()}
    [found] = family([Comparison("a", "kd", bare, KD)], True)
    assert found["verdict"] == "better" and found["over_items"] is None and found["over_groups"] is None


def test_a_summary_is_over_seeds() -> None:
    found = summary(KD)
    assert found["test"]["mean"] == pytest.approx(0.5) and found["by_seed"] == {"1": 0.50, "2": 0.52, "3": 0.48}
    assert found["cost"] == {"seconds": 2.0, "flops_per_step": None} and found["seeds"] == [1, 2, 3]
    assert summary({})["test"] is None
