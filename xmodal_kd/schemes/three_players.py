"""A student and a teacher that name labels, and a discriminator that tells these from the true ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Strict
from ..objective.objective import Objective
from ..objective.parts import LossOut, Part
from ..recipe.recipe import Optimizer as OptimizerConfig
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS, Signals
from ..training.method import Context, Roles, Stage, known_as
from ..training.modes import evaluating
from ..training.optim import build_optimizer, scaling
from ..training.role_plan import RolePlan
from .base import SCHEMES, Scheme
from .rows import dense_rows, row_labels, terms_of

#: The role that judges, a second network like the student.
JUDGE = "discriminator"
#: What logarithms are held off 0 by, as released.
LEAST = 1e-20


class ThreePlayers(Strict):
    share: float = Field(0.5, ge=0, le=1)
    """Of the teacher in the game; the student has the rest."""
    returned: float = Field(0.0, ge=0)
    """Weight in the teacher's loss of the terms with a teacher, the student being it."""
    positives: int = Field(5, ge=1)
    """How often the true label counts among a row's labels."""
    negatives: int = Field(20, ge=1)
    """Labels of a row that either network names for the discriminator."""
    temperature: tuple[PositiveFloat, PositiveFloat] = (10.0, 0.1)
    """Of the noisy softmax that labels are drawn from: at the beginning and at the end."""
    decay: float = Field(0.88, gt=0, lt=1)
    """What it is multiplied by from one of its stairs to the next."""

    @model_validator(mode="after")
    def _check_order(self) -> ThreePlayers:
        first, last = self.temperature
        if first < last:
            raise ValueError(f"temperature: it falls: give the larger one first, got {first} and {last}")
        return self


class Said(NamedTuple):
    """Scores ``(n, k)`` of the three on the rows that have a label, these labels, and which rows they are."""

    student: Tensor
    teacher: Tensor
    judge: Tensor
    labels: Tensor
    rows: Tensor


