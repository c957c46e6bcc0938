"""Chains: students that teach the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from ..adapter.adapter import Strict
from ..recipe.recipe import ModelSpec, Recipe, Train
from ..runtime.errors import UserError
from ..training.method import Distil
from ..training.role_plan import RolePlan
from .base import SCHEMES, Scheme


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


class Generations(Strict):
    generations: int = Field(2, ge=1)
    """Students before the last one, which is the run's student."""


@SCHEMES.register("born_again")
class BornAgain(Scheme):
    """Generations of the same network: each learns from the one before it, the first from the teacher or the control.

    Furlanello et al., "Born Again Neural Networks", ICML 2018: equal architectures, temperature 1, a fresh start for
    each generation. Without a teacher in the recipe the control is the first generation's teacher. Every generation is
    saved and scored as ``generation-1`` and so on, so that what one more adds can be read off.
    """

    Params: ClassVar[type[Strict]] = Generations
    recipe_teacher: ClassVar[Literal["needed", "optional", "none"]] = "optional"
    paper, year, family = "Born Again Neural Networks", 2018, "chain"

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        first = student.teachers or _control(recipe)
        chain: list[RolePlan] = []
        for number in range(1, params.generations + 1):
            role, teachers = f"generation-{number}", (chain[-1].role,) if chain else first
            chain.append(replace(student, role=role, teachers=teachers, init=role))
        return [*chain, replace(student, teachers=(chain[-1].role,))]


@SCHEMES.register("tfkd_self")
class SelfTaught(Scheme):
    """The student learns from a frozen copy of itself that was trained without a teacher: the control.

    Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020 (Tf-KD self).
    Published settings for kd: weight 0.95 and temperature 20 for MobileNetV2, 0.9 and 20 for DenseNet.
    """

    Params: ClassVar[type[Strict]] = Strict
    recipe_teacher: ClassVar[Literal["needed", "optional", "none"]] = "none"
    paper, year, family = "Revisiting Knowledge Distillation via Label Smoothing Regularization", 2020, "self"

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        return [replace(student, teachers=_control(recipe))]


def _control(recipe: Recipe) -> tuple[str, ...]:
    if not recipe.control:
        assert recipe.scheme is not None
        raise UserError(f"scheme {recipe.scheme.name}: the control is the first teacher: leave control: false out")
    return ("control",)
