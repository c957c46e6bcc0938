"""A teacher that is tuned with branches of its student, so that what it knows is easier to take over."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Strict
from ..losses.base import full_precision
from ..objective.objective import Objective
from ..objective.parts import LossOut, Part
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..signals.capture import capture, only_call
from ..signals.signals import OUTPUTS, Signals
from ..training.method import Context, Roles, Stage
from ..training.optim import build_optimizer, scaling
from .base import SCHEMES, Scheme
from .into_layers import Order, mixed_into, order_of
from .rows import dense_rows, diverged, terms_of
from .several import lacking

#: The stages.
TUNE, DISTIL = "tune", "distil"


class FriendlyParams(Strict):
    layers: dict[str, str] = Field(min_length=1)
    """Modules of the student in whose place a branch is given what a module of the teacher says: theirs by its own."""
    steps: int | None = Field(None, gt=0)
    """Of the teacher's tuning; None: ``train.steps``, which are those of the student."""
    labels: float = Field(1.0, ge=0)
    """Weight of the terms without a teacher at the branches, a mean over these; the teacher's own count 1."""
    agree: float = Field(1.0, ge=0)
    """Weight of the divergence of the branches from the teacher, a mean over them, by which the teacher learns too."""
    temperature: float = Field(1.0, gt=0)
    """Of that divergence, between class scores."""


