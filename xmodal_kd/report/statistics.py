"""Whether a difference is more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..adapter.adapter import Score


def ratio(scores: Sequence[Score]) -> float:
    """The metric over items: sum of errors over sum of units.

    >>> ratio([Score("a", "anna", errors=1, units=4), Score("b", "anna", errors=1, units=6)])
    0.2
    """
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


class Interval(NamedTuple):
    """A mean with its 95 % interval; the ends are None where one value says nothing of the spread."""

    mean: float
    low: float | None
    high: float | None


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and Student's t-interval, for few values such as one a seed: a percentile bootstrap of 3 covers 67 %."""
    from scipy import stats

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p of a t-test that paired differences have mean 0; None where they do not vary, or there is one."""
    from scipy import stats

    mean, n = float(np.mean(differences)), len(differences)
    spread = float(np.std(differences, ddof=1)) if n > 1 else 0.0
    if spread <= 1e-9 * float(np.max(np.abs(differences))):
        return None
    return float(2 * stats.t.sf(abs(mean) / (spread / np.sqrt(n)), n - 1))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p of a family of tests, in the order given (Holm, 1979): below 5 % holds for the family as a whole.

    The smallest of m is multiplied by m, the next by m - 1, and none may fall below one before it.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, floor = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = floor
    return adjusted


def drawn_together(
    pairs: Sequence[tuple[Sequence[Score], Sequence[Score]]],
    *,
    groups: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, int] | None:
    """95 % percentile bootstrap of the mean over seeds of ``ratio(a) - ratio(b)``, and over how many units it drew.

    A unit is an item, or with `groups` all items of a group (a speaker), drawn alike for every seed's pair of score
    lists. None where there are fewer than two units. It holds the trained models fixed: see `paired_interval`.
    """
    tables: list[dict[str, Any]] = []
    for a, b in pairs:
        theirs = {s.item: s for s in b}
        table: dict[str, Any] = {}
        for x in a:
            if x.item in theirs:
                y, key = theirs[x.item], x.group if groups else x.item
                table[key] = table.get(key, 0.0) + np.array([x.errors, x.units, y.errors, y.units])
        tables.append(table)
    keys = list(dict.fromkeys(key for table in tables for key in table))
    if len(keys) < 2:
        return None
    sums = np.array([[table.get(key, np.zeros(4)) for key in keys] for table in tables])
    rng = np.random.Generator(np.random.Philox(seed))
    weights = rng.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=resamples)
    draws = np.einsum("ru,suv->rsv", weights, sums)
    ratios = draws[..., 0::2] / np.maximum(draws[..., 1::2], 1e-12)
    low, high = np.percentile((ratios[..., 0] - ratios[..., 1]).mean(axis=1), [2.5, 97.5])
    return float(low), float(high), len(keys)
