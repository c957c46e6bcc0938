"""Learning a new task without forgetting the old one: the student starts as the old model and learns from it.

Tasks share one list of classes and differ in their data (speakers, sensors, cities), or, where ``head`` names the
last layer, each has a last layer and classes of its own. ``old`` is the old task's data section: a teacher that the
recipe trains (rather than loads) learns on it, and every role is measured on its test split at the end. Student and
control start as the old model: the control is plain fine-tuning on the new data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.optim import Optimizer

from ..adapter.adapter import Adapter, Batch, Source, Strict
from ..objective.objective import spec_of
from ..recipe.recipe import Labels, On, Recipe, Term
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS, Layout, Signals, TeacherSignals
from ..training.label_budget import chosen
from ..training.method import Distil, Roles, Stage
from ..training.optim import build_optimizer, scaling
from ..training.role_plan import RolePlan
from .base import SCHEMES, Scheme
from .exemplars import Rehearsed
from .own_heads import (
    OLD,
    TwoTasks,
    apart,
    both,
    classes_of,
    give_old,
    layer_of,
    on_trunk_of,
    take_old,
    two_tasks,
)

#: The expert of the new task: a further teacher, so that it is trained on the new task's data alone.
EXPERT = "teacher-expert"


def as_old(model: nn.Module, roles: Mapping[str, nn.Module], head: str | None = None) -> nn.Module:
    """`model` with the weights of the old one, which is the teacher; its last layer `head` stays as it is."""
    _same_network(model, roles["teacher"], head)
    model.load_state_dict(_shared(roles["teacher"], head), strict=False)
    return model


def _shared(model: nn.Module, head: str | None) -> dict[str, torch.Tensor]:
    """What both tasks have in common of a model's state."""
    return {name: x for name, x in model.state_dict().items() if head is None or not name.startswith(f"{head}.")}


def _same_network(model: nn.Module, old: nn.Module, head: str | None) -> None:
    for one in (model, old) if head is not None else ():
        layer_of(one, head or "")
    mine, theirs = ({name: tuple(x.shape) for name, x in _shared(one, head).items()} for one in (model, old))
    if mine != theirs:
        name = next(iter(sorted(set(mine.items()) ^ set(theirs.items()))))[0]
        raise UserError(
            f"student: it starts as the old model, and {name!r} is {mine.get(name)} here, {theirs.get(name)} in the "
            "teacher: give both the same model and params"
        )


class Old(Strict):
    old: dict[str, Any]
    """The old task's data section."""
    head: str | None = None
    """Path of the last layer, of which each task then has one of its own, with its own classes: ``head`` of images.

    Not given: both tasks share it, and one list of classes."""
    warm_up: float = Field(0.0, ge=0, lt=1)
    """Of ``train.steps``, how many the new task's own last layer learns alone at first."""

    @model_validator(mode="after")
    def _check_warm_up(self) -> Old:
        if self.warm_up and self.head is None:
            raise ValueError("warm_up: it is of a last layer of the new task's own: name it by head, or leave it out")
        return self


