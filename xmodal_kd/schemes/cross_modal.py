"""Across a gap between modalities: a teacher that is tuned to its student, and rows on which they may be compared."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Strict
from ..losses.base import full_precision
from ..losses.connectors import NormKind, RowNorm
from ..objective.objective import Objective
from ..objective.parts import LossOut, Part
from ..recipe.recipe import On, Recipe
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS, Signal, Signals
from ..training.method import Context, Roles, Stage
from ..training.modes import evaluating
from ..training.optim import build_optimizer
from .base import SCHEMES, Scheme
from .rows import answered, dense_rows, row_labels, terms_of

#: Values of pairs of classes that are compared at once.
AT_ONCE = 1 << 24


class Bridged(Strict):
    on: str | On
    """Path of the module, in student and teacher, on whose output a proxy stands."""
    threshold: float = Field(0.0, ge=-1, lt=1)
    """Rows are compared where the proxies rank the classes alike: Kendall's tau above it."""
    released: bool = True
    """The true class's score is set to 0 between the proxies, as the release does; else the class is left out."""
    norm: NormKind = "layer"
    """Of the proxies; ``batch``, as published, makes a step of several micro-batches another one."""
    width: int | None = Field(None, ge=1)
    """Channels inside a proxy; those of its features unless said."""


class Proxy(nn.Module):
    """A second head: a linear map, a norm, ReLU, and a classifier, of an item's mean where its answer is one row.

    Args:
        width: channels of the features; `hidden` those inside.
    """

    def __init__(self, width: int, hidden: int, classes: int, norm: NormKind) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(width, hidden, bias=False), RowNorm(norm, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, feature: Signal, answers: Signal) -> Float[Tensor, "n c"]:
        """On the rows of `answers`; 0 on those that are not valid."""
        valid = feature.layout.mask.nonzero().squeeze(1)
        rows = F.relu(self.norm(self.enter(full_precision(feature.rows[valid]))))
        return answered(self.head, rows, feature.layout, answers.layout)