@SCHEMES.register("kdgan")
class ThreePlayersGame(Scheme):
    """Student and teacher name labels of a sample, a discriminator tells them from the true ones; all three learn.

    Wang et al., "KDGAN: Knowledge Distillation with Generative Adversarial Networks", NeurIPS 2018, as released. In a
    step the discriminator learns to say 1 of true labels and 0 of those that are drawn from softmax((z + g) / tau) of
    student and of teacher, g being Gumbel noise; then either network's own score of labels that it draws is moved
    towards what the discriminator says of them, by the binary cross-entropy. The student minimises (1 - share) of
    that and the objective, the teacher ``share`` of it and ``returned`` times the objective's terms with a teacher,
    whose teacher is the student. The release has 0.7 of ce and 0.3 of half the squared distance of the scores
    (`logit_mse` of weight 0.15 times the classes), and counts the student's whole loss (samples / batch size) times.

    The discriminator is a network like the student, the teacher a copy that is tuned in eval mode and not kept. All
    three take a step in each step, where the release has epochs of each in turn. Rows without a label are in the
    objective alone.
    """

    Params: ClassVar[type[Strict]] = ThreePlayers
    paper, year = "KDGAN: Knowledge Distillation with Generative Adversarial Networks", 2018
    family = "training"
    teaches_itself: ClassVar[bool] = True
    moving: ClassVar[bool] = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.objectives = {self.role: self.objective}
        taught = [t for t in terms_of(self.objective, with_teacher=True) if OUTPUTS.issuperset(t.signals("teacher"))]
        if self.params.returned > 0 and not taught:
            raise UserError("scheme kdgan: returned: no term compares answers with a teacher's: add logit_mse")
        #: What the teacher learns from the student.
        self.back = Objective(taught, steps=self.train.steps) if self.params.returned > 0 else None

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        return [replace(student, method=cls, settings=params, peers=(JUDGE,))]

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.balance.name != "fixed":
            raise UserError(f"scheme kdgan: balance {recipe.balance.name} does not know its game: leave it out")

    @property
    def learners(self) -> tuple[str, ...]:
        """The one that the objective is for."""
        return (self.role,)

    def stages(self) -> Sequence[Stage]:
        return [Stage(self.role, self.train.steps, frozenset({self.role, self.teacher, JUDGE}))]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        roles[self.teacher] = copy.deepcopy(roles[self.teacher])  # the run's own is shown and measured as it was
        own = super().begin(stage, roles, batch)  # builds the objective
        if self.back is not None and not self.back.built:
            with torch.no_grad(), self.streams.forked("dry run"):
                self.back.build(self.tuned(roles, batch), self.forward_role(self.role, roles, batch), self.streams)
        if self.back is not None and any(True for _ in self.back.parameters()):
            raise UserError("scheme kdgan: a term with a teacher learns parameters of its own: returned: 0")
        others = {JUDGE: ("objective.", "teacher."), self.teacher: ("objective.", "student.")}
        return {
            role: build_optimizer(_without(self.train.optimizer, foreign), {known_as(role): roles[role]})
            for role, foreign in others.items()
        } | dict(own)

    def _optimizer(self, role: str, roles: Roles) -> Optimizer:
        config = _without(self.train.optimizer, ("teacher.",))
        return build_optimizer(config, {known_as(role): roles[role], "objective": self.objective})

    def tuned(self, roles: Roles, batch: Batch) -> Signals:
        """What the teacher says, in eval mode, on the student's rows."""
        with evaluating(roles[self.teacher]):
            return self.forward_role(self.teacher, roles, batch)

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        with ctx.timer.time("student"):
            mine = self.forward_role(self.role, roles, batch)
        with ctx.timer.time("teacher"), torch.no_grad():
            theirs = self.tuned(roles, batch)
        with ctx.timer.time("loss"):
            said, drawn = self.said(mine, theirs, roles, batch), self.drawn("judged", mine, batch, ctx)
            values = self.judged(said, drawn[said.rows], ctx.step)
        yield JUDGE, LossOut({f"{JUDGE}/game": Part(values.sum(), float(len(values)), 1.0, "labelled rows")})
        with ctx.timer.time("teacher"):
            theirs = self.tuned(roles, batch)
        with ctx.timer.time("loss"):
            said, drawn = self.said(mine, theirs, roles, batch), self.drawn("teacher", mine, batch, ctx)
            out = self.game(said.teacher, said.judge, drawn[said.rows], ctx.step, self.params.share)
            if self.back is not None:
                parts = self.back(theirs, mine.detach(), step=ctx.step, ranks=ctx.ranks).parts
                out += LossOut({n: replace(p, weight=self.params.returned * p.weight) for n, p in parts.items()})
        yield self.teacher, out.named("teacher")
        with ctx.timer.time("teacher"), torch.no_grad():
            theirs = self.tuned(roles, batch)
        with ctx.timer.time("loss"):
            drawn = self.drawn("student", mine, batch, ctx)
            out = self.game(said.student, said.judge, drawn[said.rows], ctx.step, 1 - self.params.share)
            out += self.objective(mine, theirs, step=ctx.step, ranks=ctx.ranks)
        yield self.role, out
        self.settle(roles, ctx)

    def said(self, mine: Signals, theirs: Signals, roles: Roles, batch: Batch) -> Said:
        """What the three say as they are."""
        known, judged = row_labels("kdgan", mine), self.forward_features(JUDGE, roles, batch, ())
        layouts = [one.layout("logits") for one in (mine, theirs, judged) if "logits" in one]
        if len(layouts) < 3 or not all(layout.same_rows(layouts[0]) for layout in layouts):
            raise UserError("scheme kdgan: teacher and student do not answer with classes, row by row: take dml or kd")
        rows = torch.stack([layout.mask for layout in layouts]).all(dim=0) & (known >= 0)
        student, teacher, judge = (dense_rows(one["logits"])[rows] for one in (mine, theirs, judged))
        return Said(student, teacher, judge, known[rows], rows)

    def judged(self, said: Said, drawn: Float[Tensor, "n u"], step: int) -> Float[Tensor, " n"]:
        """What the discriminator minimises, of each row."""
        share = float(self.params.share)
        values = torch.zeros_like(said.judge[:, 0])
        halves = drawn.chunk(2, dim=1)
        for scores, weight, half in zip((said.student, said.teacher), (1 - share, share), halves, strict=True):
            named = self.named(scores, half, self.params.negatives, step)
            true = F.softplus(-said.judge.gather(1, said.labels[:, None]).squeeze(1))
            false = F.softplus(said.judge.gather(1, named)).sum(dim=1)
            values = values + weight * (self.params.positives * true + false)
        counted: Tensor = values / (self.params.positives + self.params.negatives)
        return counted

    def game(
        self, scores: Float[Tensor, "n k"], judge: Float[Tensor, "n k"], drawn: Tensor, step: int, weight: float
    ) -> LossOut:
        """A network's own scores of labels that it names are moved towards what the discriminator says of them."""
        named = self.named(scores, drawn.chunk(2, dim=1)[0], self.params.positives + self.params.negatives, step)
        values = rewarded(scores, judge, named).mean(dim=1)
        return LossOut({"game": Part(values.sum(), float(len(values)), weight, "labelled rows")})

    def named(self, scores: Float[Tensor, "n k"], drawn: Tensor, count: int, step: int) -> Int[Tensor, "n m"]:
        """So many labels of each row, by its uniform numbers: first those of the noise, then those of the draws."""
        classes = scores.shape[1]
        first, last = self.params.temperature
        tau = cooled(step / max(1, self.train.steps), first, last, self.params.decay)
        shares = relaxed(scores.detach().double(), drawn[:, :classes], tau)
        return picked(shares, drawn[:, classes : classes + count])

    def drawn(self, purpose: str, mine: Signals, batch: Batch, ctx: Context) -> Float[Tensor, "n u"]:
        """Uniform numbers for two networks' noise and labels of every row: of step and sample, whatever the
        micro-batch."""
        rows, layout = mine["logits"]
        numbers = 2 * (rows.shape[1] + self.params.positives + self.params.negatives)
        counts = torch.bincount(layout.item, minlength=layout.items).tolist()
        path = ("kdgan", purpose, ctx.stage.name, ctx.step)
        made = [
            torch.from_numpy(ctx.streams.numpy(*path, number).random((count, numbers)))
            for number, count in zip(batch["ids"].tolist(), counts, strict=True)
        ]
        order = torch.argsort(layout.item, stable=True).cpu()
        placed = torch.empty(len(layout), numbers, dtype=torch.float64)
        return placed.index_copy_(0, order, torch.cat(made)).to(rows.device)