class Continual(Scheme):
    """Base of the schemes that start as the old model.

    With ``head`` the student's folder has two models on one network: its own of the new task and, in ``old``, that of
    the old one. The old layer of what learns without the scheme (control, expert) stays as the old model has it.
    """

    Params: ClassVar[type[Strict]] = Old
    family = "continual"
    starts_taught: ClassVar[bool] = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: The old model, and its task's last layer when the student has left it behind.
        self._old: nn.Module | None = None
        self._layer: nn.Module | None = None

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.scheme is not None and recipe.scheme.params.get("head") is not None:
            if recipe.compress:
                raise UserError(
                    "scheme.params.head: a student of two last layers is not made small: leave compress out"
                )
            if recipe.train.compile != "none":
                raise UserError("scheme.params.head: a compiled student has one last layer: say train.compile=none")

    @classmethod
    def sections(cls, params: Any) -> Mapping[str, Mapping[str, Any]]:
        return {"old": params.old}

    @classmethod
    def adapted(cls, params: Any, adapter: Adapter) -> Adapter:
        return adapter if params.head is None else two_tasks(adapter, other_task(adapter, params.old))

    @classmethod
    def prepare(cls, params: Any, role_plan: RolePlan) -> RolePlan:
        """The teacher learns the old task; what stands beside the student starts as the student does."""
        if role_plan.role == "teacher":
            return role_plan if role_plan.path is not None else replace(role_plan, data=("old", params.old))
        return replace(role_plan, starts=(partial(as_old, head=params.head), *role_plan.starts))

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        start = partial(as_old, head=params.head)
        return [replace(student, method=cls, settings=params, starts=(start, *student.starts))]

    @classmethod
    def overview(
        cls, params: Any, adapter: Adapter, models: Mapping[str, nn.Module], folder: Path
    ) -> Mapping[str, Any]:  # fmt: skip
        """The main metric of every role on the old task's test split, and how much worse than the old model it is."""
        other, (name, lower) = other_task(adapter, params.old), adapter.metric
        asked = dict(models)
        if params.head is not None:
            old, device = models["teacher"], next(models["teacher"].parameters()).device
            asked = {role: on_trunk_of(old, model, params.head) for role, model in models.items()}
            asked["student"] = other.load("student", folder / "student" / OLD).to(device).eval()
        found = {role: float(other.evaluate(role, model, "test").metrics[name]) for role, model in asked.items()}
        sign = 1 if lower else -1
        lost = {role: sign * (value - found["teacher"]) for role, value in found.items() if role != "teacher"}
        return {f"{name} on the old task": found, f"forgotten ({name}, worse than the old model)": lost}

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        _same_network(roles[self.role], roles["teacher"], self.params.head)

    # ---------------------------------------------------------------- a last layer for each task

    def stages(self) -> Sequence[Stage]:
        if self.params.head is None:
            return super().stages()
        learners, steps = frozenset(self.learners), self.train.steps
        alone = min(round(self.params.warm_up * steps), steps - 1)
        first = [Stage(WARM_UP, alone, learners, last=True, part=True, leave=self._leave)] if alone else []
        return [*first, Stage(self.role, steps - alone, learners, leave=self._leave)]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        if (head := self.params.head) is None:
            return super().begin(stage, roles, batch)
        self._old = roles["teacher"]
        give_old(roles[self.role], head, self._layer or self._old.get_submodule(head))
        self.objective.steps = stage.steps
        optimizers = super().begin(stage, roles, batch)
        return {self.role: self._of_new(roles[self.role], head)} if stage.name == WARM_UP else optimizers

    def _of_new(self, model: nn.Module, head: str) -> Optimizer:
        """By which the new task's last layer moves, as the recipe scales its rate, and no other weight of the model."""
        config = scaling(self.train.optimizer, lambda pattern: not pattern.startswith("student."))
        said = self.train.optimizer.lr_scale
        new = [f"student.{head}.{name}" for name, _ in layer_of(model, head).named_parameters(recurse=False)]
        scale = {name: next((by for glob, by in said.items() if fnmatchcase(name, glob)), 1.0) for name in new}
        config = config.model_copy(update={"lr_scale": scale | {"student.*": 0.0} | config.lr_scale})
        return build_optimizer(config, {"student": model, "objective": self.objective})

    def _leave(self, model: nn.Module) -> None:
        self._layer = take_old(model.eval(), self.params.head)

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        """Of a learner with two last layers the new task's scores, and the old one's as ``old/...``."""
        if (head := self.params.head) is None or role != self.role:
            return super().forward_role(role, roles, batch, of)
        layer = layer_of(roles[role], head)
        old = layer._modules.get(OLD) or self._layer  # the latter when the training is over
        assert old is not None
        with both(roles[role], head, old):
            said = super().forward_role(role, roles, batch, of)
        return apart(said, self.adapter.output, head, classes_of(layer), classes_of(old))

    def export(self, model: nn.Module, adapter: Adapter, folder: Path) -> Mapping[str, Any]:
        """The model of the old task on the student's network, which every role of the old task's data can be."""
        if (head := self.params.head) is not None:
            assert self._old is not None and self._layer is not None
            other_task(adapter, self.params.old).save(
                "student", on_trunk_of(self._old, model, head, self._layer), folder / OLD
            )
        return {}


#: The stage in which the new task's last layer learns alone.
WARM_UP = "warm-up"


def other_task(adapter: Adapter, data: Mapping[str, Any]) -> Adapter:
    """The adapter of the old task: one like this, of another data section."""
    if isinstance(adapter, TwoTasks):
        return adapter.old
    kind = type(adapter)
    return kind(kind.Data.model_validate(data), adapter.streams, adapter.batch_size)


def _of_answers(term: Term) -> bool:
    """Whether a term compares what student and teacher answer."""
    return spec_of(term).needs_teacher and OUTPUTS.issuperset(term.signals("teacher"))


def _of_old(term: Term) -> Term:
    """A term on what the student's old last layer answers."""
    [mine], [theirs] = term.signals("student"), term.signals("teacher")
    return term.model_copy(update={"on": On(student=f"{OLD}/{mine}", teacher=theirs)})


@SCHEMES.register("lwf")
class WithoutForgetting(Continual):
    """Learning without forgetting: on new data the student keeps to what the old model, from which it starts, answers.

    Li, Hoiem, "Learning without Forgetting", ECCV 2016: a cross-entropy with the old model's answers at T = 2 on the
    new task's samples; no sample of the old task is needed. As a term: `kd` at temperature 2, whose T^2 makes the
    paper's weight of 1 a weight of 0.25. Each task has its head where ``head`` names the last layer: a term that learns
    from the old model's answers is then on the old one, every other on the new one, which may learn alone at first
    (``warm_up``). Without it both tasks share one head.
    """

    paper, year = "Learning without Forgetting", 2016

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        [role_plan] = super().plan(params, recipe, student)
        if params.head is None:
            return [role_plan]
        return [replace(role_plan, terms=tuple(_of_old(t) if _of_answers(t) else t for t in role_plan.terms))]


