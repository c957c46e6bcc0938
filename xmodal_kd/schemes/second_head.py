"""A student with a second head for what the teacher says, so that labels and teacher pull on different ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from ..adapter.adapter import Strict
from ..objective.objective import spec_of
from ..recipe.recipe import On, Recipe, Term
from ..runtime.errors import UserError
from ..training.role_plan import RolePlan
from .base import SCHEMES, Scheme


class Heads(Strict):
    labels: str = "head"
    """Path of the student's head that learns from the terms without a teacher."""
    teacher: str = "distilled"
    """Path of the head that learns from those with one."""


@SCHEMES.register("deit")
class DistillationToken(Scheme):
    """Labels teach the student's class head, the teacher a second head on a token of its own; both answer together.

    Touvron et al., "Training Data-efficient Image Transformers and Distillation through Attention", ICML 2021, eq. 2
    and 3. Terms on scores go to either head by whether they need a teacher: ce and `hard_label`, 0.5 each, are the
    paper's hard distillation; ce of 0.9 and kd of 0.1 at temperature 3 its soft one. What the student answers is for
    its model to say: the mean of both heads (`vit` of images). Terms on features stay as they are. The control is the
    same student, whose second head learns from the labels too, as in the paper's test with two class tokens.
    """

    Params: ClassVar[type[Strict]] = Heads
    paper, year, family = (
        "Training Data-efficient Image Transformers and Distillation through Attention",
        2021,
        "training",
    )

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        return [replace(student, method=cls, settings=params, terms=_parted(params, student.terms))]

    @classmethod
    def prepare(cls, params: Any, role_plan: RolePlan) -> RolePlan:
        if role_plan.role == "self_training":
            return replace(role_plan, terms=_parted(params, role_plan.terms))
        if role_plan.role != "control":
            return role_plan
        second = [_on(term, params.teacher, " 2") for term in role_plan.terms if _scores(term, "student")]
        return replace(role_plan, terms=(*_parted(params, role_plan.terms), *second))

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        self.find(roles[self.role], [self.params.labels, self.params.teacher])
        for needed, head in ((False, self.params.labels), (True, self.params.teacher)):
            if not any(t.spec.needs_teacher == needed and t.term.signals("student") == (head,) for t in self.objective):
                what = "needs" if needed else "does without"
                raise UserError(f"scheme deit: no term on logits {what} a teacher, so nothing trains {head!r}: add one")


def _parted(params: Heads, terms: Sequence[Term]) -> tuple[Term, ...]:
    """Terms on the student's scores, each on the head that is theirs."""
    heads = {False: params.labels, True: params.teacher}
    return tuple(_on(t, heads[spec_of(t).needs_teacher]) if _scores(t, "student") else t for t in terms)


def _scores(term: Term, role: str) -> bool:
    return term.signals(role) == ("logits",)


def _on(term: Term, head: str, more: str = "") -> Term:
    teacher = term.signals("teacher")
    on = On(student=head, teacher=teacher[0] if len(teacher) == 1 else teacher)
    name = f"{term.name or term.loss}{more}" if more else term.name
    return term.model_copy(update={"on": on, "name": name})
