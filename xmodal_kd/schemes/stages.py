"""A training whose terms come one after another: first what makes a representation, then what learns the task on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Strict
from ..objective.objective import Objective
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError, nearest
from ..training.method import Roles, Stage
from .base import SCHEMES, Scheme

#: The stages, by the names that logs and checkpoints know.
FIRST, SECOND = "first", "second"


class TwoStageParams(Strict):
    first: tuple[str, ...] = Field(min_length=1)
    """Terms of the first stage, by their names; all others are of the second."""
    share: float = Field(0.5, gt=0, lt=1)
    """Of ``train.steps``, how many the first stage takes."""


@SCHEMES.register("two_stage")
class TwoStage(Scheme):
    """Some terms alone first, then the others from there: a representation, then the task.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (`hint` first, then `kd`); Kim et al., "Two-stage
    Textual Knowledge Distillation for End-to-End Spoken Language Understanding", ICASSP 2021 (`textual_kd` of utterance
    vectors first, then of logits beside the cross-entropy). Of two teachers the recipe's `teacher` teaches in the first
    stage and the one of `teachers` in the second; one alone teaches in both. Each stage has a fresh optimizer, the
    whole learning rate's schedule and projectors of its own; the first ends with its last weights, as dev measures a
    task that it does not learn. Both together take ``train.steps``, in all of which the control learns its terms.
    """

    Params: ClassVar[type[Strict]] = TwoStageParams
    several: ClassVar[bool] = True
    paper, year, family = "FitNets: Hints for Thin Deep Nets", 2015, "training"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        names, first = [term.name for term in self.objective], set(self.params.first)
        if unknown := next((name for name in self.params.first if name not in names), None):
            raise UserError(f"scheme.params.first: no term is called {unknown!r}{nearest(unknown, names)}")
        if first == set(names):
            raise UserError("scheme.params.first: that is every term, so the second stage has none: leave one out")
        if self.train.steps < 2:
            raise UserError("scheme two_stage: a stage takes a step at least: set train.steps to 2 or more")
        before = min(max(1, round(self.params.share * self.train.steps)), self.train.steps - 1)
        self._steps = {FIRST: before, SECOND: self.train.steps - before}
        self._parts = {
            name: Objective(
                [one.term for one in self.objective if (one.name in first) == (name == FIRST)],
                steps=self._steps[name], balance=self.objective.asked,
            )
            for name in (FIRST, SECOND)
        }  # fmt: skip

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if len(recipe.teachers) > 1:
            raise UserError("scheme two_stage: a stage has one teacher: name at most one beside the first in teachers")

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        idle = next((name for name, part in self._parts.items() if not part.needs_teacher), None)
        if idle is not None and len(self.teachers) > 1:
            raise UserError(f"teachers: no term of the {idle} stage learns from a teacher: leave one of the two out")

    def stages(self) -> Sequence[Stage]:
        learners = frozenset(self.learners)
        return [
            Stage(name, steps, learners, last=name == FIRST, part=name == FIRST) for name, steps in self._steps.items()
        ]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        device = next(roles[self.role].parameters()).device
        self.objective = self.objectives[self.role] = self._parts[stage.name].to(device)
        self.teacher = self.teachers[0 if stage.name == FIRST else -1]
        return super().begin(stage, roles, batch)


__all__ = ["TwoStage"]
