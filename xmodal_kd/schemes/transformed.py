"""Self-supervision as what is taught: how alike a sample's transformed copies are to all samples of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..adapter.adapter import Adapter, Batch, Source, Strict
from ..losses.base import full_precision
from ..objective.parts import LossOut, Part
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..signals.signals import Signals
from ..training.method import Context, Roles, Stage, known_as
from ..training.optim import build_optimizer, scaling
from .base import SCHEMES, Scheme
from .batches import recorded
from .rows import pooled

#: Transformed copies of a sample.
COPIES = 3
#: Optimizer of the teacher's head.
HEAD = "teacher's head"


class Transformed(Strict):
    on: str
    """Module of either role whose output, averaged over a sample's rows, goes into a projection head of its own."""
    transfer: float = Field(2.7, ge=0)
    """Weight of the teacher's scores of the transformed copies."""
    relations: float = Field(10.0, ge=0)
    """Weight of the similarities of copies and samples; 0: there are no heads."""
    temperature: float = Field(4.0, gt=0)
    """Of the scores of the copies."""
    relation_temperature: float = Field(0.5, gt=0)
    """Of the similarities."""
    transfer_kept: float = Field(1.0, ge=0, le=1)
    """Share of the copies which the teacher takes for another class that are taught all the same, the best first."""
    relations_kept: float = Field(0.75, ge=0, le=1)
    """The like of copies that are liker another sample than their own."""


