"""Chains: students that teach the next one."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..adapter.adapter import Adapter, Batch, Strict
from ..losses.base import full_precision
from ..objective.parts import LossOut
from ..recipe.recipe import ModelSpec, Recipe, Train
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS, Signals, TeacherSignals
from ..training.method import Context, Distil, Roles
from ..training.role_plan import RolePlan
from .base import SCHEMES, Scheme
from .rows import weighed


class Assistant(ModelSpec):
    """A model between teacher and student, and how it is trained where that is not the student's way."""

    train: Train | None = None


class Assistants(Strict):
    assistants: tuple[Assistant, ...] = Field(min_length=1)
    """From the largest to the smallest; one of middle accuracy helps most."""


@SCHEMES.register("assistants")
class TeacherAssistants(Scheme):
    """The teacher teaches an assistant of middle size, the assistant the next one, the last one the student.

    Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020: every link is a whole
    distillation by the recipe's objective. Each assistant is saved and scored as a role of its own, ``assistant-1`` and
    so on. Their steps come on top of the student's: compare with a student that the teacher teaches directly.
    """

    Params: ClassVar[type[Strict]] = Assistants
    paper, year, family = "Improved Knowledge Distillation via Teacher Assistant", 2020, "chain"

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        chain: list[RolePlan] = []
        for number, one in enumerate(params.assistants, 1):
            at = ("scheme", "params", "assistants", number - 1, "params")
            role, teachers = f"assistant-{number}", (chain[-1].role,) if chain else student.teachers
            chain.append(replace(
                student, role=role, model=one.model, params=one.params, at=at, teachers=teachers, init=role,
                train=one.train or student.train, starts=(), method=Distil, settings=None,
            ))  # fmt: skip
        return [*chain, replace(student, teachers=(chain[-1].role,))]


class Dense(Assistants):
    drop: int = Field(0, ge=0)
    """How many of those who teach a model are left out of each step, drawn anew; at least one stays."""


@SCHEMES.register("dgkd")
class DenselyGuided(TeacherAssistants):
    """The teacher and all assistants before it teach every assistant, and all of them the student.

    Son et al., "Densely Guided Knowledge Distillation using Multiple Teacher Assistants", ICCV 2021, eq. 7: the
    cross-entropy and the sum of kd from the n + 1 that teach, here over n + 1, so that the objective's weights mean
    what they mean with one teacher. With `drop`, as many of these are left out of a step (section 3.3, stochastic
    teaching, published with 1): each that stays keeps its share, as in the released code. Assistants are trained and
    saved as in `assistants`; a step costs a forward pass of everyone who teaches in it.
    """

    Params: ClassVar[type[Strict]] = Dense
    paper, year = "Densely Guided Knowledge Distillation using Multiple Teacher Assistants", 2021

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        wrong = [
            t for t in self.objective if t.spec.needs_teacher and not OUTPUTS.issuperset(t.term.signals("teacher"))
        ]
        if wrong:
            raise UserError(
                f"term {wrong[0].name!r}: in the scheme dgkd models of several sizes teach, whose features no one map "
                "compares: compare what they answer, or use the scheme assistants"
            )
        #: Who teaches in a step.
        self.teaching: tuple[str, ...] | None = None

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        found: list[RolePlan] = []
        for one in super().plan(params, recipe, student):
            before = (*student.teachers, *(earlier.role for earlier in found))
            found.append(replace(one, teachers=before, method=cls, settings=params))
        return found

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        return {one: self.forward_role(one, roles, batch) for one in self.teaching or self.teachers}

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        self.teaching = self.kept(ctx)
        out = super().loss(role, roles, batch, ctx)
        return weighed(out, self.objectives[role], with_teacher=len(self.teaching) / len(self.teachers))

    def kept(self, ctx: Context) -> tuple[str, ...]:
        """Who teaches in the step: the same on all ranks and in all of its micro-batches."""
        count = max(1, len(self.teachers) - self.params.drop)
        draw = ctx.streams.torch("dgkd", ctx.stage.name, ctx.step)
        chosen = torch.randperm(len(self.teachers), generator=draw)[:count].sort().values
        return tuple(self.teachers[i] for i in chosen.tolist())


