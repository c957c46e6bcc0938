"""Schedules: pure functions of the step, continuous and between 0 and 1."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
from pydantic import ValidationError

from xmodal_kd.recipe.schedules import Schedule

KINDS = ("constant", "linear", "cosine")
CASES = [
    Schedule(kind=kind, warmup=warmup, end=end)  # type: ignore[arg-type]
    for kind, warmup, end in product(KINDS, (0.0, 0.1, 0.33, 1, 20), (0.0, 0.25, 1.0))
]


def test_without_warmup_by_hand() -> None:
    assert [Schedule()(s, 4) for s in range(4)] == [1, 1, 1, 1]
    assert [Schedule(kind="linear")(s, 4) for s in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert Schedule(kind="linear", end=0.5)(2, 4) == 0.75
    assert Schedule(kind="cosine")(1, 4) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert Schedule(kind="cosine", end=0.2)(4, 4) == pytest.approx(0.2)


def test_warmup_as_steps_and_as_a_share_are_the_same() -> None:
    for kind in KINDS:
        steps, share = Schedule(kind=kind, warmup=10), Schedule(kind=kind, warmup=0.1)  # type: ignore[arg-type]
        assert [steps(s, 100) for s in range(101)] == pytest.approx([share(s, 100) for s in range(101)])


def test_warmup_rises_from_above_zero_to_one() -> None:
    schedule = Schedule(warmup=4)
    assert [schedule(s, 50) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert Schedule(warmup=1)(0, 50) == 0.5, "1 is a step, not the whole training"


@pytest.mark.parametrize("schedule", CASES, ids=str)
def test_bounds_continuity_and_end(schedule: Schedule) -> None:
    values = [schedule(step, 200) for step in range(220)]
    assert all(0 <= value <= 1 for value in values)
    assert max(abs(a - b) for a, b in pairwise(values)) <= max(0.06, 1 / (2 if schedule.warmup == 1 else 200))
    assert values[0] > 0, "the first step learns something"
    if schedule.kind != "constant":
        assert values[200:] == pytest.approx([schedule.end] * 20), "after the end it stays"


@pytest.mark.parametrize("schedule", CASES, ids=str)
def test_up_then_down(schedule: Schedule) -> None:
    values = [schedule(step, 200) for step in range(201)]
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1]) and values[top:] == sorted(values[top:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", CASES, ids=str)
def test_short_trainings_divide_by_nothing(schedule: Schedule, steps: int) -> None:
    assert all(math.isfinite(schedule(step, steps)) for step in range(steps))


@pytest.mark.parametrize("wrong", [{"end": 1.5}, {"end": -1}, {"warmup": -1}, {"kind": "step"}, {"warmpu": 1}])
def test_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Schedule.model_validate(wrong)
