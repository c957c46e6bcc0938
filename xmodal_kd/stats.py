"""Whether a difference is more than noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .adapter import Score


def ratio(scores: Sequence[Score]) -> float:
    """The metric over items: sum of errors over sum of units."""
    return sum(s.errors for s in scores) / max(sum(s.units for s in scores), 1e-12)


def paired_interval(
    a: Sequence[Score], b: Sequence[Score], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap of ``ratio(a) - ratio(b)`` over the items they share, drawn together.

    It says what other test items would have done to these two models; it says nothing of other training seeds.
    """
    theirs = {s.item: s for s in b}
    pairs = [(x, theirs[x.item]) for x in a if x.item in theirs]
    if not pairs:
        raise ValueError("no item was scored on both sides")
    table = np.array([(x.errors, x.units, y.errors, y.units) for x, y in pairs])
    rng = np.random.Generator(np.random.Philox(seed))
    draws = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=resamples) @ table
    difference = draws[:, 0] / np.maximum(draws[:, 1], 1e-12) - draws[:, 2] / np.maximum(draws[:, 3], 1e-12)
    low, high = np.percentile(difference, [2.5, 97.5])
    return float(low), float(high)


def gap_closed(
    teacher: Sequence[Score], control: Sequence[Score], student: Sequence[Score]
) -> tuple[float | None, str | None]:
    """Share of the distance from control to teacher that the student has come, and why not where it is None.

    For metrics of errors, where less is better.
    """
    if not teacher or not control or not student:
        return None, "teacher, control or student was not scored by item"
    if len(teacher) < 2:
        return None, "one test item (or draw) says nothing of noise"
    low, high = paired_interval(control, teacher)
    if low <= 0 <= high:
        return None, (
            f"teacher and control differ by less than the noise of the test items "
            f"(95 % interval of the difference {low:+.4f} to {high:+.4f})"
        )
    if high < 0:
        return None, f"the teacher is worse than the control (95 % interval of its lead {low:+.4f} to {high:+.4f})"
    gap = ratio(control) - ratio(teacher)
    return (ratio(control) - ratio(student)) / gap, None
