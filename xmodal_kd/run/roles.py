"""The roles of a run: how each is built, what trains it, on which samples, and what stands beside the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import data_free  # noqa: F401 - registers its methods
from ..adapter.adapter import Adapter, ControlSpec, NoControl, NoiseControl, Source, adapter_class, is_teacher
from ..adapter.panels import Panel
from ..compress.known import COMPRESSIONS, Compression, Ways
from ..objective.heads import head_paths
from ..objective.loss_inputs import reads_labels
from ..objective.objective import Objective, spec_of
from ..recipe.recipe import Loaded, Recipe, Teacher, Term, Train
from ..recipe.yaml_reader import Path_
from ..runtime.allocation import bounded
from ..runtime.checkpoint import damaged
from ..runtime.errors import UserError
from ..runtime.random_streams import Streams
from ..schemes import SCHEMES, Scheme
from ..signals.capture import find_modules, split
from ..signals.signals import OUTPUTS, of_teacher
from ..training.controls import control_spec, self_training_spec, without_teacher
from ..training.label_budget import LabelBudget, chosen
from ..training.method import METHODS, Distil, Method
from ..training.role_plan import RolePlan

#: The student, and what must be as small as it.
COMPRESSED = frozenset({"student", "control", "self_training"})


def make_adapter(loaded: Loaded, streams: Streams, batch_size: int | None = None) -> Adapter:
    """The recipe's adapter, its ``data`` section checked against what the modality declares."""
    kind = adapter_class(loaded.recipe.modality)
    data = loaded.validate(kind.Data, loaded.recipe.data, ("data",))
    adapter = kind.of(data)(data, streams, batch_size or loaded.recipe.train.batch_size)
    adapter.teachers = loaded.recipe.taught_by()
    adapter.method = loaded.recipe.method.name
    if (scheme := scheme_of(loaded)) is None:
        return adapter
    for key, section in scheme[0].sections(scheme[1]).items():
        loaded.validate(kind.Data, section, ("scheme", "params", key))
    return scheme[0].adapted(scheme[1], adapter)


def other_task(loaded: Loaded, adapter: Adapter, key: str, data: Mapping[str, Any], batch_size: int) -> Adapter:
    """An adapter of a data section among the scheme's parameters. Raises `UserError` where its classes are others."""
    kind = adapter_class(loaded.recipe.modality)
    section = loaded.validate(kind.Data, data, ("scheme", "params", key))
    made = kind.of(section)(section, adapter.streams, batch_size)
    student = _student(loaded, ())
    if adapter.output == "logits" and not adapter.elsewhere:
        for one in (adapter, made):
            build(one, loaded, student, adapter.streams)
        ours, theirs = adapter.class_names("student"), made.class_names("student")
        if list(ours) != list(theirs):
            name = next(iter(sorted(set(ours) ^ set(theirs))), "their order")
            raise UserError(f"scheme.params.{key}: both tasks share one list of classes: they differ in {name!r}")
    return made


class Adapters:
    """What trains each role of a run: an adapter for each data section and size of batches, made once.

    Args:
        adapter: that of the recipe's own data and batches.
    """

    def __init__(self, loaded: Loaded, adapter: Adapter, streams: Streams) -> None:
        self.loaded, self.adapter, self.streams = loaded, adapter, streams
        #: By the key of another task's data, and by the size of batches.
        self._made: dict[tuple[str | None, int], Adapter] = {(None, loaded.recipe.train.batch_size): adapter}

    def of(self, role_plan: RolePlan, batch_size: int | None = None) -> Adapter:
        """The adapter of a training's data, in batches of the recipe's size unless another is given."""
        key, size = None if role_plan.data is None else role_plan.data[0], batch_size
        size = self.loaded.recipe.train.batch_size if size is None else size
        if (key, size) not in self._made:
            if role_plan.data is not None:
                self._made[key, size] = other_task(self.loaded, self.adapter, *role_plan.data, size)
            else:
                self._made[key, size] = make_adapter(self.loaded, self.streams, size)
        return self._made[key, size]


def role_plans(loaded: Loaded, adapter: Adapter) -> list[RolePlan]:
    """Every training of a run, and every model that it loads, in order: what teaches stands before whom it teaches.

    Raises:
        UserError: the recipe's scheme, method or compression lacks what it needs, or no term trains a teacher.
    """
    recipe = loaded.recipe
    twin = twin_of(recipe, adapter)
    found = [_teacher(recipe, role, spec) for role, spec in recipe.taught_by().items()]
    student = _student(loaded, tuple(role_plan.role for role_plan in found))
    control, alone = control_spec(recipe), without_teacher(recipe.objective)
    if isinstance(control, NoiseControl):
        found.append(replace(student, role="control"))
    elif isinstance(control, ControlSpec):
        untaught = replace(student, method=Distil, settings=None, teachers=())
        found.append(replace(untaught, role="control", terms=_terms(recipe, alone)))
    planned, after = _planned(loaded, student), list[RolePlan]()
    if isinstance(twin, ControlSpec):
        teacher_signals = replace(student, method=Distil, settings=None, teachers=("control",))
        after = [replace(teacher_signals, role="self_training", terms=_terms(recipe, twin))]
    found, after = ([_prepared(loaded, role_plan) for role_plan in some] for some in (found, after))
    return [_compressed(loaded, role_plan) for role_plan in [*found, *planned, *after]]


