"""Which of the teacher's rows stay where they were, for a term to bring them to the student's: `objective.resample`."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..objective.loss_inputs import named
from ..objective.objective import Objective
from ..objective.resample import COORDINATES
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS, Signals
from .fill import Filler


def own_rows(filler: Filler, student: nn.Module) -> frozenset[str]:
    """By the first micro-batch, as the objective chooses: the names that `rows_of_their_own` gives."""
    objective = filler.objective
    micro = next(filler.plan(), None)
    if micro is None or not any(_may_resample(term) for term in objective):
        return frozenset()
    batch, training = filler.batch(micro), student.training
    try:
        student.eval()
        mine = filler.says(batch, "student", student)
    finally:
        student.train(training)
    return rows_of_their_own(objective, mine, filler.says(batch))


def _may_resample(term: Any) -> bool:
    """A mean of scores is no mean of probabilities: where the recipe does not say so, only features are resampled."""
    if not term.spec.needs_teacher or term.term.resample == "none":
        return False
    return term.term.resample != "auto" or not OUTPUTS.issuperset(term.term.signals("teacher"))


def rows_of_their_own(objective: Objective, student: Signals, teacher: Signals) -> frozenset[str]:
    """The teacher's signals whose rows a term brings to the student's, and the coordinates that it needs for that.

    Raises:
        UserError: rows of a grid of several axes of which some do not count: what is kept of them is no grid.
    """
    found: set[str] = set()
    for term in objective:
        if not _may_resample(term):
            continue
        mine = named(student, term.term.signals("student"), term.spec.many)
        theirs = named(teacher, term.term.signals("teacher"), term.spec.many)
        for a, b in zip(mine, theirs, strict=False):
            if a.layout.same_rows(b.layout):
                continue
            if b.layout.grid is not None and len(b.layout.grid) > 1 and not bool(b.layout.mask.all()):
                raise UserError(
                    f"cache: term {term.name!r} resamples rows of a grid {b.layout.grid} of which some do not count, "
                    "and the cache keeps no grid of these: leave cache out"
                )
            found |= {name for name in teacher if teacher[name].rows is b.rows}
    points = {name for name in teacher if name.partition(":")[0] == COORDINATES} if found else set()
    return frozenset(found | points)
