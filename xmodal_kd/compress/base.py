"""What a way of compression is: a change to the trainings of student and control, and to what is exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ..adapter import Adapter, Strict
from ..lessons import Lesson
from ..recipe import Recipe
from ..registry import Registry

COMPRESSIONS: Registry[type[Compression]] = Registry("compression")


class Compression:
    """Base of the ways of compression. The first line of a docstring is shown by ``list compress``."""

    Params: ClassVar[type[Strict]]
    #: Source of the method.
    paper: ClassVar[str]
    year: ClassVar[int]
    #: Whether student and control start from weights of the teacher: a control without that teacher would be another.
    starts_taught: ClassVar[bool] = False
    #: Inspired by the paper rather than the paper's method.
    experimental: ClassVar[bool] = False

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, lesson: Lesson) -> Lesson:
        """The training of the student, or of its control, as this way changes it.

        Raises:
            UserError: the recipe lacks what it needs.
        """
        return lesson

    @classmethod
    def export(cls, params: Any, adapter: Adapter, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        """Write what is small of the trained student into `folder`; returns what was measured, for the report."""
        return {}