def twin_of(recipe: Recipe, adapter: Adapter) -> ControlSpec | NoControl | None:
    """What the second control learns from; `self_training_spec` of the run."""
    return self_training_spec(recipe, _is_scarce(adapter, recipe))


def _teacher(recipe: Recipe, role: str, spec: Teacher) -> RolePlan:
    first, _, name = role.partition("-")
    at: Path_ = ("teachers", name, "params") if name else (first, "params")
    if spec.path is not None:
        return RolePlan(role, None, {}, at, path=spec.path)
    terms = _terms(recipe, without_teacher(recipe.objective))
    if not terms:
        raise UserError("objective: no term works without a teacher, so nothing can train the teacher itself")
    return RolePlan(role, spec.model, spec.params, at, terms, spec.train, init=role)


def _student(loaded: Loaded, teachers: tuple[str, ...]) -> RolePlan:
    recipe = loaded.recipe
    kind = METHODS[recipe.method.name]
    if kind is Distil and not recipe.objective:
        raise UserError("objective: nothing to learn: give at least one term")
    return RolePlan(
        "student", recipe.student.model, recipe.student.params, ("student", "params"), recipe.objective, recipe.train,
        teachers, method=kind, settings=loaded.validate(kind.Params, recipe.method.params, ("method", "params")),
    )  # fmt: skip


def scheme_of(loaded: Loaded) -> tuple[type[Scheme], Any] | None:
    """The recipe's scheme, if it has one, with checked parameters."""
    spec = loaded.recipe.scheme
    if spec is None:
        return None
    kind = SCHEMES[spec.name]
    return kind, loaded.validate(kind.Params, spec.params, ("scheme", "params"))


def _planned(loaded: Loaded, student: RolePlan) -> Sequence[RolePlan]:
    """The student's training, and what its scheme puts before it."""
    if (scheme := scheme_of(loaded)) is None:
        return [student]
    kind, params = scheme
    kind.refuse(loaded.recipe)
    if not kind.teaches_itself and not any(spec_of(term).needs_teacher for term in loaded.recipe.objective):
        assert loaded.recipe.scheme is not None
        name = loaded.recipe.scheme.name
        raise UserError(f"scheme {name}: no term of the objective learns from a teacher: add one, as kd")
    return kind.plan(params, loaded.recipe, student)


def _prepared(loaded: Loaded, role_plan: RolePlan) -> RolePlan:
    """The training of a teacher, or of what stands beside the student, as the scheme changes it."""
    scheme = scheme_of(loaded)
    return role_plan if scheme is None else scheme[0].prepare(scheme[1], role_plan)


def _compressed(loaded: Loaded, role_plan: RolePlan) -> RolePlan:
    """The training of the student and of what must be as small as it."""
    return compressions(loaded, role_plan.role).plan(loaded.recipe, role_plan)


def compressions(loaded: Loaded, role: str = "student") -> Ways:
    """What the recipe compresses a role by, with checked parameters."""
    specs = enumerate(loaded.recipe.compress if role in COMPRESSED else ())
    return Ways(tuple(_way(loaded, number, spec.name, spec.params) for number, spec in specs))


def _way(loaded: Loaded, number: int, name: str, params: Any) -> tuple[type[Compression], Any]:
    kind = COMPRESSIONS[name]
    return kind, loaded.validate(kind.Params, params, ("compress", number, "params"))


def starts_taught(recipe: Recipe) -> bool:
    """Whether student and control start from a teacher's weights, so that a run without it has another control."""
    schemes = [] if recipe.scheme is None else [SCHEMES[recipe.scheme.name].starts_taught]
    return any([*schemes, *(COMPRESSIONS[spec.name].starts_taught for spec in recipe.compress)])


def control_teaches(recipe: Recipe) -> bool:
    """Whether the control is the first teacher of the recipe's scheme, so that there is no run without it."""
    scheme = None if recipe.scheme is None else SCHEMES[recipe.scheme.name]
    return scheme is not None and scheme.control_teaches and recipe.teacher is None


def _terms(recipe: Recipe, spec: ControlSpec | NoControl) -> tuple[Term, ...]:
    names = spec.terms if isinstance(spec, ControlSpec) else ()
    return tuple(term for term in recipe.objective if (term.name or term.loss) in names)


def _is_scarce(adapter: Adapter, recipe: Recipe) -> bool:
    source = adapter.data("train")
    return len(labelled_by(source, recipe, "student")) < len(source)