@SCHEMES.register("c2kd")
class CrossModal(Scheme):
    """Teacher and student learn together, each beside a proxy; proxies teach one another on rows that they rank alike.

    Huo et al., "C2KD: Bridging the Modality Gap for Cross-Modal Knowledge Distillation", CVPR 2024, as released. With
    s, t the answers and p_s, p_t those of the proxies (all learn): task(s) + KL(s || p_s) + KL(p_s || s) + NT(p_t ||
    p_s), and the same the other way. NT is the KL without the true class, on rows where Kendall's tau of p_s and p_t
    over the classes is above `threshold`, as a mean over all rows; targets are without gradient, the temperature is 1.
    The task is the objective's terms without a teacher, the teacher's those that read answers; a term with a teacher is
    the student's alone. A copy of the teacher is tuned and then forgotten, in eval mode so that both meet on the
    student's rows: its norms stay as they were, where the release lets them learn. Rows without a label are not
    compared across.
    """

    Params: ClassVar[type[Strict]] = Bridged
    paper, year = "C2KD: Bridging the Modality Gap for Cross-Modal Knowledge Distillation", 2024
    family = "training"
    teaches_itself: ClassVar[bool] = True
    moving: ClassVar[bool] = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        alone = [t for t in terms_of(self.objective, with_teacher=False) if OUTPUTS.issuperset(t.signals("student"))]
        if not alone:
            raise UserError("scheme c2kd: no term without a teacher reads answers, to tune the teacher by: add ce")
        #: What the teacher goes on learning.
        self.task = Objective(alone, steps=self.train.steps)
        self.proxies: nn.ModuleDict | None = None

    @property
    def paths(self) -> Mapping[str, str]:
        """By role, the module whose output its proxy reads."""
        on = self.params.on
        mine, theirs = (on, on) if isinstance(on, str) else (on.student, on.teacher)
        return {self.role: str(mine), self.teacher: str(theirs)}

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.balance.name != "fixed":
            raise UserError(f"scheme c2kd: balance {recipe.balance.name} does not know its proxies: leave it out")

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        for role, path in self.paths.items():
            self.find(roles[role], [path])

    def stages(self) -> Sequence[Stage]:
        return [Stage(self.role, self.train.steps, frozenset({self.role, self.teacher}))]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        roles[self.teacher] = copy.deepcopy(roles[self.teacher])  # the run's own is shown and measured as it was
        if self.proxies is None:
            with torch.no_grad(), self.streams.forked("dry run"):
                said = self.speak(roles, batch)
                self.task.build(said[self.teacher], None, self.streams)
            with self.streams.forked("scheme", "proxies"):
                self.proxies = nn.ModuleDict({role: self._proxy(role, said[role]) for role in self.paths})
        if any(True for _ in self.task.parameters()):
            raise UserError("scheme c2kd: a term without a teacher learns parameters of its own: leave it out")
        return super().begin(stage, roles, batch)

    def _optimizer(self, role: str, roles: Roles) -> Optimizer:
        assert self.proxies is not None
        owners = {
            "student": roles[role], "objective": self.objective, "teacher": roles[self.teacher], "scheme": self.proxies,
        }  # fmt: skip
        return build_optimizer(self.train.optimizer, owners)

    def _proxy(self, role: str, said: Signals) -> nn.Module:
        (rows, layout), (answers, own) = said[self.paths[role]], said["logits"]
        if not layout.same_rows(own) and len(own) > own.items:
            raise UserError(
                f"scheme c2kd: {self.paths[role]!r} of the {role} has {len(layout)} rows and its answers {len(own)} "
                "that do not mean the same: name a layer of their resolution (on)"
            )
        made = Proxy(rows.shape[1], self.params.width or rows.shape[1], answers.shape[1], self.params.norm)
        return made.to(full_precision(rows))

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), **({} if self.proxies is None else {"scheme": self.proxies})}

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        side = of or ("student" if role in self.learners else "teacher")
        return self.forward_features(role, roles, batch, sorted({*self.objective.features(side), self.paths[role]}))

    def speak(self, roles: Roles, batch: Batch) -> Mapping[str, Signals]:
        """What both say of a batch, with gradients, on the student's rows."""
        with evaluating(roles[self.teacher]):
            theirs = self.forward_role(self.teacher, roles, batch)
        mine = self.forward_role(self.role, roles, batch)
        if self.adapter.output != "logits" or not mine.layout("logits").same_rows(theirs.layout("logits")):
            raise UserError("scheme c2kd: teacher and student do not answer with classes, row by row: take dml or kd")
        return {self.role: mine, self.teacher: theirs}

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        with ctx.timer.time("student"):
            said = self.speak(roles, batch)
        with ctx.timer.time("loss"):
            out: LossOut = self.objective(said[self.role], said[self.teacher], step=ctx.step, ranks=ctx.ranks)
            out += self.task(said[self.teacher], None, step=ctx.step, ranks=ctx.ranks).named("teacher")
            out += self.bridge(said)
        yield self.role, out
        self.settle(roles, ctx)

    def bridge(self, said: Mapping[str, Signals]) -> LossOut:
        """What the proxies add: of each side and its own proxy, and of the two proxies."""
        answers, proxies, labels = self.rows(said)
        names, out = {self.role: "student", self.teacher: "teacher"}, LossOut()
        for role, name in names.items():
            values = divergence(answers[role], proxies[role]) + divergence(proxies[role], answers[role])
            out += LossOut({f"proxy/{name}": Part(values.sum(), float(len(values)), 1.0, "rows, proxies")})
        known = labels >= 0
        mine, theirs = (proxies[role][known] for role in (self.role, self.teacher))
        alike = kendall(mine.detach(), theirs.detach()) > self.params.threshold
        for name, (teaching, learning) in {"student": (theirs, mine), "teacher": (mine, theirs)}.items():
            apart = beside_true(teaching, learning, labels[known], released=self.params.released)
            total = torch.where(alike, apart, torch.zeros_like(apart)).sum()
            out += LossOut({f"across/{name}": Part(total, float(len(apart)), 1.0, "labelled rows, proxies")})
        return out

    def rows(self, said: Mapping[str, Signals]) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Int[Tensor, " n"]]:
        """By role answers and proxies' answers on the rows that are valid on both sides, and the labels of these."""
        assert self.proxies is not None
        valid = torch.stack([one.layout("logits").mask for one in said.values()]).all(dim=0)
        answers = {role: dense_rows(one["logits"])[valid] for role, one in said.items()}
        proxies = {role: self.proxies[role](one[self.paths[role]], one["logits"])[valid] for role, one in said.items()}
        proxies = {role: full_precision(rows) for role, rows in proxies.items()}  # autocast rounds to ties
        return answers, proxies, row_labels("c2kd", said[self.role])[valid]

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        """``compared``: the share of labelled rows that the two proxies rank alike at the end."""
        _, proxies, labels = self.rows(self.speak(dict(roles), batch))
        known = labels >= 0
        alike = kendall(proxies[self.role][known], proxies[self.teacher][known]) > self.params.threshold
        return {"compared": alike.float().mean().item() if len(alike) else None}


def divergence(target: Float[Tensor, "n c"], learning: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """KL(target || learning) of each row of scores, the target without gradient."""
    fixed = target.detach().log_softmax(dim=1)
    return F.kl_div(learning.log_softmax(dim=1), fixed, reduction="none", log_target=True).sum(dim=1)


def beside_true(
    target: Float[Tensor, "n c"], learning: Float[Tensor, "n c"], labels: Int[Tensor, " n"], *, released: bool
) -> Float[Tensor, " n"]:
    """`divergence` without the true class, whose scores are 0 instead as `released`."""
    true = F.one_hot(labels, target.shape[1]).bool()
    if released:
        return divergence(target.masked_fill(true, 0.0), learning.masked_fill(true, 0.0))
    shape = (len(target), target.shape[1] - 1)
    return divergence(target[~true].reshape(shape), learning[~true].reshape(shape))


def kendall(one: Float[Tensor, "n c"], other: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Kendall's tau-b of each row's order of the classes; NaN where all of a row's scores are the same."""
    pairs = one.shape[1] ** 2
    found = [_tau(a, b) for a, b in zip(*(x.split(max(1, AT_ONCE // pairs)) for x in (one, other)), strict=True)]
    return torch.cat(found)


def _tau(one: Tensor, other: Tensor) -> Tensor:
    first, second = ((x[:, :, None] - x[:, None, :]).sign().flatten(1) for x in (one, other))
    sizes = first.abs().sum(dim=1) * second.abs().sum(dim=1)
    return (first * second).sum(dim=1) / sizes.sqrt()


__all__ = ["CrossModal", "Proxy", "beside_true", "divergence", "kendall"]
