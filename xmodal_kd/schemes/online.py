"""Online schemes: students that teach each other while they learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from ..adapter.adapter import Adapter, Batch, Source, Strict
from ..recipe.recipe import Recipe
from ..signals.signals import Signals, TeacherSignals
from ..training.method import Roles
from ..training.role_plan import RolePlan
from .base import SCHEMES, Scheme
from .batches import same_rows, several_views, viewed


class Peers(Strict):
    peers: int = Field(1, ge=1)
    """Students beside the one that is kept, each with initial weights of its own."""


class OwnViews(Strict):
    own_views: bool = False
    """Each student sees an augmentation of a sample of its own; else all see the same."""


class Group(Scheme):
    """Base of the schemes whose students are each other's teachers; the run's student is kept, its peers are not."""

    recipe_teacher: ClassVar[Literal["needed", "optional", "none"]] = "none"
    family = "online"
    moving: ClassVar[bool] = True
    #: As recipes name it, for messages.
    name: ClassVar[str] = ""

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        peers = tuple(f"peer-{number}" for number in range(1, params.peers + 1))
        return [replace(student, method=cls, settings=params, peers=peers)]

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        if not getattr(params, "own_views", False):
            return source
        same_rows(adapter, cls.name)
        return several_views(source, 1 + params.peers)

    def seen_by(self, role: str, batch: Batch) -> Batch:
        """The view of a learner, or of what is made of one: the student's is the batch itself."""
        own = getattr(self.params, "own_views", False) and role in self.learners
        return viewed(batch, self.learners.index(role)) if own else batch

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        return super().forward_role(role, roles, self.seen_by(role, batch), of)

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        """``disagreement`` of each pair of students: the share of valid rows for which they answer different classes.

        Where the answer is a regression, the root mean square of their difference.
        """
        output, answers = self.adapter.output, dict[str, Tensor]()
        for role in self.learners:
            # all as the student, so that all are shown the same view
            rows, layout = self.forward_role(self.role, {self.role: roles[role]}, batch)[output]
            answers[role] = rows[layout.mask]
        differ = _classes if output == "logits" else _values
        pairs = combinations(self.learners, 2)
        return {"disagreement": {f"{a} and {b}": differ(answers[a], answers[b]) for a, b in pairs}}


def _classes(one: Tensor, other: Tensor) -> float:
    return (one.argmax(dim=-1) != other.argmax(dim=-1)).float().mean().item()


def _values(one: Tensor, other: Tensor) -> float:
    return (one - other).float().square().mean().sqrt().item()


@SCHEMES.register("dml")
class Mutual(Group):
    """Students learn together, each from the labels and from what every other one says.

    Zhang et al., "Deep Mutual Learning", CVPR 2018, eq. 7: the mean over the others of the term with a teacher (kd at
    temperature 1), the students stepped in turn, each after the others' latest step.
    """

    Params: ClassVar[type[Strict]] = Peers
    paper, year = "Deep Mutual Learning", 2018

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        return {other: self.forward_role(other, roles, batch, of="teacher") for other in self.learners if other != role}
