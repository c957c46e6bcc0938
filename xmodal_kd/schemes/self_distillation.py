"""Self-distillation: a student that learns from itself, on another sample, in another view, or as it was before."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from ..adapter.adapter import Adapter, Batch, Source, Strict
from ..objective.parts import LossOut, Part
from ..recipe.recipe import Recipe
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError
from ..signals.signals import Signals, TeacherSignals
from ..training.label_budget import LabelBudget
from ..training.method import Context, Ema, Roles, Stage
from ..training.role_plan import RolePlan
from .base import SCHEMES, Family, Scheme
from .batches import Pairs, same_rows, several_views, viewed
from .rows import pooled, replaced, terms_of, weighed
from .views import BothViews, of_other


class SelfTeaching(Scheme):
    """Base: the recipe has no teacher."""

    recipe_teacher: ClassVar[Literal["needed", "optional", "none"]] = "none"
    family: ClassVar[Family] = "self"
    moving: ClassVar[bool] = True


# ---------------------------------------------------------------- CS-KD


@SCHEMES.register("cs_kd")
class ClassWise(SelfTeaching):
    """A sample learns from what the student says of another sample of its class.

    Yun et al., "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR 2020: CE(x) + T^2 KL(p(x')
    || p(x)) with x' another sample of x's class, the target without gradient but from the same pass in training mode.
    kd at temperature 4 and weight 1. Both samples of a pair learn and teach; the released code teaches one way, and
    sees twice the samples for it.

    Batches are of pairs of a class (`batches.Pairs`). Where samples hold rows of several classes (points), two samples
    that stand side by side are a pair, and the i-th row of a class learns from the other's i-th row of that class,
    counted around; rows whose class the other sample lacks learn from labels alone.
    """

    Params: ClassVar[type[Strict]] = Strict
    learner_first: ClassVar[bool] = True
    paper, year = "Regularizing Class-wise Predictions via Self-knowledge Distillation", 2020

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        if isinstance(source, LabelBudget):
            raise UserError("scheme cs_kd: pairs of a class need the labels of all samples: leave labels out")
        if adapter.blank is not None or adapter.output != "logits":
            what = "a sequence of labels" if adapter.blank is not None else "values to predict"
            raise UserError(
                f"scheme cs_kd: rows have no classes of their own (a sample has {what}): choose another scheme"
            )
        return Pairs(source)

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        self._whole_pairs(1)

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        self._whole_pairs(ctx.ranks.world)
        return super().loss(role, roles, batch, ctx)

    def _whole_pairs(self, world: int) -> None:
        """Raises `UserError` where the cut into micro-batches and ranks would go through pairs."""
        shares = self.train.accumulate * world
        if self.train.batch_size % (2 * shares):
            raise UserError(
                f"scheme cs_kd: train.batch_size {self.train.batch_size} is no whole number of pairs in each of its "
                f"{shares} parts: give a multiple of {2 * shares}"
            )

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        assert outputs is not None  # as learner_first asks
        output = outputs[self.adapter.output]
        labels, layout = outputs["labels" if "labels" in outputs else self.adapter.output]
        if labels.ndim != 1 or not layout.same_rows(output.layout):
            raise UserError(
                f"scheme cs_kd: rows have no classes of their own (answers are {output.layout.kind}s, labels "
                f"{layout.kind}s): choose ddgsd or ema_teacher"
            )
        known = layout.mask & output.layout.mask & (labels >= 0)
        mate = partners(labels, layout.item, known)
        there = mate >= 0
        rows = {name: outputs.rows(name)[mate.clamp(min=0)] for name in outputs if _follows(outputs, name, len(labels))}
        return replaced(outputs, rows, there)


def _follows(outputs: Signals, name: str, rows: int) -> bool:
    """Whether a signal of these rows is the student's own, rather than data that belong to its row."""
    return name != "labels" and outputs.rows(name).ndim == 2 and len(outputs.rows(name)) == rows


