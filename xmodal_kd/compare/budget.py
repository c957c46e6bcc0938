"""Equal time: as many steps for an arm as its training makes while its control makes the recipe's.

Wall-clock and not FLOPs: these see neither loaders nor memory traffic, nor what a small model's step costs before any
arithmetic. What is fixed are steps, by a measurement before the training, so that schedules end where they should, a
cell that was stopped goes on to the same bit, and a busy hour in the middle of a run takes nothing from its arm. Arm
and control take turns in one process, so that what else the machine does falls on both. Evaluations are not in it:
every run makes its own. Neither is what gets faster later, such as a teacher whose answers are remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from ..check.subject import prepare
from ..check.trial import brief
from ..recipe.recipe import Loaded
from ..runtime.checkpoint import read_object, write_json
from ..runtime.errors import UserError
from .cells import Pool
from .plan import Arm, Plan

#: What was measured, by content, beside the cells.
FILE = "budget.json"
#: Turns of arm and control, and steps of each turn, the first of which does not count.
TURNS, STEPS = 3, 8


# docs/decisions/008-comparisons.md
def check(plan: Plan) -> None:
    """Raises `UserError` where an arm has no control's time to keep to."""
    for arm in plan.arms:
        cell = plan.cell(arm, plan.seeds[0])
        if plan.control(arm, plan.seeds[0]) is None:
            raise UserError(f"--equal time: {arm.name}: its control is not trained, so it has no time")
        if cell.loaded.recipe.cache is not None:
            raise UserError("--equal time: a cached teacher's time shows only when the cache is full: leave it out")


def paced(plan: Plan, pool: Pool, arms: Sequence[Arm]) -> list[Arm]:
    """The arms with the steps that they get, measured once for each pair of arm and control."""
    path = pool.settings.out / FILE
    known: dict[str, Any] = read_object(path) if path.is_file() else {}
    found = []
    for arm in arms:
        cell, control = plan.cell(arm, plan.seeds[0]), plan.control(arm, plan.seeds[0])
        assert control is not None
        key = f"{cell.key} {control.key}"
        if key not in known:
            ours, theirs = times(cell.loaded, control.loaded, pool.settings.device)
            known[key] = {"arm_ms": 1e3 * ours, "control_ms": 1e3 * theirs}
            write_json(path, known)
        pace = known[key]
        steps = max(1, round(control.steps * pace["control_ms"] / pace["arm_ms"]))
        found.append(replace(arm, steps=steps, pace=(pace["arm_ms"], pace["control_ms"])))
    return found


def times(arm: Loaded, control: Loaded, device: str) -> tuple[float, float]:
    """Seconds of a step of each, data and all: medians over the turns of the median step."""
    loaded = (arm, control)
    taken: tuple[list[float], list[float]] = [], []
    for _ in range(TURNS):
        for one, seconds in zip(loaded, taken, strict=True):
            seconds.append(_step_seconds(one, device))
    return median(taken[0]), median(taken[1])


def _step_seconds(loaded: Loaded, device: str) -> float:
    """A teacher that is not trained yet takes the time of one that is."""
    subject = prepare(loaded, device)
    method, train = subject.method(), loaded.recipe.train
    with subject.trial(brief(method, STEPS), dict(reversed(subject.roles.items())), train, train.precision) as trial:
        trial.fit()
        return trial.seen[-1].step_seconds


__all__ = ["FILE", "check", "paced", "times"]
