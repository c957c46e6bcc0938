"""The roles of a run: how each is built, what trains it, on which samples, and what stands beside the student."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .adapter import Adapter, ControlSpec, NoControl, Source, UntrainedControl, adapter_class
from .capture import find_modules, split
from .errors import UserError
from .inputs import reads_labels
from .method import METHODS, Method
from .objective import Objective, spec_of
from .recipe import Loaded, MethodSpec, Recipe, Term, Train
from .scarce import Scarce, chosen
from .signals import OUTPUTS
from .streams import Streams


def make_adapter(loaded: Loaded, streams: Streams, batch_size: int | None = None) -> Adapter:
    """The recipe's adapter, its ``data`` section checked against what the modality declares."""
    kind = adapter_class(loaded.recipe.modality)
    data = loaded.validate(kind.Data, loaded.recipe.data, ("data",))
    return kind(data, streams, batch_size or loaded.recipe.train.batch_size)


def build(adapter: Adapter, loaded: Loaded, role: str, streams: Streams) -> nn.Module:
    """A fresh model; control and student share initial weights because they share their stream."""
    recipe = loaded.recipe
    if role == "teacher":
        assert recipe.teacher is not None and recipe.teacher.model is not None
        name, params, at = recipe.teacher.model, recipe.teacher.params, ("teacher", "params")
    else:
        name, params, at = recipe.student.model, recipe.student.params, ("student", "params")
    checked = loaded.validate(adapter.models[name].Config, params, at)
    with streams.forked("init", "teacher" if role == "teacher" else "student"):
        return adapter.build(role, name, checked.model_dump())


def make_method(
    loaded: Loaded, adapter: Adapter, train: Train, terms: Sequence[Term], streams: Streams, role: str = "student"
) -> Method:
    """What trains a role: the recipe's method the student, the default one the others."""
    wanted = loaded.recipe.method if role == "student" else MethodSpec(name="distil")
    if wanted.name == "distil" and not terms:
        raise UserError("objective: nothing to learn: give at least one term")
    kind = METHODS[wanted.name]
    params = loaded.validate(kind.Params, wanted.params, ("method", "params"))
    teacher = {"teacher": "control"} if role == "self_training" else {}
    objective = Objective(terms, steps=train.steps, balance=loaded.recipe.balance)
    made: Method = kind(adapter, objective, train, streams, role=role, params=params, **teacher)
    return made


def control_spec(recipe: Recipe) -> ControlSpec | UntrainedControl | NoControl:
    """What stands beside the student, or why nothing does."""
    if not recipe.control:
        return NoControl("the recipe asks for none")
    if recipe.teacher is None:
        return NoControl("without a teacher the student is its own control")
    if METHODS[recipe.method.name].control == "teacher":
        return UntrainedControl()
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
    taught = [t for t in recipe.objective if spec_of(t).needs_teacher and _of_answers(t)]
    if not taught:
        return NoControl("no term compares what student and teacher answer, and the control has no features to compare")
    kept = {*control.terms, *(t.name or t.loss for t in taught)}
    return ControlSpec(tuple(name for t in recipe.objective if (name := t.name or t.loss) in kept))


def _of_answers(term: Term) -> bool:
    """Whether a term asks of the teacher only what every role answers: no features, and none of its modules."""
    return term.weight > 0 and term.head is None and OUTPUTS.issuperset(term.signals("teacher"))


# ---------------------------------------------------------------- samples and labels


def training_source(adapter: Adapter, recipe: Recipe, role: str, batch_size: int | None = None) -> Source:
    """What `role` is trained on: the train split, of which it may look at the labels of a part only.

    Where that is not all of them, a student with a teacher sees labelled samples and the whole pool by halves, every
    other role labelled ones alone. Raises `UserError` for labels that there are not, or that nothing reads.

    Args:
        batch_size: of batches with scarce labels; None: what the recipe says for the role.
    """
    source = adapter.data("train")
    known = labelled_by(source, recipe, role)
    if len(known) == len(source):
        return source
    size = batch_size or _train_of(recipe, role).batch_size
    return Scarce(source, known, size, Streams(recipe.seed), pool=_has_pool(recipe, role))


def labelled_by(source: Source, recipe: Recipe, role: str) -> Sequence[int]:
    """Indexes of the samples whose labels `role` may look at; all where no loss reads labels."""
    taught = role == "teacher" and recipe.teacher is not None
    wanted, key = (recipe.teacher.labels, "teacher.labels") if taught else (recipe.labels, "labels")  # type: ignore[union-attr]
    if not any(reads_labels(term, spec_of(term)) for term in recipe.objective):
        if wanted is not None:
            raise UserError(f"{key}: no term of the objective reads labels: leave it out")
        return range(len(source))
    known = chosen(source, wanted, key)
    if len(known) < len(source) and recipe.method.name != "distil":
        raise UserError(
            f"{key}: the method {recipe.method.name!r} cannot learn from samples without labels: "
            "give all samples labels, or use the method distil"
        )
    return known


def _has_pool(recipe: Recipe, role: str) -> bool:
    return recipe.teacher is not None and role not in ("teacher", "control")


def _train_of(recipe: Recipe, role: str) -> Train:
    if role != "teacher" or recipe.teacher is None or recipe.teacher.train is None:
        return recipe.train
    return recipe.teacher.train


# ---------------------------------------------------------------- what the terms name


def find_all(role: str, model: nn.Module, objective: Objective) -> None:
    """Every module that the terms name is there, and no more than one where a term compares one pair."""
    for term in objective:
        if role == "teacher" and term.term.head is not None:
            _find(role, model, term.term.head)
        if role == "teacher" and not term.spec.needs_teacher:
            continue
        for feature in set(term.term.signals(role)) - OUTPUTS:
            found = _find(role, model, split(feature)[0])
            if len(found) > 1 and not term.spec.many:
                raise UserError(
                    f"objective, {role}: {feature!r} names {len(found)} modules ({', '.join(found[:4])}): "
                    "one term compares one pair"
                )


def _find(role: str, model: nn.Module, pattern: str) -> list[str]:
    try:
        return find_modules(model, pattern)
    except UserError as error:
        raise UserError(f"objective, {role}: {error}") from None