class Retrospective(Old):
    exemplars: Labels = "10%"
    """Of the old task's training samples, how many are kept: a number, or a share as in 10%."""
    per_batch: int = Field(4, gt=0)
    """Of those, how many join each batch of new samples."""
    labelled: bool = False
    """Whether the labels of exemplars are learnt from; the control then has exemplars too."""
    weight: float = Field(1.0, ge=0)
    """Of each of the two terms that keep the old task, relative to the one that learns from the expert."""
    released: bool = False
    """As the authors' code: the student learns from its two teachers alone, no labels, and from the old model on
    exemplars alone, not on new samples."""

    @model_validator(mode="after")
    def _check_labelled(self) -> Retrospective:
        if self.labelled and self.head is not None:
            raise ValueError(
                "labelled: labels of exemplars are of the old task's last layer: leave labelled or head out"
            )
        return self


@SCHEMES.register("pdr")
class Retrospection(Continual):
    """Progressive distillation and retrospection: an expert teaches the new task, the old model the old one.

    Hou et al., "Lifelong Learning via Progressive Distillation and Retrospection", ECCV 2018: an expert learns the new
    task from the old model's weights; the student, which starts there too, takes ``KD(expert, new samples) + weight
    (KD(old model, new samples) + KD(old model, exemplars))``, each a mean over its own rows. Every term of the recipe
    that compares answers is written three times so: as it is, as ``NAME-old`` and as ``NAME-exemplars``. Published
    with T = 2. Exemplars are drawn by the data alone, the same for every seed. With ``head`` the expert
    teaches the new task's own last layer, the old model the old one.
    """

    Params: ClassVar[type[Strict]] = Retrospective
    paper, year = "Lifelong Learning via Progressive Distillation and Retrospection", 2018

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        [role_plan] = super().plan(params, recipe, student)
        alone = [term for term in role_plan.terms if not _taught(term)]
        if not any(term.weight for term in alone):
            raise UserError("scheme pdr: no term works without a teacher, so nothing can train the expert")
        expert = replace(role_plan, role=EXPERT, terms=tuple(alone), teachers=(), method=Distil, settings=None)
        taught = [term for term in role_plan.terms if _taught(term)]
        kept = KEPT[-1:] if params.released else KEPT
        mine = taught if params.released else role_plan.terms
        more = [_kept(term, whose, params) for term in taught for whose in kept]
        return [expert, replace(role_plan, terms=(*mine, *more), teachers=(EXPERT, "teacher"))]

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        old = other_task(adapter, params.old).data("train")
        which = chosen(old, params.exemplars, "scheme.params.exemplars")
        return Rehearsed(source, old, which, params.per_batch, adapter.streams, labelled=params.labelled)

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        expert, old = (self.forward_role(one, roles, batch, of="teacher") for one in (EXPERT, "teacher"))
        output, kept = self.adapter.output, batch["exemplar"]
        out = Signals(expert.ids)
        for name in expert:
            out.add(name, *expert[name])
        out.add(output, expert.rows(output), _of_items(expert.layout(output), ~kept))
        out.add(f"old/{output}", old.rows(output), _of_items(old.layout(output), ~kept))
        out.add(f"exemplars/{output}", old.rows(output), _of_items(old.layout(output), kept))
        return out

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        return {"exemplars": {"of a batch": int(batch["exemplar"].sum())}}


#: Of PDR's old model: what the signals of its answers on either kind of sample are called.
KEPT = ("old", "exemplars")


def _taught(term: Term) -> bool:
    name, needs = term.name or term.loss, spec_of(term).needs_teacher
    if needs and not OUTPUTS.issuperset(term.signals("teacher")):
        raise UserError(f"term {name!r}: scheme pdr compares what its two teachers answer, no features: leave it out")
    if needs and term.min_confidence is not None:
        raise UserError(f"term {name!r}: scheme pdr takes all rows of its two teachers: leave min_confidence out")
    return needs


def _kept(term: Term, whose: str, params: Retrospective) -> Term:
    """A term of the expert's as one of the old model's."""
    [mine], [theirs] = term.signals("student"), term.signals("teacher")
    where = mine if params.head is None else f"{OLD}/{mine}"
    return term.model_copy(update={
        "name": f"{term.name or term.loss}-{whose}", "weight": params.weight * term.weight,
        "on": On(student=where, teacher=f"{whose}/{theirs}"),
    })  # fmt: skip


def _of_items(layout: Layout, held: torch.Tensor) -> Layout:
    """The rows of the items ``held`` ``(b,)``."""
    return replace(layout, mask=layout.mask & held[layout.item], full=False)
