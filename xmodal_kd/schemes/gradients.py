"""Gradients of the class loss at what a network's last layer is given, as features that losses compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Strict
from ..losses.base import full_precision, without_autocast
from ..objective.objective import Objective
from ..objective.parts import LossOut
from ..recipe.recipe import On, Recipe, Term
from ..recipe.schedules import Schedule
from ..runtime.errors import UserError
from ..signals.signals import Layout, Signals
from ..training.method import Context, Roles, Stage, known_as
from ..training.optim import build_optimizer
from .base import SCHEMES, Scheme
from .rows import dense_rows, row_labels

#: The signal that holds them.
GRADIENT = "gradient"


class OfGradients(Strict):
    """A term as the objective's, on the gradients."""

    loss: str
    weight: float = Field(1.0, ge=0)
    schedule: Schedule = Schedule()
    params: dict[str, Any] = Field(default_factory=dict)


class ClassGradientParams(Strict):
    head: str | On = "head"
    """Path of the linear layer, in student and teacher, that the scores come from."""
    terms: tuple[OfGradients, ...] = Field(default=(OfGradients(loss="crcd"),), min_length=1)
    """Losses of features, here of gradients."""


@SCHEMES.register("class_gradients")
class ClassGradients(Scheme):
    """Beside the objective, losses compare the gradients of the class loss at what the two last layers are given.

    So the second half of Zhu et al., "Complementary Relation Contrastive Distillation", CVPR 2021, as released: `crcd`
    of the gradients, or 10 times one minus their cosine (`distilbert`), beside `crcd` of the features and `kd` in the
    objective. Of a row with scores z, label y and a last layer of weights W: ``g = (softmax(z) - 1{y}) W / B``, each
    network by its own W, B being ``train.batch_size``. The student learns through its scores and through W. Rows
    without a label have none. The last layer is linear, or a convolution of 1 x 1, and the scores are what it says, or
    the mean of that.
    """

    Params: ClassVar[type[Strict]] = ClassGradientParams
    paper, year, family = "Complementary Relation Contrastive Distillation", 2021, "training"
    teaches_itself: ClassVar[bool] = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        terms = [Term(on=GRADIENT, **term.model_dump()) for term in self.params.terms]
        #: What is minimised of gradients.
        self.relations = Objective(terms, steps=self.train.steps)
        if alone := next((t for t in self.relations if not {"features", "teacher"} <= t.spec.needs), None):
            raise UserError(
                f"scheme class_gradients: {alone.name!r} compares no features with a teacher's: name a loss that does, "
                "such as crcd (xmodal-kd list losses)"
            )

    @property
    def paths(self) -> Mapping[str, str]:
        """By role, its last layer."""
        head = self.params.head
        mine, theirs = (head, head) if isinstance(head, str) else (head.student, head.teacher)
        return {self.role: str(mine), self.teacher: str(theirs)}

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.balance.name != "fixed":
            raise UserError(
                f"scheme class_gradients: balance {recipe.balance.name} does not know its terms: leave it out"
            )

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        for role, path in self.paths.items():
            self.find(roles[role], [path])
            last_weights(role, roles[role], path)

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        super().begin(stage, roles, batch)  # builds the objective
        if not self.relations.built:
            with torch.no_grad(), self.streams.forked("dry run"):
                mine, theirs = (self.gradients(role, self.forward_role(role, roles, batch)) for role in self.paths)
            with self.streams.forked("scheme"):
                self.relations.build(mine, theirs, self.streams)
        own = {"objective": self.objective, "scheme": self.relations}
        return {self.role: build_optimizer(self.train.optimizer, {known_as(self.role): roles[self.role], **own})}

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "scheme": self.relations}

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        with ctx.timer.time("teacher"), torch.no_grad():
            teacher = self.forward_role(self.teacher, roles, batch)
        with ctx.timer.time("student"):
            student = self.forward_role(role, roles, batch)
        with ctx.timer.time("loss"):
            out: LossOut = self.objective(student, teacher, step=ctx.step, ranks=ctx.ranks)
            apart = self.gradients(role, student), self.gradients(self.teacher, teacher)
            of_gradients: LossOut = self.relations(*apart, step=ctx.step, ranks=ctx.ranks)
            return out + of_gradients.named(GRADIENT)

    def gradients(self, role: str, said: Signals) -> Signals:
        """Those of a role, on the rows of its scores that have a label."""
        assert said.model is not None
        labels, (_, layout) = row_labels("class_gradients", said), said["logits"]
        weights, scores = last_weights(role, said.model, self.paths[role]), dense_rows(said["logits"])
        if scores.shape[1] != len(weights):
            raise UserError(
                f"scheme class_gradients: {self.paths[role]!r} of the {role} makes {len(weights)} scores and its "
                f"answers are {scores.shape[1]}: name the layer that these come from (head)"
            )
        rows = class_gradients(scores, labels.clamp(min=0), weights) / self.train.batch_size
        there = Layout(layout.kind, layout.mask & (labels >= 0), layout.item, layout.items, layout.grid)
        return Signals(said.ids).add(GRADIENT, rows, there)


def class_gradients(
    scores: Float[Tensor, "n k"], labels: Int[Tensor, " n"], weights: Float[Tensor, "k c"]
) -> Float[Tensor, "n c"]:
    """Of each row's cross-entropy, at what a last layer of these weights was given."""
    with without_autocast(scores.device.type):
        errors: Tensor = scores.softmax(dim=1) - F.one_hot(labels, scores.shape[1])
        found: Tensor = errors @ full_precision(weights).to(errors)
    return found


def last_weights(role: str, model: nn.Module, path: str) -> Float[Tensor, "k c"]:
    """Of the linear layer at `path`. Raises `UserError` where it is none."""
    layer = model.get_submodule(path)
    if isinstance(layer, nn.Linear):
        return layer.weight
    if isinstance(layer, _ConvNd) and set(layer.kernel_size) == {1} and layer.groups == 1:
        return layer.weight.flatten(1)
    raise UserError(
        f"scheme class_gradients: {path!r} of the {role} is a {type(layer).__name__}, not a linear layer: name the one "
        "that the scores come from (head)"
    )


__all__ = ["ClassGradients", "class_gradients", "last_weights"]
