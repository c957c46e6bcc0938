"""What the measured cells say: intervals, paired tests over seeds, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..adapter.adapter import Score
from ..report.statistics import drawn_together, holm, paired_t, t_interval

#: Family-wise rate of false verdicts.
ALPHA = 0.05
#: Seeds below which no verdict is given.
FEWEST = 3


@dataclass(frozen=True)
class Measured:
    """One role of one finished run."""

    metric: float
    dev: float
    scores: Sequence[Score]
    cost: Mapping[str, float | None]
    """``seconds``, ``flops_per_step``, ``flops_per_sample``, ``parameters``."""


BySeed = Mapping[int, Measured]


# docs/decisions/008-comparisons.md
@dataclass(frozen=True)
class Comparison:
    """An arm against its reference, named before anything was measured."""

    arm: str
    against: str
    ours: BySeed
    theirs: BySeed

    @property
    def seeds(self) -> list[int]:
        """Seeds that are finished on both sides."""
        return sorted(self.ours.keys() & self.theirs.keys())

    @property
    def differences(self) -> list[float]:
        return [self.ours[seed].metric - self.theirs[seed].metric for seed in self.seeds]


def summary(measured: BySeed) -> dict[str, Any]:
    """Mean and t-interval over seeds of the metric on test and dev, and what it cost on average."""
    if not measured:
        return {"seeds": [], "test": None, "dev": None, "by_seed": {}, "cost": {}}
    values = [measured[seed] for seed in sorted(measured)]
    costs = {key: [v.cost[key] for v in values if v.cost[key] is not None] for key in values[0].cost}
    return {
        "seeds": sorted(measured),
        "test": t_interval([v.metric for v in values])._asdict(),
        "dev": t_interval([v.dev for v in values])._asdict(),
        "by_seed": {str(seed): measured[seed].metric for seed in sorted(measured)},
        "cost": {key: sum(found) / len(found) if found else None for key, found in costs.items()},  # type: ignore[arg-type]
    }


def family(comparisons: Sequence[Comparison], lower_is_better: bool) -> list[dict[str, Any]]:
    """All comparisons with one reference: differences (arm less reference), p corrected over the family, verdicts.

    A comparison that cannot be tested keeps its place in the family: it was named in advance.
    """
    p = [paired_t(c.differences) if len(c.seeds) > 1 else None for c in comparisons]
    adjusted = holm([1.0 if value is None else value for value in p])
    return [
        _judged(c, raw, corrected, lower_is_better) for c, raw, corrected in zip(comparisons, p, adjusted, strict=True)
    ]


def _judged(c: Comparison, p: float | None, corrected: float, lower_is_better: bool) -> dict[str, Any]:
    verdict, reason = _verdict(c, p, corrected, lower_is_better)
    pairs = [(c.ours[seed].scores, c.theirs[seed].scores) for seed in c.seeds]
    scored = bool(pairs) and all(ours and theirs for ours, theirs in pairs)
    return {
        "arm": c.arm,
        "against": c.against,
        "seeds": c.seeds,
        "differences": c.differences,
        "difference": t_interval(c.differences)._asdict() if c.seeds else None,
        "p": p,
        "p_holm": corrected if p is not None else None,
        "over_items": _over(pairs, lower_is_better, groups=False) if scored else None,
        "over_groups": _over(pairs, lower_is_better, groups=True) if scored else None,
        "verdict": verdict,
        "reason": reason,
    }


def _verdict(c: Comparison, p: float | None, corrected: float, lower_is_better: bool) -> tuple[str | None, str | None]:
    """``better``, ``worse`` or ``not distinguishable``; or None and why."""
    if len(c.seeds) < FEWEST:
        return None, f"{len(c.seeds)} seed(s) finished on both sides: a verdict needs {FEWEST}"
    if p is None:
        if any(c.differences):
            return None, "the difference is the same for every seed, so that its noise cannot be estimated"
        return "not distinguishable", "the results are equal for every seed"
    if corrected >= ALPHA:
        return "not distinguishable", None
    mean = sum(c.differences)
    return ("better" if (mean < 0) == lower_is_better else "worse"), None


def _over(
    pairs: Sequence[tuple[Sequence[Score], Sequence[Score]]], lower_is_better: bool, *, groups: bool
) -> dict[str, Any] | None:
    """Of the metric: items are scored by errors, which are what is left of one where more is better."""
    found = drawn_together(pairs, groups=groups)
    if found is None:
        return None
    low, high, units = found if lower_is_better else (-found[1], -found[0], found[2])
    return {"low": low, "high": high, "units": units}
