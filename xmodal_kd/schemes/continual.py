"""Learning a new task without forgetting the old one: the student starts as the old model and learns from it.

Tasks share one list of classes and differ in their data: speakers, rooms, sensors, cities. ``old`` is the old task's
data section: a teacher that the recipe trains (rather than loads) learns on it, and every role is measured on its test
split at the end. Student and control start as the old model: the control is plain fine-tuning on the new data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import nn

from ..adapter.adapter import Adapter, Batch, Source, Strict
from ..objective.objective import spec_of
from ..recipe.recipe import Labels, On, Recipe, Term
from ..runtime.errors import UserError
from ..runtime.random_streams import Streams
from ..signals.signals import OUTPUTS, Layout, Signals, TeacherSignals
from ..training.label_budget import LabelBudget, Shown, chosen
from ..training.method import Distil, Roles
from ..training.role_plan import RolePlan
from .base import SCHEMES, Scheme

#: The expert of the new task: a further teacher, so that it is trained on the new task's data alone.
EXPERT = "teacher-expert"


def as_old(model: nn.Module, roles: Mapping[str, nn.Module]) -> nn.Module:
    """`model` with the weights of the old one, which is the teacher."""
    _same_network(model, roles["teacher"])
    model.load_state_dict(roles["teacher"].state_dict())
    return model


def _same_network(model: nn.Module, old: nn.Module) -> None:
    mine, theirs = ({name: tuple(x.shape) for name, x in one.state_dict().items()} for one in (model, old))
    if mine != theirs:
        name = next(iter(sorted(set(mine.items()) ^ set(theirs.items()))))[0]
        raise UserError(
            f"student: it starts as the old model, and {name!r} is {mine.get(name)} here, {theirs.get(name)} in the "
            "teacher: give both the same model and params"
        )


class Old(Strict):
    old: dict[str, Any]
    """The old task's data section."""


class Continual(Scheme):
    """Base of the schemes that start as the old model."""

    Params: ClassVar[type[Strict]] = Old
    family = "continual"
    starts_taught: ClassVar[bool] = True

    @classmethod
    def sections(cls, params: Any) -> Mapping[str, Mapping[str, Any]]:
        return {"old": params.old}

    @classmethod
    def prepare(cls, params: Any, role_plan: RolePlan) -> RolePlan:
        """The teacher learns the old task; what stands beside the student starts as the student does."""
        if role_plan.role == "teacher":
            return role_plan if role_plan.path is not None else replace(role_plan, data=("old", params.old))
        return replace(role_plan, starts=(as_old, *role_plan.starts))

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        return [replace(student, method=cls, settings=params, starts=(as_old, *student.starts))]

    @classmethod
    def overview(cls, params: Any, adapter: Adapter, models: Mapping[str, nn.Module]) -> Mapping[str, Any]:
        """The main metric of every role on the old task's test split, and how much worse than the old model it is."""
        other, (name, lower) = other_task(adapter, params.old), adapter.metric
        found = {role: float(other.evaluate(role, model, "test").metrics[name]) for role, model in models.items()}
        sign = 1 if lower else -1
        lost = {role: sign * (value - found["teacher"]) for role, value in found.items() if role != "teacher"}
        return {f"{name} on the old task": found, f"forgotten ({name}, worse than the old model)": lost}

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        _same_network(roles[self.role], roles["teacher"])


def other_task(adapter: Adapter, data: Mapping[str, Any]) -> Adapter:
    """An adapter like this one, of another data section."""
    kind = type(adapter)
    return kind(kind.Data.model_validate(data), adapter.streams, adapter.batch_size)


@SCHEMES.register("lwf")
class WithoutForgetting(Continual):
    """Learning without forgetting: on new data the student keeps to what the old model, from which it starts, answers.

    Li, Hoiem, "Learning without Forgetting", ECCV 2016: a cross-entropy with the old model's answers at T = 2 on the
    new task's samples; no sample of the old task is needed. As a term: `kd` at temperature 2, whose T^2 makes the
    paper's weight of 1 a weight of 0.25. Old and new task share one head: the paper's warm-up of a new one is left out.
    """

    paper, year = "Learning without Forgetting", 2016