# ---------------------------------------------------------------- models and methods


def build(
    adapter: Adapter, loaded: Loaded, role_plan: RolePlan, streams: Streams, role: str | None = None
) -> nn.Module:
    """A fresh model; control and student share initial weights because they share their stream.

    Args:
        role: of a peer, which has a stream of its own.
    """
    assert role_plan.model is not None
    checked = loaded.validate(adapter.models[role_plan.model].Config, role_plan.params, role_plan.at)
    where = ".".join(map(str, role_plan.at)) or role_plan.role
    with streams.forked("init", role or role_plan.init), bounded(where):
        return adapter.build(role or role_plan.role, role_plan.model, checked.model_dump())


def saved(adapter: Adapter, role: str, folder: Path) -> nn.Module:
    """A saved model. Raises `UserError` also where an adapter stumbles over what a damaged folder says."""
    try:
        return adapter.load(role, folder)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise damaged(folder, error) from error


def models_of(
    adapter: Adapter, loaded: Loaded, role_plan: RolePlan, streams: Streams, stand: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """The roles that a training starts with: what learns first, then its peers, then what teaches.

    Args:
        stand: roles of earlier trainings.
    """
    models = {role_plan.role: build(adapter, loaded, role_plan, streams)}
    for start in role_plan.starts:
        models[role_plan.role] = start(models[role_plan.role], stand)
    ways = compressions(loaded, role_plan.role)
    models[role_plan.role] = ways.start(adapter, role_plan, models[role_plan.role], stand, streams)
    models |= {peer: build(adapter, loaded, role_plan, streams, peer) for peer in role_plan.peers}
    return models | {role: stand[role] for role in role_plan.teachers}


def make_method(loaded: Loaded, adapter: Adapter, role_plan: RolePlan, streams: Streams) -> Method:
    """What trains the roles of a plan."""
    train = role_plan.steps
    objective = Objective(role_plan.terms, steps=train.steps, balance=loaded.recipe.balance)
    more: dict[str, Any] = {"peers": role_plan.peers} if role_plan.peers else {}
    if role_plan.teachers and issubclass(role_plan.method, Distil):
        more["teacher"] = role_plan.teachers[0]
    made: Method = role_plan.method(
        adapter, objective, train, streams, role=role_plan.role, params=role_plan.settings, **more
    )
    if isinstance(made, Scheme):
        made.teachers = role_plan.teachers
    return made


def shown(loaded: Loaded, adapter: Adapter, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
    """What the page of the run in `folder` shows of its modality, and of what its method made."""
    kind = METHODS[loaded.recipe.method.name]
    made = kind.show(adapter, models, folder / "student") if issubclass(kind, Distil) else ()
    return [*adapter.show(models, folder), *made]


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
    if len(known) < len(source):
        size = batch_size or _train_of(recipe, role).batch_size
        source = LabelBudget(source, known, size, Streams(recipe.seed), pool=_has_pool(recipe, role))
    spec = recipe.method if recipe.scheme is None else recipe.scheme
    kind = METHODS[spec.name] if recipe.scheme is None else SCHEMES[spec.name]
    if is_teacher(role) or not issubclass(kind, Distil):
        return source
    return kind.source(kind.Params.model_validate(spec.params), source, adapter)


def labelled_by(source: Source, recipe: Recipe, role: str) -> Sequence[int]:
    """Indexes of the samples whose labels `role` may look at; all where no loss reads labels."""
    teacher = recipe.taught_by().get(role)
    wanted = recipe.labels if teacher is None else teacher.labels
    key = "labels" if teacher is None else f"{role.replace('-', 's.')}.labels"
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
    teacher_signals = recipe.teacher is not None or recipe.scheme is not None
    return teacher_signals and role != "control" and not is_teacher(role)


def _train_of(recipe: Recipe, role: str) -> Train:
    teacher = recipe.taught_by().get(role)
    return recipe.train if teacher is None or teacher.train is None else teacher.train


# ---------------------------------------------------------------- what the terms name


def find_all(role: str, model: nn.Module, objective: Objective, side: str | None = None) -> None:
    """Every module that the terms name is there, and no more than one where a term compares one pair.

    Args:
        side: "student" or "teacher" of the terms, where the role does not say so.
    """
    side = side or ("teacher" if is_teacher(role) else "student")
    for term in objective:
        reads = not role.startswith("teacher-") if side == "teacher" else "own_head" in term.spec.inputs
        for head in head_paths(term.term, side) if reads else ():
            _find(role, model, head)
        if side == "teacher" and not term.spec.needs_teacher:
            continue
        for feature in set(term.term.signals(side)):
            if feature.rpartition("/")[2] in OUTPUTS:
                continue
            path = feature if side == "student" else of_teacher(role, feature)
            found = _find(role, model, split(path)[0]) if path is not None else []
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
