"""What a scheme is: the default method with other teachers than the recipe's one, and the trainings that this takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from ..adapter.adapter import Adapter
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..runtime.registry import Registry
from ..signals.capture import find_modules, split
from ..training.method import Distil
from ..training.role_plan import RolePlan

SCHEMES: Registry[type[Scheme]] = Registry("scheme")
Family = Literal["several teachers", "chain", "online", "self", "continual", "training"]


# docs/decisions/014-schemes.md
class Scheme(Distil):
    """Base of the schemes. The recipe's objective says how a student learns, the scheme from whom.

    A scheme that only orders trainings overrides `plan`; one whose teachers learn too, or are made of the batch, also
    what it needs of `Distil`. The first line of its docstring is shown by ``list schemes``.
    """

    #: Source of the method.
    paper: ClassVar[str]
    year: ClassVar[int]
    family: ClassVar[Family]
    #: Whether the recipe has a teacher: it must, it may, or it cannot.
    recipe_teacher: ClassVar[Literal["needed", "optional", "none"]] = "needed"
    #: Whether several teachers of the recipe are used.
    several: ClassVar[bool] = False
    #: Whether student and control start from weights of a teacher: a control without that teacher would be another.
    starts_taught: ClassVar[bool] = False
    #: Whether the control is the first that teaches, where the recipe has no teacher.
    control_teaches: ClassVar[bool] = False
    cacheable: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    #: Whether what teaches learns or follows the student: a term may start at its least value.
    moving: ClassVar[bool] = False
    #: Whether it has a loss of its own, so that the recipe needs no term that learns from a teacher.
    teaches_itself: ClassVar[bool] = False
    #: Roles of the recipe and of earlier trainings that teach; set by the run.
    teachers: tuple[str, ...] = ()
    #: Inspired by the paper rather than the paper's method.
    experimental: ClassVar[bool] = False

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        """The trainings in the place of the student's own, in order; the last one is the student's.

        Args:
            params: the scheme's, checked.
            student: its training as it would be without a scheme, the recipe's teachers teaching.
        Raises:
            UserError: the recipe lacks what the scheme needs.
        """
        return [replace(student, method=cls, settings=params)]

    @classmethod
    def adapted(cls, params: Any, adapter: Adapter) -> Adapter:
        """The recipe's adapter as the scheme's roles need it."""
        return adapter

    @classmethod
    def prepare(cls, params: Any, role_plan: RolePlan) -> RolePlan:
        """The training of a teacher, or of what stands beside the student, as the scheme changes it."""
        return role_plan

    @classmethod
    def sections(cls, params: Any) -> Mapping[str, Mapping[str, Any]]:
        """Data sections of other tasks among the parameters, by their keys."""
        return {}

    @classmethod
    def overview(
        cls, params: Any, adapter: Adapter, models: Mapping[str, nn.Module], folder: Path
    ) -> Mapping[str, Any]:  # fmt: skip
        """What a report should say of all roles of the run in `folder` that is over, in eval mode without gradients."""
        return {}

    def find(self, model: nn.Module, paths: Iterable[str]) -> None:
        """Raises `UserError` with the nearest names for the first of `paths` that is no module of `model`."""
        for path in paths:
            try:
                found = find_modules(model, split(path)[0])
            except UserError as error:
                raise UserError(f"scheme: {error}") from None
            if len(found) > 1:
                raise UserError(f"scheme: {path!r} names {len(found)} modules ({', '.join(found[:4])}): name one")

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        """Raises `UserError` where the recipe's teachers or terms do not suit the scheme."""
        name = recipe.scheme.name if recipe.scheme else cls.__name__
        if cls.recipe_teacher == "needed" and recipe.teacher is None:
            raise UserError(f"scheme {name}: it needs a teacher, and the recipe has none")
        if cls.recipe_teacher == "none" and recipe.teacher is not None:
            raise UserError(f"scheme {name}: its teachers come out of the training itself: leave teacher out")
        if recipe.teachers and not cls.several:
            raise UserError(f"scheme {name}: it has one teacher: leave teachers out")
        if recipe.cache is not None:
            raise UserError(f"scheme {name}: what teaches is not the recipe's teacher alone: leave cache out")