def partners(labels: Tensor, item: Tensor, known: Tensor) -> Tensor:
    """``(n,)``: the row that teaches each row, of the same class in the item beside its own; -1 where there is none.

    Items 2i and 2i + 1 stand side by side. The i-th row of a class meets the other's i-th, counted around, among
    `known` rows, so that neither padding nor the cut into micro-batches changes anything.
    """
    out = torch.full_like(item, -1)
    where = known.nonzero().squeeze(1)
    if not len(where):
        return out
    kinds = int(labels[where].max()) + 1
    group = item[where] * kinds + labels[where]
    groups = (int(item.max()) // 2 * 2 + 2) * kinds
    order = torch.sort(group, stable=True).indices
    size = torch.bincount(group, minlength=groups)
    first = size.cumsum(0) - size
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - first[group[order]]
    other = (item[where] ^ 1) * kinds + labels[where]
    theirs = size[other]
    found = order[(first[other] + rank % theirs.clamp(min=1)).clamp(max=len(order) - 1)]
    out[where] = torch.where(theirs > 0, where[found], -1)
    return out


# ---------------------------------------------------------------- DDGSD


class TwoViewParams(Strict):
    on: str | None = None
    """Path of the module whose mean features over a batch are drawn together (linear MMD); None: none are."""
    mmd: float = Field(0.005, ge=0)
    """Weight of that."""


@SCHEMES.register("ddgsd")
class TwoViewed(SelfTeaching):
    """Each sample in two augmentations, each of which learns from what the student says of the other.

    Xu & Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019: CE_a + CE_b + T^2 (KL(p_a
    || p_b) + KL(p_b || p_a)) + l ||mean_B f_a - mean_B f_b||^2, targets without gradient, f averaged over a sample's
    rows. T 3, l 0.005. A step costs two passes of as many samples, for the control as well: it sees both views.
    """

    Params: ClassVar[type[Strict]] = TwoViewParams
    paper, year = "Data-Distortion Guided Self-Distillation for Deep Neural Networks", 2019

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.balance.name == "gradnorm":
            raise UserError("scheme ddgsd: balance gradnorm knows one view of a sample: leave it out")

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        same_rows(adapter, "ddgsd")
        return several_views(source)

    @classmethod
    def prepare(cls, params: Any, role_plan: RolePlan) -> RolePlan:
        """Half of what the student sees would make a weaker control."""
        return replace(role_plan, method=BothViews) if role_plan.role == "control" else role_plan

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        self.find(roles[self.role], [self.params.on] if self.params.on is not None else [])

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        """For the dry run; in `loss` both views speak once."""
        return self.forward_role(role, roles, viewed(batch))

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        wanted = set(self.objective.features("student")) | set(self.objective.features("teacher"))
        return self.forward_features(role, roles, batch, sorted(wanted | ({self.params.on} - {None})))

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        objective = self.objectives[role]
        with ctx.timer.time("student"):
            one, other = (self.forward_role(role, roles, view) for view in (batch, viewed(batch)))
        with ctx.timer.time("loss"):
            out: LossOut = objective(one, other, step=ctx.step, ranks=ctx.ranks)
            back = objective(other, one, step=ctx.step, ranks=ctx.ranks)
            out += of_other(back)
            if self.params.on is not None and self.params.mmd > 0:
                value = mean_distance(pooled(one[self.params.on]), pooled(other[self.params.on]), ctx.ranks)
                count = value.new_tensor(1 / ctx.ranks.world)
                out += LossOut({"mmd": Part(value, count, self.params.mmd, "batch, mmd")})
        return out


def mean_distance(one: Tensor, other: Tensor, ranks: Ranks) -> Tensor:
    """||mean_B a - mean_B b||^2 of ``(b, c)`` features over all ranks, of which a rank reports 1 / world.

    Its gradient is whole on every rank for the rank's own rows, as the objective's losses over a batch do it.
    """
    a, b = (ranks.gather_rows(rows) if ranks.world > 1 else rows for rows in (one, other))
    value = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return value / ranks.world + (value - value.detach()) * (1 - 1 / ranks.world)


# ---------------------------------------------------------------- the student as it was


class EmaParams(Strict):
    decay: float = Field(0.999, ge=0, lt=1)
    """Of the average; 0.99 for short trainings, 0.9999 for long ones."""


@SCHEMES.register("ema_teacher")
class MeanTeacher(SelfTeaching):
    """The teacher is a moving average of the student's weights, in evaluation mode.

    Tarvainen & Valpola, "Mean Teachers Are Better Role Models", NeurIPS 2017. Its role is ``ema``: where the modality
    shows frozen teachers the clean view of a sample (speech), the student sees the augmented one. The run's student is
    the student; ``train.ema`` keeps an average instead.
    """

    Params: ClassVar[type[Strict]] = EmaParams
    paper, year = "Mean Teachers Are Better Role Models", 2017

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"teacher": "ema"})

    def stages(self) -> Sequence[Stage]:
        return [replace(s, ema={"ema": Ema(self.role, self.params.decay)}) for s in super().stages()]


class PreviousParams(Strict):
    alpha: float = Field(0.8, gt=0, le=1)
    """Weight of the terms with a teacher at the end; it rises linearly, and 1 less it is that of the others."""
    every: int | None = Field(None, gt=0)
    """Steps between copies of the student; None: an epoch."""


@SCHEMES.register("ps_kd")
class PreviousSelf(SelfTeaching):
    """The teacher is the student as it was at the end of the last epoch, and is trusted more and more.

    Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021 (PS-KD): the soft target
    (1 - a_t) y + a_t p_(t-1), a_t = 0.8 t / T with epochs t counted from 1, which is the cross entropy weighed by 1 -
    a_t and kd at temperature 1 weighed by a_t. The first epoch has no teacher.
    """

    Params: ClassVar[type[Strict]] = PreviousParams
    paper, year = "Self-Knowledge Distillation with Progressive Refinement of Targets", 2021

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"teacher": "previous"})
        if not terms_of(self.objective, with_teacher=False):
            raise UserError("scheme ps_kd: the first epoch has no teacher, and every term needs one: add one without")
        samples = 0 if self.params.every else len(self.adapter.data("train"))
        self.every = self.params.every or max(1, round(samples / self.train.batch_size))

    def stages(self) -> Sequence[Stage]:
        return [replace(stage, saves=frozenset({"previous"})) for stage in super().stages()]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        if "previous" not in roles:
            roles["previous"] = copy.deepcopy(roles[self.role]).eval().requires_grad_(False)
        return super().begin(stage, roles, batch)

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        if ctx.step % self.every == 0 and ctx.micro < ctx.ranks.world:  # the first micro-batch of a step
            roles["previous"].load_state_dict(roles[self.role].state_dict())
        yield from super().losses(batch, roles, ctx)

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        alpha = self.alpha(ctx.step, ctx.stage.steps)
        return weighed(
            super().loss(role, roles, batch, ctx), self.objectives[role], with_teacher=alpha, alone=1 - alpha
        )

    def alpha(self, step: int, steps: int) -> float:
        """a_t of the epoch that `step` is in; 0 in the first."""
        epoch = step // self.every + 1
        epochs = max(1, -(-steps // self.every))
        return 0.0 if epoch == 1 else float(self.params.alpha * epoch / epochs)
