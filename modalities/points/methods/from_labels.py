"""Methods of detection that learn from labels: a teacher's confident boxes among them, what its heads need of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.objective.objective import Objective
from xmodal_kd.objective.parts import LossOut, Part
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Layout, Signals
from xmodal_kd.training.method import METHODS, Context, Distil, Roles, Stage, known_as
from xmodal_kd.training.optim import build_optimizer, scaling

from ..models import HEADED, CenterPoint
from ..models.decoding import Found
from ..models.label_encoder import LabelEncoder, block, drawn

#: What the heads of a detector say of cells.
ANSWERS = frozenset({"logits", "boxes"})


class LabelKDParams(Strict):
    score: float = Field(0.6, ge=0, le=1)
    """From which a teacher's box is a target."""


@METHODS.register("label_kd")
class LabelKD(Distil):
    """Label distillation of detectors: the teacher's boxes of high score join the targets (Yang et al., 2022).

    They stand before the labelled boxes, so that of two centres in a cell the labelled one stays. Terms of the
    objective are those of ``distil``; a term with a teacher stands beside it. All samples need labels.
    """

    Params: ClassVar[type[Strict]] = LabelKDParams
    cacheable: ClassVar[bool] = False

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        if not hasattr(self.adapter, "found"):
            raise UserError("method label_kd adds a teacher's boxes to the labels: it needs data.task detection")
        if self.teacher not in roles:
            raise UserError("method label_kd adds a teacher's boxes to the labels, and there is no teacher: give one")

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        with ctx.timer.time("teacher"):
            finds = self.adapter.found(self.teacher, roles[self.teacher], batch)  # type: ignore[attr-defined]
        return super().loss(role, roles, joined(batch, finds, self.params.score), ctx)


def joined(batch: Batch, finds: list[Found], score: float) -> Batch:
    """The batch whose targets are a teacher's boxes of at least `score`, and behind them those of its labels."""
    boxes, numbers = list[Tensor](), list[Tensor]()
    for found, some, kinds in zip(finds, batch["boxes"], batch["numbers"], strict=True):
        sure = found[found.scores >= score]
        boxes.append(torch.cat([torch.from_numpy(sure.boxes).to(some), some]))
        numbers.append(torch.cat([torch.from_numpy(sure.numbers).to(kinds), kinds]))
    return {**batch, "boxes": boxes, "numbers": numbers}


class LabelDistillParams(Strict):
    hidden: int = Field(32, ge=1, le=4096)
    """Channels inside the encoder of labels."""
    warmup: float = Field(0.5, ge=0, le=1)
    """Share of the training over which the weight of its features grows, for it learns while they teach."""
    label: float = Field(0.3, ge=0)
    """Weight of the features of the labels."""
    lidar: float = Field(0.3, ge=0)
    """Weight of the features of the teacher."""


