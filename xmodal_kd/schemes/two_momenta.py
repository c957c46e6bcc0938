"""Distillation-oriented training: what the labels and what the teacher ask for, each with a momentum of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Strict
from ..objective.objective import Objective
from ..objective.parts import LossOut
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..training.method import Context, Roles, Stage
from .base import SCHEMES, Scheme
from .rows import terms_of, weighed

#: The turn of the terms with a teacher.
TAUGHT = "taught"


class DotParams(Strict):
    delta: float = Field(0.075, ge=0, lt=1)
    """By how much the teacher's momentum is above ``train.optimizer.betas[0]``, and the task's below."""


class Kept(Optimizer):
    """Holds the teacher's gradient of this step, for `Dot`."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        super().__init__([dict(group) for group in groups], {})
        self.gradients: dict[Tensor, Tensor] = {}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        found = (p for group in self.param_groups for p in group["params"])
        self.gradients = {p: p.grad for p in found if p.grad is not None}


class Dot(Optimizer):
    """``w <- w - lr (m + k)``: m averages the task's gradient by ``momentum - delta``, k the teacher's by ``+ delta``.

    Weights are decayed in m. What only one of the two reaches has that one's average, decay and the momentum itself.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], taught: Kept, momentum: float, delta: float) -> None:
        super().__init__([dict(group) for group in groups], {"momentum": momentum, "delta": delta})
        self.taught = taught

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        kept, self.taught.gradients = self.taught.gradients, {}
        for group in self.param_groups:
            momentum, delta = group["momentum"], group["delta"]
            for weight in group["params"]:
                task, taught = weight.grad, kept.get(weight)
                both = task is not None and taught is not None
                decay = group["weight_decay"] * weight
                change = torch.zeros_like(weight)
                if task is not None:
                    change += self._averaged(weight, "task", task + decay, momentum - delta * both)
                if taught is not None:
                    taught = taught if both else taught + decay
                    change += self._averaged(weight, "taught", taught, momentum + delta * both)
                weight -= group["lr"] * change

    def _averaged(self, weight: Tensor, name: str, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[weight]
        state[name] = gradient.clone() if name not in state else state[name].mul_(momentum).add_(gradient)
        found: Tensor = state[name]
        return found


@SCHEMES.register("dot")
class DistillationOriented(Scheme):
    """The teacher's gradient and the labels' have a momentum each, the teacher's the longer one (DOT).

    Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023: SGD with two averages of gradients, of momentum mu +
    delta for the terms with a teacher and mu - delta for those without, whose sum is the step. mu is
    ``train.optimizer.betas[0]`` of ``sgd``; without Nesterov's look ahead, as released. delta is 0.075 for CIFAR-100
    and 0.09 for ImageNet. A step runs the student twice, for a backward pass of each of the two. The control is trained
    by the optimizer of the recipe.
    """

    Params: ClassVar[type[Strict]] = DotParams
    paper, year, family = "DOT: A Distillation-Oriented Trainer", 2023, "training"

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        given = recipe.train.optimizer
        if given.name != "sgd":
            raise UserError(f"scheme dot: it is a form of sgd, not of {given.name}: set train.optimizer.name: sgd")
        if recipe.balance.name != "fixed":
            raise UserError(f"scheme dot: balance {recipe.balance.name} weighs losses of one sum: leave it out")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        alone = terms_of(self.objective, with_teacher=False)
        if not alone:
            raise UserError("scheme dot: no term works without a teacher: add one, as ce")
        momentum, delta = self.train.optimizer.betas[0], self.params.delta
        if not delta <= momentum < 1 - delta:
            raise UserError(
                f"scheme dot: the momenta {momentum:g} -+ delta {delta:g} must lie between 0 and 1: set "
                "train.optimizer.betas or a smaller delta"
            )
        self.task = Objective(alone, steps=self.train.steps)

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        groups = super().begin(stage, roles, batch)[self.role].param_groups
        if not self.task.built:
            with torch.no_grad(), self.streams.forked("dry run"):
                self.task.build(self.forward_role(self.role, roles, batch), None, self.streams)
        if any(True for _ in self.task.parameters()):
            raise UserError("scheme dot: a term without a teacher learns parameters of its own: leave it out")
        taught = Kept(groups)
        momentum = self.train.optimizer.betas[0]
        return {TAUGHT: taught, self.role: Dot(groups, taught, momentum, self.params.delta)}

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        taught = weighed(self.loss(self.role, roles, batch, ctx), self.objectives[self.role], alone=0.0)
        if any(part.weight for part in taught.parts.values()):  # a schedule may have ended the teaching
            yield TAUGHT, taught
        with ctx.timer.time("student"):
            outputs = self.forward_role(self.role, roles, batch)
        with ctx.timer.time("loss"):
            out: LossOut = self.task(outputs, None, step=ctx.step, ranks=ctx.ranks)
        yield self.role, out
