"""What stands beside a student, decided from the recipe alone: its control, and the control's own student."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapter.adapter import ControlSpec, NoControl, NoiseControl, UntrainedControl
from ..objective.objective import Objective, spec_of
from ..recipe.recipe import Recipe, Term
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS
from .method import METHODS


def control_spec(recipe: Recipe) -> ControlSpec | UntrainedControl | NoControl:
    """What stands beside the student, or why nothing does."""
    if not recipe.control:
        return NoControl("the recipe asks for none")
    if recipe.teacher is None and recipe.scheme is None:
        return NoControl("without a teacher the student is its own control")
    kind = METHODS[recipe.method.name].control
    if kind == "teacher":
        return UntrainedControl()
    if kind == "noise":
        return NoiseControl(tuple(t.name or t.loss for t in recipe.objective if spec_of(t).needs_teacher))
    return without_teacher(recipe.objective)


def without_teacher(terms: Sequence[Term]) -> ControlSpec | NoControl:
    """The terms that stand without a teacher."""
    alone = tuple(t.name or t.loss for t in terms if t.weight > 0 and not Objective([t]).needs_teacher)
    return ControlSpec(alone) if alone else NoControl("every term of the objective needs the teacher")


def self_training_spec(recipe: Recipe, scarce: bool) -> ControlSpec | NoControl | None:
    """The terms by which the frozen control teaches the student's twin, or why nothing does; None: nobody asked.

    With few labels a student also learns from samples without labels, which its control never sees. Of what it gains,
    a student that learns from the control on the same samples has a part without any better teacher. It takes the
    terms of what the roles answer: the control has no features of the teacher's, and none of its heads.

    Args:
        scarce: whether the student learns from samples without labels.
    Raises:
        UserError: the recipe asks for what cannot be.
    """
    if recipe.self_training is False or not (recipe.self_training or scarce):
        return None
    spec = _self_training(recipe)
    if recipe.self_training and isinstance(spec, NoControl):
        raise UserError(f"self_training: {spec.reason}: leave it out")
    return spec


def _self_training(recipe: Recipe) -> ControlSpec | NoControl:
    control = control_spec(recipe)
    if recipe.teacher is None:
        return NoControl("without a teacher there is nothing that it could be compared with")
    if recipe.method.name != "distil":
        return NoControl(f"the method {recipe.method.name!r} is not distil")
    if not isinstance(control, ControlSpec):
        return NoControl(f"there is no control to learn from{'' if recipe.control else ' (control: false)'}")
    teacher_signals = [t for t in recipe.objective if spec_of(t).needs_teacher and _of_answers(t)]
    if not teacher_signals:
        return NoControl("no term compares what student and teacher answer, and the control has no features to compare")
    kept = {*control.terms, *(t.name or t.loss for t in teacher_signals)}
    return ControlSpec(tuple(name for t in recipe.objective if (name := t.name or t.loss) in kept))


def _of_answers(term: Term) -> bool:
    """Whether a term asks of the teacher only what every role answers: no features, and none of its modules."""
    return term.weight > 0 and term.head is None and OUTPUTS.issuperset(term.signals("teacher"))
