"""Online schemes: students that teach each other while they learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..adapter.adapter import Batch, Strict
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS, Signals, TeacherSignals
from ..training.method import Roles
from ..training.role_plan import RolePlan
from . import aggregate
from .base import SCHEMES, Scheme


class Peers(Strict):
    peers: int = Field(1, ge=1)
    """Students beside the one that is kept, each with initial weights of its own."""


class Group(Scheme):
    """Base of the schemes whose students are each other's teachers; the run's student is kept, its peers are not."""

    recipe_teacher: ClassVar[Literal["needed", "optional", "none"]] = "none"
    family = "online"
    moving: ClassVar[bool] = True

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        peers = tuple(f"peer-{number}" for number in range(1, params.peers + 1))
        return [replace(student, method=cls, settings=params, peers=peers)]

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


class Collaborators(Peers):
    how: Literal["min_logit", "naive"] = "min_logit"
    """What teaches all: of each class the least score, the label's taken off before; or the scores of the best one."""


@SCHEMES.register("kdcl")
class Collaborative(Group):
    """Students learn together, all from one target that is made of their scores with the help of the labels.

    Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020: KDCL-MinLogit takes off every
    student's score of the label and then the least of each class, so the target is as modest as the most modest of
    them; KDCL-Naive takes the student that is best on the row. The students are stepped in turn, as in `dml`, and see
    one view, where the paper gives each a distortion of its own. Where a label may not be looked at, the target is the
    mean of the scores. The two ways that weigh students on a held-out part (KDCL-Linear, -General) are not built.
    """

    Params: ClassVar[type[Strict]] = Collaborators
    paper, year = "Online Knowledge Distillation via Collaborative Learning", 2020
    learner_first: ClassVar[bool] = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for term in self.objective:
            if term.spec.needs_teacher and not OUTPUTS.issuperset(term.term.signals("teacher")):
                raise UserError(
                    f"term {term.name!r}: what teaches in the scheme kdcl are scores, which have no features to learn "
                    "from: compare logits, or use the scheme dml"
                )

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        assert outputs is not None
        if self.adapter.output != "logits" or "labels" not in outputs:
            raise UserError("scheme kdcl: it mixes scores by labels of classes, and this data has none: take dml")
        _, layout = outputs["logits"]
        labels = outputs["labels"]
        if not labels.layout.same_rows(layout) or labels.rows.is_floating_point():
            raise UserError("scheme kdcl: the labels are not one a row of the scores: take dml")
        others = (self.forward_role(one, roles, batch, of="teacher") for one in self.learners if one != role)
        scores = torch.stack([one.rows("logits").detach() for one in (outputs, *others)])
        held = labels.layout.mask & layout.mask
        held = held if outputs.labelled is None else held & outputs.labelled[layout.item]
        true = torch.where(held, labels.rows, -1)
        mix = aggregate.least if self.params.how == "min_logit" else aggregate.surest
        return Signals(outputs.ids).add("logits", mix(scores, true), layout)
