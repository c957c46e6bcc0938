"""Two augmentations of a sample, of each of which the objective is minimised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from ..adapter.adapter import Adapter, Batch, Source, Strict
from ..objective.parts import LossOut
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError, nearest
from ..training.method import Context, Distil, Roles
from ..training.role_plan import RolePlan
from .base import SCHEMES, Scheme
from .batches import same_rows, several_views, viewed


class BothViews(Distil):
    """Either view of every sample, each by itself."""

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        return super().loss(role, roles, batch, ctx) + of_other(super().loss(role, roles, viewed(batch), ctx))


def of_other(out: LossOut) -> LossOut:
    """Parts of the other view: rows may be valid in one and not in the other, so their counts are their own."""
    return LossOut({f"other/{n}": replace(p, unit=f"{p.unit}, other view") for n, p in out.parts.items()})


class TwoViewParams(Strict):
    first: tuple[str, ...] = ()
    """Terms of the first view alone, by their names."""
    second: tuple[str, ...] = ()
    """Terms of the second view alone; those named in neither are of both."""


@SCHEMES.register("two_views")
class TwoViews(Scheme):
    """Each sample in two augmentations, the teacher beside the student in either: the objective of both is minimised.

    So Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023: 0.1 (CE_1 + CE_2) + 0.9 (L_1 + L_2), ce and `mlkd`
    of the second view, and `mlkd` with ``confident: half``, a term of its own, of the first. The paper's views are a
    weak augmentation and a strong one, here two draws of the modality's own. The control learns from both views too; a
    step costs two passes.
    """

    Params: ClassVar[type[Strict]] = TwoViewParams
    paper, year, family = "Multi-Level Logit Distillation", 2023, "training"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        names = [term.name for term in self.objective]
        for key in ("first", "second"):
            for name in getattr(self.params, key):
                if name not in names:
                    raise UserError(f"scheme.params.{key}: no term is called {name!r}{nearest(name, names)}")
        if both := sorted({*self.params.first} & {*self.params.second}):
            raise UserError(f"scheme.params: {both[0]!r} is of the first view alone and of the second: name it once")
        if alone := next((key for key in ("first", "second") if {*names} == {*getattr(self.params, key)}), None):
            raise UserError(f"scheme.params.{alone}: that is every term, so the other view has none: leave one out")

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.balance.name != "fixed":
            raise UserError(f"scheme two_views: balance {recipe.balance.name} knows one view of a sample: leave it out")

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        same_rows(adapter, "two_views")
        return several_views(source)

    @classmethod
    def prepare(cls, params: Any, role_plan: RolePlan) -> RolePlan:
        """Half of what the student sees would make a weaker control."""
        beside = role_plan.role in ("control", "self_training")
        return replace(role_plan, method=BothViews) if beside else role_plan

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        one = super().loss(role, roles, batch, ctx)
        other = super().loss(role, roles, viewed(batch), ctx)
        return _but_for(one, self.params.second) + of_other(_but_for(other, self.params.first))


def _but_for(out: LossOut, names: Sequence[str]) -> LossOut:
    """`out` without the parts of some terms."""
    return LossOut({name: part for name, part in out.parts.items() if name not in names})
