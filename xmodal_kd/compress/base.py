"""What a way of compression is: a change to how student and control start, compute and are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ..adapter.adapter import Adapter, Strict
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..runtime.random_streams import Streams
from ..runtime.registry import Registry
from ..training.method import Distil
from ..training.role_plan import RolePlan
from .origins import Origins

COMPRESSIONS: Registry[type[Compression]] = Registry("compression")


@dataclass
class Record:
    """What is known of a model that was compressed, beside its weights.

    Attributes:
        origins: where its initial weights come from; empty for those of a fresh model.
        coded: by name what its weights are written as, once it is trained.
        more: further tensors that are written with them.
        facts: for the report.
    """

    origins: Origins = field(default_factory=dict)
    coded: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def record(model: nn.Module) -> Record:
    """The record of a model, made when it is first asked for; a copy of the model has a copy of it."""
    found: Any = getattr(model, "compression", None)
    if found is None:
        found = Record()
        model.compression = found
    return found  # type: ignore[no-any-return]


# docs/decisions/013-compression.md
class Compression:
    """Base of the ways of compression. The first line of a docstring is shown by ``list compress``.

    Of one run's student and what must be as small as it (`roles.COMPRESSED`), in this order: `plan` before anything is
    built, `check` before anything is trained, `start` when its training begins or goes on, `finish` when it is over,
    `save` with its weights, `restore` when these are loaded, `export` of the student alone.
    """

    Params: ClassVar[type[Strict]]
    #: Source of the method.
    paper: ClassVar[str]
    year: ClassVar[int]
    #: Whether student and control start from weights of the teacher: a control without that teacher would be another.
    starts_taught: ClassVar[bool] = False
    #: Whether what it starts from are weights that were trained before.
    trained: ClassVar[bool] = False
    #: Whether it stands between the weights and the forward pass.
    swaps_weights: ClassVar[bool] = False
    #: Inspired by the paper rather than the paper's method.
    experimental: ClassVar[bool] = False

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, role_plan: RolePlan) -> RolePlan:
        """The training of the student, or of its control, as this way changes it.

        Raises:
            UserError: the recipe lacks what it needs.
        """
        if not issubclass(role_plan.method, Distil):
            raise UserError(f"compress: the method {recipe.method.name!r} makes its own student: leave one of them out")
        kinds = [COMPRESSIONS[spec.name] for spec in recipe.compress]
        if cls.swaps_weights and kinds.index(cls) < len(kinds) - 1:
            raise UserError("compress: quantise, or qat, is the last of the list, and there is only one of the two")
        if cls.starts_taught and recipe.teacher is None:
            raise UserError("compress: the student would start from weights of its teacher, and the recipe has none")
        return role_plan

    @classmethod
    def check(cls, params: Any, adapter: Adapter, model: nn.Module, roles: Mapping[str, nn.Module]) -> None:
        """Raises `UserError` for a fresh model that cannot start so; `roles` may be trained or not."""

    @classmethod
    def start(
        cls, params: Any, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module]
    ) -> nn.Module:
        """What is trained in the place of a model with its initial weights, which may be the same object.

        Args:
            role_plan: the training that begins or goes on.
            roles: of earlier trainings.
        """
        return model

    @classmethod
    def finish(cls, params: Any, model: nn.Module) -> None:
        """Leave a trained model as it is to be used: its own class and state, with the weights it computes with."""

    @classmethod
    def save(cls, params: Any, model: nn.Module, folder: Path) -> None:
        """Write what else a compressed model is beside its weights in `folder`."""

    @classmethod
    def restore(cls, params: Any, model: nn.Module, folder: Path) -> None:
        """Put back into a model that was loaded from `folder` what `save` wrote there."""

    @classmethod
    def plain(cls, params: Any, model: nn.Module) -> nn.Module:
        """A trained model as the modality exports it: without what its exporter cannot express."""
        return model

    @classmethod
    def export(cls, params: Any, adapter: Adapter, model: nn.Module, folder: Path) -> Mapping[str, Any]:
        """What was measured of what is small in the trained student's `folder`, for the report."""
        return {}


def earlier(recipe: Recipe, kind: type[Compression]) -> list[type[Compression]]:
    """What stands before one way of compression in a recipe's list."""
    kinds = [COMPRESSIONS[spec.name] for spec in recipe.compress]
    return kinds[: kinds.index(kind)]


@dataclass(frozen=True)
class Ways:
    """All that one role is compressed by, in order: each with its parameters."""

    ways: tuple[tuple[type[Compression], Any], ...]

    def __iter__(self) -> Iterator[tuple[type[Compression], Any]]:
        return iter(self.ways)

    def plan(self, recipe: Recipe, role_plan: RolePlan) -> RolePlan:
        for kind, params in self.ways:
            role_plan = kind.plan(params, recipe, role_plan)
        return role_plan

    def check(self, adapter: Adapter, model: nn.Module, roles: Mapping[str, nn.Module]) -> None:
        for kind, params in self.ways:
            kind.check(params, adapter, model, roles)

    def start(
        self, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module], streams: Streams
    ) -> nn.Module:
        for kind, params in self.ways:
            with streams.forked("compress", kind.__name__):
                model = kind.start(params, adapter, role_plan, model, roles)
        return model

    def finish(self, model: nn.Module) -> dict[str, Any]:
        """What the report should say of it."""
        for kind, params in self.ways:
            kind.finish(params, model)
        facts = dict(record(model).facts) if self.ways else {}
        return {"compressed": facts} if facts else {}

    def save(self, model: nn.Module, folder: Path) -> None:
        for kind, params in self.ways:
            kind.save(params, model, folder)

    def restore(self, model: nn.Module, folder: Path) -> None:
        for kind, params in self.ways:
            kind.restore(params, model, folder)

    def export(self, adapter: Adapter, model: nn.Module, folder: Path) -> dict[str, Any]:
        """What the modality exports of the student, and what is small of it."""
        plain = model
        for kind, params in self.ways:
            plain = kind.plain(params, plain)
        found = dict(adapter.export(plain, folder))
        for kind, params in self.ways:
            found |= kind.export(params, adapter, model, folder)
        return found