@SCHEMES.register("sskd")
class SelfSupervised(Scheme):
    """The student learns what the teacher says of turned copies, and how alike these are to a batch's samples.

    Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020: beside the objective's terms on samples as
    they are (ce of weight 0.1, kd of 0.9 at temperature 4), transfer T^2 KL(t || s) on three turned copies of each, and
    relations T^2 KL of the softmax over the batch's samples of the cosines of copies and samples, features by a
    projection head. Copies that the teacher errs on are taught in part (`select`). Copies are quarter turns; where
    height and width differ, the half turn and both mirrorings. The teacher's head learns beside the student, by the
    cross-entropy of each copy with its own sample, where the paper trains it before. Means are over what is kept.
    """

    Params: ClassVar[type[Strict]] = Transformed
    paper, year, family = "Knowledge Distillation Meets Self-Supervision", 2020, "training"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Projection heads by side; empty without relations.
        self.heads = nn.ModuleDict()

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.balance.name != "fixed":
            raise UserError(f"scheme: balance {recipe.balance.name} does not know the terms of sskd: leave it out")

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        recorded(adapter, "scheme sskd turns inputs that have a class each")
        return source

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        for model in (roles[self.role], roles[self.teacher]):
            self.find(model, [self.params.on])

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        found = super().begin(stage, roles, batch)
        if self.params.relations == 0:
            return found
        if not self.heads:
            for side, role in (("student", self.role), ("teacher", self.teacher)):
                with torch.no_grad(), self.streams.forked("dry run"):
                    rows = pooled(self.forward_role(role, roles, batch)[self.params.on])
                with self.streams.forked("scheme", side):
                    self.heads[side] = head(rows.shape[1]).to(rows)
        config = self.train.optimizer
        learners = {known_as(self.role): roles[self.role], "objective": self.objective, "scheme": self.heads["student"]}
        own = build_optimizer(scaling(config, lambda _: False), {HEAD: self.heads["teacher"]})
        return {HEAD: own, self.role: build_optimizer(config, learners)}

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "heads": self.heads}

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        side = of or ("student" if role in self.learners else "teacher")
        return self.forward_features(role, roles, batch, sorted({*self.objective.features(side), self.params.on}))

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        copies = self.adapter.given(turned(batch[recorded(self.adapter, "scheme sskd")[0]]))
        with ctx.timer.time("teacher"), torch.no_grad():
            theirs = [self.forward_role(self.teacher, roles, one) for one in (batch, copies)]
        if self.params.relations > 0:
            alike = self.similarities("teacher", *theirs)
            own = torch.arange(alike.shape[1], device=alike.device).repeat_interleave(COPIES)
            yield HEAD, LossOut.mean("copies", F.cross_entropy(alike, own, reduction="none"))
        with ctx.timer.time("student"):
            mine = [self.forward_role(self.role, roles, one) for one in (batch, copies)]
        with ctx.timer.time("loss"):
            out: LossOut = self.objective(mine[0], theirs[0], step=ctx.step, ranks=ctx.ranks)
            parts = {"transfer": self.transferred(mine[0], mine[1], theirs[1])}
            if self.params.relations > 0:
                with torch.no_grad():
                    alike = self.similarities("teacher", *theirs)
                parts["relations"] = self.related(self.similarities("student", *mine), alike)
            yield self.role, out + LossOut({name: part for name, part in parts.items() if part.weight})
        self.settle(roles, ctx)

    def similarities(self, side: str, samples: Signals, copies: Signals) -> Tensor:
        """``(3b, b)`` cosines of the copies, those of a sample behind one another, and the samples."""
        one, other = (self.heads[side](pooled(said[self.params.on])) for said in (copies, samples))
        return F.normalize(one, dim=1, eps=1e-8) @ F.normalize(other, dim=1, eps=1e-8).T

    def transferred(self, samples: Signals, copies: Signals, teacher: Signals) -> Part:
        """The teacher's scores of the copies that are kept; of a sample without a label, all."""
        (student, layout), t = copies["logits"], self.params.temperature
        if len(student) != layout.items:
            raise UserError("scheme sskd: a sample has several rows of scores, and a turned one others: take kd")
        log_p, log_q = (full_precision(rows / t).log_softmax(dim=1) for rows in (teacher.rows("logits"), student))
        labels = samples["labels"]
        known = labels.layout.mask if samples.labelled is None else labels.layout.mask & samples.labelled
        known, true = (rows.repeat_interleave(COPIES) for rows in (known, labels.rows.clamp(min=0)))
        kept = select(log_p, torch.where(known, true, log_p.argmax(dim=1)), self.params.transfer_kept)
        values = F.kl_div(log_q[kept], log_p[kept], reduction="sum", log_target=True)
        return Part(t**2 * values, float(len(kept)), self.params.transfer, "copies that are kept")

    def related(self, student: Tensor, teacher: Tensor) -> Part:
        """The teacher's similarities of the copies that are kept."""
        t, own = self.params.relation_temperature, torch.arange(teacher.shape[1], device=teacher.device)
        kept = select(teacher, own.repeat_interleave(COPIES), self.params.relations_kept)
        log_p, log_q = ((rows[kept] / t).log_softmax(dim=1) for rows in (teacher, student))
        values = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return Part(t**2 * values, float(len(kept)), self.params.relations, "relations that are kept")


def head(width: int) -> nn.Module:
    """Two layers, as wide as what they are given."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def turned(x: Tensor) -> Tensor:
    """``(b, ..., h, w)`` to ``(3b, ..., h, w)``: three copies of each, behind one another."""
    if x.shape[-1] == x.shape[-2]:
        copies = [x.rot90(turns, dims=(-2, -1)) for turns in (1, 2, 3)]
    else:
        copies = [x.flip(-2), x.flip(-1), x.flip(-2, -1)]
    return torch.stack(copies, dim=1).flatten(0, 1)


def select(scores: Tensor, target: Tensor, share: float) -> Tensor:
    """Rows whose target has the highest score, and a share of the others: those in which fewest scores are higher."""
    rank = (scores > scores.gather(1, target[:, None])).sum(dim=1)
    right = int((rank == 0).sum())
    return rank.argsort(stable=True)[: right + int((len(rank) - right) * share)]


__all__ = ["SelfSupervised", "select", "turned"]