def _without(config: OptimizerConfig, foreign: tuple[str, ...]) -> OptimizerConfig:
    """Without the patterns of ``lr_scale`` that name parameters of other optimizers."""
    return scaling(config, lambda pattern: not pattern.startswith(foreign))


def relaxed(scores: Float[Tensor, "n k"], uniform: Float[Tensor, "n k"], tau: float) -> Float[Tensor, "n k"]:
    """``softmax((z + g) / tau)`` with g Gumbel noise of uniform numbers."""
    noise = -torch.log(-torch.log(uniform + LEAST) + LEAST)
    return ((scores + noise) / tau).softmax(dim=1)


def picked(shares: Float[Tensor, "n k"], uniform: Float[Tensor, "n m"]) -> Int[Tensor, "n m"]:
    """Classes drawn with these shares, one for each uniform number."""
    return torch.searchsorted(shares.cumsum(dim=1), uniform.contiguous()).clamp(max=shares.shape[1] - 1)


def rewarded(
    scores: Float[Tensor, "n k"], judge: Float[Tensor, "n k"], named: Int[Tensor, "n m"]
) -> Float[Tensor, "n m"]:
    """The binary cross-entropy of own scores at these labels with the discriminator's answer, which is held."""
    reward = judge.detach().gather(1, named).sigmoid()
    return F.binary_cross_entropy_with_logits(scores.gather(1, named), reward, reduction="none")


def cooled(progress: float, first: float, last: float, decay: float) -> float:
    """The temperature after a share of the training: it falls to `last` by stairs of equal length."""
    stairs = math.log(last / first) / math.log(decay)
    return first * decay ** math.floor(progress * stairs)


__all__ = ["ThreePlayersGame", "cooled", "picked", "relaxed", "rewarded"]