@METHODS.register("labeldistill")
class LabelDistill(Distil):
    """LabelDistill of detectors: a third of the student's features learns what the teacher's heads need to be right.

    An encoder of the labels learns to make features from which the frozen teacher's heads answer the labelled boxes.
    Of the student's ``features`` the first third of the channels learns these, the second the teacher's, each through
    convolutions of its own, and the rest is free: ``sum m |A(s) - t|^2 / sum m`` over cells, m the sum over classes of
    the right heat for the teacher's, 1 wherever that is above 0 for the labels' (Kim et al., 2024). Terms of the
    objective are those of ``distil``; the paper's response term is not built, `sparsekd` is near it. The paper trains
    the encoder before; here it learns beside the student, whose label term grows over ``warmup``. The two see cells of
    one size.
    """

    Params: ClassVar[type[Strict]] = LabelDistillParams
    cacheable: ClassVar[bool] = False
    shards: ClassVar[bool] = False

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        #: Encoder of the labels, and the two ways from a third of the student's features to the teacher's.
        self.made = nn.ModuleDict()
        #: The task's own terms on what heads answer, by which the encoder learns.
        alone = [one.term for one in self.objective if not one.spec.needs_teacher]
        alone = [term for term in alone if ANSWERS.issuperset(term.signals("student"))]
        self.task = Objective(alone, steps=self.objective.steps)

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        if not hasattr(self.adapter, "found"):
            raise UserError("method labeldistill learns from boxes: it needs data.task detection")
        if self.teacher not in roles:
            raise UserError("method labeldistill learns from a teacher's heads, and there is no teacher: give one")
        if not len(self.task.terms):
            raise UserError("method labeldistill: no term without a teacher trains its encoder: add gaussian_focal")
        student, teacher = roles[self.role], roles[self.teacher]
        if not (isinstance(student, CenterPoint) and isinstance(teacher, CenterPoint)):
            raise UserError(
                f"method labeldistill is of {' and '.join(HEADED)}: set teacher.model and student.model to one of them"
            )
        if student.width < 3:
            raise UserError("method labeldistill parts the student's channels in three: set student.params.width to 3")
        grounds = [self.adapter.ground(role) for role in (self.role, self.teacher)]  # type: ignore[attr-defined]
        if grounds[0] != grounds[1]:
            raise UserError(
                f"method labeldistill: the student answers on cells of {grounds[0].cell:g} m, the teacher on cells of "
                f"{grounds[1].cell:g} m: make data.student.cell and data.teacher.cell agree"
            )

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        super().begin(stage, roles, batch)
        student, teacher = roles[self.role], roles[self.teacher]
        assert isinstance(student, CenterPoint) and isinstance(teacher, CenterPoint)
        mine, theirs = student.width // 3, teacher.width
        if not self.made:
            with self.streams.forked("labeldistill"):
                self.made["encoder"] = LabelEncoder(teacher.classes, self.params.hidden, theirs)
                for name in ("label", "lidar"):
                    self.made[name] = nn.Sequential(block(mine, theirs), block(theirs, theirs))
            self.made.to(next(student.parameters()).device)
        config, ways = self.train.optimizer, {name: self.made[name] for name in ("label", "lidar")}
        learners = {known_as(self.role): student, "objective": self.objective, **ways}
        alone = scaling(config, lambda _: False)
        return {
            "encoder": build_optimizer(alone, {"encoder": self.made["encoder"]}),
            self.role: build_optimizer(config, learners),
        }

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "labels": self.made}

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        side = of or ("student" if role in self.learners else "teacher")
        return self.forward_features(role, roles, batch, sorted({*self.objective.features(side), "features"}))

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        with ctx.timer.time("loss"):
            learned = self.encoder_loss(roles, batch, ctx.step)
        yield "encoder", learned
        yield from super().losses(batch, roles, ctx)

    def encoder_loss(self, roles: Roles, batch: Batch, step: int = 0) -> LossOut:
        """The task's own terms, of what the frozen teacher's heads answer to the features of the labels."""
        teacher: Any = roles[self.teacher]
        features = self.labels_as_features(batch)
        ground = self.adapter.ground(self.teacher)  # type: ignore[attr-defined]
        layout = Layout.dense("pixel", len(batch["keys"]), ground.shape, features.device)
        out = Signals(batch["ids"])
        out.labelled = batch.get("labelled")
        for name, maps in (("logits", teacher.heat(features)), ("boxes", teacher.boxes(features))):
            out.add(name, rearrange(maps, "b c h w -> (b h w) c"), layout)
        self.adapter.say_labels(out, batch, ground, layout)  # type: ignore[attr-defined]
        answered: LossOut = self.task(out, step=step)
        return answered.named("encoder")

    def labels_as_features(self, batch: Batch) -> Tensor:
        """``(b, c, h, w)``, as wide as the teacher's."""
        ground = self.adapter.ground(self.teacher)  # type: ignore[attr-defined]
        encoder: Any = self.made["encoder"]
        boxes, numbers = self.adapter.known_things(batch)  # type: ignore[attr-defined]
        rows = drawn(boxes, numbers, ground, encoder.kind[0].in_features)
        out: Tensor = encoder(rows.to(encoder.kind[0].weight.device), len(batch["keys"]), ground.shape)
        return out

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        with ctx.timer.time("teacher"), torch.no_grad():
            teacher = self.forward_role(self.teacher, roles, batch)
            labels = rearrange(self.labels_as_features(batch), "b c h w -> (b h w) c")
        with ctx.timer.time("student"):
            outputs = self.forward_role(role, roles, batch)
        with ctx.timer.time("loss"):
            out: LossOut = self.objectives[role](outputs, teacher, step=ctx.step, ranks=ctx.ranks)
            return out + self.parts(outputs, teacher.rows("features"), labels, ctx)

    def parts(self, outputs: Signals, teacher: Tensor, labels: Tensor, ctx: Context) -> LossOut:
        rows, layout = outputs["features"]
        assert layout.grid is not None
        h, w = layout.grid
        heat = outputs.rows("labels").sum(dim=1)
        third = rows.shape[1] // 3
        grown = min(1.0, (ctx.step + 1) / max(1.0, self.params.warmup * self.train.steps))
        found = {}
        for at, (name, target, mask, weight) in enumerate((
            ("label", labels, (heat > 0).to(rows.dtype), self.params.label * grown),
            ("lidar", teacher, heat, self.params.lidar),
        )):  # fmt: skip
            part = rearrange(rows[:, at * third : (at + 1) * third], "(b h w) c -> b c h w", h=h, w=w)
            mine = rearrange(self.made[name](part), "b c h w -> (b h w) c")
            found[name] = Part(masked_square(mine, target, mask), mask.sum(), weight, name)
        return LossOut(found)


def masked_square(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """``sum_i m_i sum_c (s - t)^2``: the numerator of a feature term of LabelDistill."""
    return (mask * (student - teacher).square().sum(dim=1)).sum()


__all__ = ["LabelDistill", "LabelKD", "drawn", "joined", "masked_square"]