class Generations(Strict):
    generations: int = Field(2, ge=1)
    """Students before the last one, which is the run's student."""


@SCHEMES.register("born_again")
class BornAgain(Scheme):
    """Generations of the same network: each learns from the one before it, the first from the teacher or the control.

    Furlanello et al., "Born Again Neural Networks", ICML 2018: equal architectures, temperature 1, a fresh start for
    each generation. Without a teacher in the recipe the control is the first generation's teacher. Every generation is
    saved and scored as ``generation-1`` and so on, so that what one more adds can be read off. At the end all of them
    and the student are measured as one (the paper's BAN ensemble): the mean of their probabilities, or of their values.
    """

    Params: ClassVar[type[Strict]] = Generations
    recipe_teacher: ClassVar[Literal["needed", "optional", "none"]] = "optional"
    control_teaches: ClassVar[bool] = True
    paper, year, family = "Born Again Neural Networks", 2018, "chain"

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        first = student.teachers or _control(recipe)
        chain: list[RolePlan] = []
        for number in range(1, params.generations + 1):
            role, teachers = f"generation-{number}", (chain[-1].role,) if chain else first
            chain.append(replace(student, role=role, teachers=teachers, init=role))
        return [*chain, replace(student, teachers=(chain[-1].role,))]

    @classmethod
    def overview(
        cls, params: Any, adapter: Adapter, models: Mapping[str, nn.Module], folder: Path
    ) -> Mapping[str, Any]:  # fmt: skip
        """The main metric, on the test split, of all generations and the student together."""
        roles = [*(f"generation-{number}" for number in range(1, params.generations + 1)), "student"]
        whole = ensemble([models[role] for role in roles], adapter.output)
        name = adapter.metric[0]
        return {f"{name} of all generations together": adapter.evaluate("together", whole, "test").metrics[name]}


def ensemble(models: Sequence[nn.Module], output: str) -> nn.Module:
    """A model like the last one that answers the mean of all: of their probabilities, as log-probabilities, or values.

    Raises `UserError` where a model answers neither one tensor nor a tuple that begins with the scores.
    """
    out, others = copy.deepcopy(models[-1]), models[:-1]

    def mean(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], own: Any) -> Any:
        said = [own, *(model(*args, **kwargs) for model in others)]
        if isinstance(own, Tensor):
            return _mean(said, output)
        if type(own) is tuple and isinstance(own[0], Tensor):
            return (_mean([one[0] for one in said], output), *own[1:])
        raise UserError("scheme born_again: answers of this model have no mean: take the scheme tfkd_self")

    out.register_forward_hook(mean, with_kwargs=True)
    return out


def _mean(answers: Sequence[Tensor], output: str) -> Tensor:
    """Scores lie last, of maps ``(b, classes, h, w)`` first."""
    rows = [full_precision(one) for one in answers]
    if output != "logits":
        return torch.stack(rows).mean(dim=0)
    log_p = torch.stack([one.log_softmax(dim=1 if one.ndim == 4 else -1) for one in rows])
    return log_p.logsumexp(dim=0) - math.log(len(rows))


@SCHEMES.register("tfkd_self")
class SelfTaught(Scheme):
    """The student learns from a frozen copy of itself that was trained without a teacher: the control.

    Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020 (Tf-KD self).
    Published settings for kd: weight 0.95 and temperature 20 for MobileNetV2, 0.9 and 20 for DenseNet.
    """

    Params: ClassVar[type[Strict]] = Strict
    recipe_teacher: ClassVar[Literal["needed", "optional", "none"]] = "none"
    control_teaches: ClassVar[bool] = True
    paper, year, family = "Revisiting Knowledge Distillation via Label Smoothing Regularization", 2020, "self"

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        return [replace(student, teachers=_control(recipe))]


def _control(recipe: Recipe) -> tuple[str, ...]:
    if not recipe.control:
        assert recipe.scheme is not None
        raise UserError(f"scheme {recipe.scheme.name}: the control is the first teacher: leave control: false out")
    return ("control",)