class Retrospective(Old):
    exemplars: Labels = "10%"
    """Of the old task's training samples, how many are kept: a number, or a share as in 10%."""
    per_batch: int = Field(4, gt=0)
    """Of those, how many join each batch of new samples."""
    labelled: bool = False
    """Whether the labels of exemplars are learnt from; the control then has exemplars too."""
    weight: float = Field(1.0, ge=0)
    """Of each of the two terms that keep the old task, relative to the one that learns from the expert."""


@SCHEMES.register("pdr")
class Retrospection(Continual):
    """Progressive distillation and retrospection: an expert teaches the new task, the old model the old one.

    Hou et al., "Lifelong Learning via Progressive Distillation and Retrospection", ECCV 2018: an expert learns the new
    task from the old model's weights; the student, which starts there too, takes ``KD(expert, new samples) + weight
    (KD(old model, new samples) + KD(old model, exemplars))``, each a mean over its own rows. Every term of the recipe
    that compares answers is written three times so: as it is, as ``NAME-old`` and as ``NAME-exemplars``. Published
    with T = 2. Exemplars are drawn by the data alone, the same for every seed.
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
        more = [_kept(term, whose, params.weight) for term in role_plan.terms if _taught(term) for whose in KEPT]
        return [expert, replace(role_plan, terms=(*role_plan.terms, *more), teachers=(EXPERT, "teacher"))]

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


def _kept(term: Term, whose: str, weight: float) -> Term:
    """A term of the expert's as one of the old model's."""
    [mine], [theirs] = term.signals("student"), term.signals("teacher")
    return term.model_copy(update={
        "name": f"{term.name or term.loss}-{whose}", "weight": weight * term.weight,
        "on": On(student=mine, teacher=f"{whose}/{theirs}"),
    })  # fmt: skip


def _of_items(layout: Layout, held: torch.Tensor) -> Layout:
    """The rows of the items ``held`` ``(b,)``."""
    return replace(layout, mask=layout.mask & held[layout.item], full=False)


class Held(NamedTuple):
    """A sample, and whether it is an exemplar of the old task."""

    sample: Any
    exemplar: bool


class Rehearsed:
    """A training source each of whose batches holds some exemplars of an old task beside its own samples.

    Which ones is drawn anew for each batch. They stand evenly among its samples, so that a cut into micro-batches keeps
    the balance. In the plan an even number is one of `inner`'s, an odd one an exemplar; ``ids`` count them behind
    `inner`'s samples.

    Args:
        exemplars: indexes of them in `old`.
        labelled: whether a loss may look at their labels.
    """

    def __init__(
        self, inner: Source, old: Source, exemplars: Sequence[int], per_batch: int, streams: Streams, *, labelled: bool
    ) -> None:
        if per_batch > len(exemplars):
            raise UserError(f"scheme.params.per_batch: {per_batch} of {len(exemplars)} exemplars: give fewer")
        self.inner, self.old, self.exemplars, self.per_batch = inner, old, list(exemplars), per_batch
        self.streams, self.shown = streams, labelled

    def __len__(self) -> int:
        return len(self.inner)

    def plan(self, epoch: int) -> list[list[int]]:
        return [self._mixed(batch, epoch, number) for number, batch in enumerate(self.inner.plan(epoch))]

    def _mixed(self, batch: Sequence[int], epoch: int, number: int) -> list[int]:
        order = self.streams.numpy("exemplars", epoch, number).permutation(len(self.exemplars))
        out = [2 * own for own in batch]
        for k, which in enumerate(order[: self.per_batch].tolist()):  # each the last of equal stretches
            out.insert((k + 1) * (len(batch) + self.per_batch) // self.per_batch - 1, 2 * which + 1)
        return out

    def sample(self, index: int, epoch: int) -> Held:
        number, exemplar = divmod(index, 2)
        if not exemplar:
            return Held(self.inner.sample(number, epoch), False)
        found = self.old.sample(self.exemplars[number], epoch)
        return Held(Shown(found, self.shown) if isinstance(self.inner, LabelBudget) else found, True)

    def collate(self, samples: Sequence[Held]) -> Batch:
        """The inner source's batch with ``exemplar`` ``(b,)`` bool, and ``labelled``."""
        kept = torch.tensor([one.exemplar for one in samples])
        batch = dict(self.inner.collate([one.sample for one in samples]))
        shown = torch.ones_like(kept) if self.shown else ~kept
        batch["ids"] = batch["ids"] + kept * len(self.inner)
        return batch | {"exemplar": kept, "labelled": batch.get("labelled", torch.ones_like(kept)) & shown}