@SCHEMES.register("sftn")
class StudentFriendly(Scheme):
    """The teacher is first tuned with branches of the student behind its layers, then it teaches as the objective says.

    Park et al., "Learning Student-Friendly Teacher Networks for Knowledge Distillation", NeurIPS 2021: behind a layer
    of the teacher stands a branch, a linear map of its rows and the student's layers from there on. All learn
    together: task(t) + labels * mean_i task(b_i) + agree * mean_i KL(t || b_i), the gradient of which goes to the
    teacher too; the task are the terms without a teacher that read answers. Then branches are thrown away. Here the
    recipe's teacher is trained by itself, or loaded, and a copy of it is tuned, which the paper finds to do nearly as
    well as from scratch; the run's own is shown and measured as it was. Branches start as the student does.

    No release was found, and the paper's equations could not be read: the direction of the divergence and its mean over
    branches are by a summary. A branch runs the student's earlier layers too, whose answer is not used.
    """

    Params: ClassVar[type[Strict]] = FriendlyParams
    paper, year, family = "Learning Student-Friendly Teacher Networks for Knowledge Distillation", 2021, "training"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        alone = [t for t in terms_of(self.objective, with_teacher=False) if OUTPUTS.issuperset(t.signals("student"))]
        if not alone:
            raise UserError("scheme sftn: no term without a teacher reads answers, to tune the teacher by: add ce")
        #: What teacher and branches learn.
        self.task = Objective(alone, steps=self._steps)
        #: By layer, from the teacher's rows to the student's; there while the teacher is tuned.
        self.adapters: nn.ModuleList | None = None
        self.orders: dict[str, Order] = {}
        self._copied = False

    @property
    def _steps(self) -> int:
        return int(self.params.steps or self.train.steps)

    @property
    def branches(self) -> Mapping[str, tuple[str, str]]:
        """By role of a branch, the modules of student and teacher."""
        return {f"branch-{number}": pair for number, pair in enumerate(self.params.layers.items(), 1)}

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.balance.name != "fixed":
            raise UserError(f"scheme sftn: balance {recipe.balance.name} does not know its branches: leave it out")

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        self.find(roles[self.role], self.params.layers)
        self.find(roles[self.teacher], self.params.layers.values())

    def stages(self) -> Sequence[Stage]:
        tuned = frozenset({self.teacher, *self.branches})
        return [Stage(TUNE, self._steps, tuned, last=True), Stage(DISTIL, self.train.steps, frozenset(self.learners))]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        if not self._copied:
            roles[self.teacher] = copy.deepcopy(roles[self.teacher])
            self._copied = True
        if stage.name == TUNE:
            return {self.teacher: self._tuning(roles, batch)}
        self.adapters = None
        for branch in self.branches:
            roles.pop(branch, None)
        return super().begin(stage, roles, batch)

    def _tuning(self, roles: Roles, batch: Batch) -> Optimizer:
        layers = list(self.params.layers)
        with torch.no_grad(), self.streams.forked("dry run"):
            with capture(roles[self.role], layers) as taken:
                mine = self.forward_features(self.role, roles, batch, layers)
            theirs = self._said(roles, batch)
            self.task.build(theirs, None, self.streams)
        if any(True for _ in self.task.parameters()):
            raise UserError("scheme sftn: a term without a teacher learns parameters of its own: leave it out")
        if short := lacking({self.teacher: theirs}, self.adapter.output):
            raise UserError(f"scheme sftn: the teacher knows {short[self.teacher]} of the student's classes, not all")
        with self.streams.forked("scheme", "branches"):
            self.adapters = nn.ModuleList()
            for branch, (layer, path) in self.branches.items():
                if not mine.layout(layer).same_rows(theirs.layout(path)):
                    raise UserError(
                        f"scheme sftn: {layer!r} has {len(mine.layout(layer))} rows and the teacher's {path!r} "
                        f"{len(theirs.layout(path))} that do not mean the same: name layers of one resolution"
                    )
                self.orders[layer] = order_of(only_call(layer, taken[layer]), mine[layer], layer)
                widths = theirs.rows(path).shape[1], mine.rows(layer).shape[1]
                self.adapters.append(nn.Linear(*widths).to(dense_rows(mine[layer])))
                roles[branch] = copy.deepcopy(roles[self.role]).train().requires_grad_(True)
        config = scaling(self.train.optimizer, lambda pattern: pattern.startswith("teacher."))
        return build_optimizer(
            config,
            {"teacher": roles[self.teacher], "scheme": self.adapters, **{name: roles[name] for name in self.branches}},
        )

    def _optimizer(self, role: str, roles: Roles) -> Optimizer:
        whole = self.train
        config = scaling(whole.optimizer, lambda pattern: not pattern.startswith("teacher."))
        self.train = whole.model_copy(update={"optimizer": config})
        try:
            return super()._optimizer(role, roles)
        finally:
            self.train = whole

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), **({} if self.adapters is None else {"adapters": self.adapters})}

    def _said(self, roles: Roles, batch: Batch) -> Signals:
        return self.forward_features(self.teacher, roles, batch, sorted({*self.params.layers.values()}))

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        if self.adapters is None:  # the teacher is tuned
            yield from super().losses(batch, roles, ctx)
            return
        with ctx.timer.time("teacher"):
            theirs = self._said(roles, batch)
        with ctx.timer.time("student"):
            branches = {one: self._branch(number, theirs, roles, batch) for number, one in enumerate(self.branches)}
        with ctx.timer.time("loss"):
            out = self.task(theirs, None, step=ctx.step, ranks=ctx.ranks).named(self.teacher)
            for name, said in branches.items():
                out += self._compared(theirs, said, ctx).named(name)
        yield self.teacher, out

    def _branch(self, number: int, theirs: Signals, roles: Roles, batch: Batch) -> Signals:
        """What a branch answers: the student's own forward pass with the teacher's rows in the place of a layer."""
        assert self.adapters is not None
        name, (layer, path) = list(self.branches.items())[number]
        rows, layout = self.adapters[number](dense_rows(theirs[path])), theirs.layout(path)
        with mixed_into(roles[name], layer, self.orders[layer], rows, torch.ones_like(rows[:, :1]), layout):
            return self.forward_features(self.role, {self.role: roles[name]}, batch, ())

    def _compared(self, theirs: Signals, branch: Signals, ctx: Context) -> LossOut:
        """Of a branch: its task and how far it is from the teacher, each its share of the mean over branches."""
        each, output = 1 / len(self.branches), self.adapter.output
        parts = self.task(branch, None, step=ctx.step, ranks=ctx.ranks).parts
        weight = self.params.labels * each
        out = LossOut({n: Part(p.total, p.count, weight * p.weight, f"{p.unit}, branch") for n, p in parts.items()})
        (ours, own), (rows, layout) = branch[output], theirs[output]
        valid, classes = own.mask & layout.mask, output == "logits"
        over = self.params.temperature if classes else 1.0
        values = diverged(full_precision(rows[valid]) / over, full_precision(ours[valid]) / over, of_classes=classes)
        return out + LossOut({"agree": Part(values.sum(), float(len(values)), self.params.agree * each, "answers")})


__all__ = ["FriendlyParams", "StudentFriendly"]
