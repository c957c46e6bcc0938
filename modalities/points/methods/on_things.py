"""UniDistill and BEVDistill: what two detectors make of the ground, compared at the things that stand on it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.objective.parts import LossOut, Part
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.signals import Signals
from xmodal_kd.training.method import METHODS, Context, Distil, Roles, Stage, known_as
from xmodal_kd.training.optim import build_optimizer

from ..models import HEADED, CenterPoint
from ..views.ground import Ground

#: How far a probability of the heat is kept from 0 and 1.
EDGE = 1e-4
#: What is added to a length before it divides.
LEAST = 1e-4
#: The box of each cell, and what both heads see.
SEEN = ("boxes", "features")


class OnThings(Distil):
    """The base of both: features of the student through a 1 x 1 convolution where the teacher's are of another width,
    boxes of the labels, and what the student's and the teacher's heads say. Terms of the objective are those of
    ``distil``."""

    cacheable: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    called: ClassVar[str]

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        #: What learns beside the student.
        self.made = nn.ModuleDict()

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        if not hasattr(self.adapter, "found"):
            raise UserError(f"method {self.called} compares where boxes are: it needs data.task detection")
        if self.teacher not in roles:
            raise UserError(f"method {self.called} compares a student with a teacher, and there is none: give one")
        if not all(isinstance(roles[role], CenterPoint) for role in (self.role, self.teacher)):
            raise UserError(
                f"method {self.called} is of {' and '.join(HEADED)}: set teacher.model and student.model to one of them"
            )

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        super().begin(stage, roles, batch)
        student, teacher = roles[self.role], roles[self.teacher]
        assert isinstance(student, CenterPoint) and isinstance(teacher, CenterPoint)
        if not self.made:
            with self.streams.forked(self.called):
                self.made.update(self.learners_beside(student.width, teacher.width))
            self.made.to(next(student.parameters()).device)
        learners = {known_as(self.role): student, "objective": self.objective, self.called: self.made}
        return {self.role: build_optimizer(self.train.optimizer, learners)}

    def learners_beside(self, student: int, teacher: int) -> dict[str, nn.Module]:
        """By name, of features of so many channels."""
        return {"way": nn.Conv2d(student, teacher, 1) if student != teacher else nn.Identity()}

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), self.called: self.made}

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        side = of or ("student" if role in self.learners else "teacher")
        return self.forward_features(role, roles, batch, sorted({*self.objective.features(side), *SEEN}))

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        with ctx.timer.time("teacher"), torch.no_grad():
            teacher = self.forward_role(self.teacher, roles, batch)
        with ctx.timer.time("student"):
            outputs = self.forward_role(role, roles, batch)
        with ctx.timer.time("loss"):
            out: LossOut = self.objectives[role](outputs, teacher, step=ctx.step, ranks=ctx.ranks)
            boxes, _ = self.adapter.known_things(batch)  # type: ignore[attr-defined]
            return out + LossOut(self.parts(outputs, teacher, boxes))

    @abstractmethod
    def parts(self, outputs: Signals, teacher: Signals, boxes: list[Tensor]) -> dict[str, Part]:
        """What is compared, of rows on the student's cells and each frame's boxes ``(m, 7)``."""

    @property
    def ground(self) -> Ground:
        """The student's cells."""
        found: Ground = self.adapter.ground(self.role)  # type: ignore[attr-defined]
        return found


class UniDistillParams(Strict):
    feature: float = Field(10.0, ge=0)
    """Weight of the features at nine points of a box. Published, from a fused teacher to one of LiDAR: 10, 1 and 10;
    from LiDAR to cameras 100, 40 and 10; from cameras to LiDAR 10, 5 and 1."""
    relation: float = Field(1.0, ge=0)
    """Weight of the likeness among the nine."""
    response: float = Field(10.0, ge=0)
    """Weight of the heads' answers, of the heat and of the boxes each."""
    temperature: float = Field(2.0, gt=0)
    """By which the teacher's heat is softened."""


@METHODS.register("unidistill")
class UniDistill(OnThings):
    """UniDistill of detectors on a common ground (Zhou et al., 2023): features, relations and answers where things are.

    At nine points of each box (corners, middle, middles of the edges) features of both are sampled: the mean of
    ``|f_s - f_t|``, and of ``|R_s - R_t|`` with R the cosines of the nine. The answers are compared under the right
    heat G: ``sum G |max_k p_s - max_k p_t| / sum G`` with ``p_t = sigmoid(heat / temperature)``, and the boxes' mean
    difference in the same way. One map, what the heads see, stands for the paper's lower and higher; G is the centre
    head's own Gaussian and not one by the size of a box; the release samples maps that are not square elsewhere than
    at the points that it computes, which is not followed.
    """

    Params: ClassVar[type[Strict]] = UniDistillParams
    called: ClassVar[str] = "unidistill"

    def parts(self, outputs: Signals, teacher: Signals, boxes: list[Tensor]) -> dict[str, Part]:
        mine, theirs = (as_maps(side) for side in (outputs, teacher))
        points = [nine_points(some) for some in boxes]
        one, other = sampled(self.made["way"](mine), points, self.ground), sampled(theirs, points, self.ground)
        feature = (one - other).abs().mean(dim=(1, 2)).sum()
        related = (relation(one) - relation(other)).abs().mean(dim=(1, 2)).sum()
        heat = outputs.rows("foreground")
        p, q = (highest(side.rows("logits") / t) for side, t in ((outputs, 1.0), (teacher, self.params.temperature)))
        boxes_apart = (outputs.rows("boxes") - teacher.rows("boxes")).abs().mean(dim=1)
        number, params = float(len(one)), self.params
        return {
            "feature": Part(feature, number, params.feature, "boxes"),
            "relation": Part(related, number, params.relation, "boxes"),
            "heat": Part((heat * (p - q).abs()).sum(), heat.sum(), params.response, "heat"),
            "box": Part((heat * boxes_apart).sum(), heat.sum(), params.response, "heat"),
        }


class BevDistillParams(Strict):
    dense: float = Field(0.01, ge=0)
    """Weight of the features on all cells near things."""
    contrast: float = Field(0.2, ge=0)
    """Weight of telling each thing's features from those of the others."""
    box: float = Field(0.25, ge=0)
    """Weight of the boxes at the centres of things."""
    temperature: float = Field(0.07, gt=0)
    """Of the contrast."""
    hidden: int = Field(512, ge=1, le=4096)
    """Width in which things are told apart."""


@METHODS.register("bevdistill")
class BevDistill(OnThings):
    """BEVDistill of detectors with centre heads (Chen et al., 2023): dense features, and things one by one.

    Dense: ``sum G sum_c (t - s)^2 / sum G`` over cells, G the right heat. Things: both features at each centre go
    through two layers that learn, and the teacher's is to be told by InfoNCE from which of the batch's things the
    student's is; boxes at the centres count by the teacher's largest heat q there, ``sum q |b_s - b_t| / sum q``. The
    paper's detectors answer by queries, which are matched; here the cell of a centre pairs the two, a layer norm stands
    in the place of the batch norm, and q counts once, which the release multiplies twice.
    """

    Params: ClassVar[type[Strict]] = BevDistillParams
    called: ClassVar[str] = "bevdistill"

    def learners_beside(self, student: int, teacher: int) -> dict[str, nn.Module]:
        hidden = self.params.hidden
        ways = {"mine": _projector(student, hidden), "theirs": _projector(teacher, hidden)}
        return super().learners_beside(student, teacher) | ways

    def parts(self, outputs: Signals, teacher: Signals, boxes: list[Tensor]) -> dict[str, Part]:
        mine, theirs = (as_maps(side) for side in (outputs, teacher))
        heat, params = outputs.rows("foreground"), self.params
        apart = (rearrange(self.made["way"](mine), "b c h w -> (b h w) c") - teacher.rows("features")).square()
        centres = [some[:, None, :2] for some in boxes]
        one, other = (
            self.made[name](sampled(maps, centres, self.ground)[:, 0])
            for name, maps in (("mine", mine), ("theirs", theirs))
        )
        at = outputs.rows("centre") > 0
        sure = torch.sigmoid(teacher.rows("logits")[at]).amax(dim=1)
        off = (outputs.rows("boxes")[at] - teacher.rows("boxes")[at]).abs().sum(dim=1)
        return {
            "dense": Part((heat * apart.sum(dim=1)).sum(), heat.sum(), params.dense, "heat"),
            "contrast": Part(told_apart(one, other, params.temperature), float(len(one)), params.contrast, "boxes"),
            "box": Part((sure * off).sum(), sure.sum(), params.box, "sure"),
        }


def as_maps(side: Signals) -> Float[Tensor, "b c h w"]:
    """The features of a role on the student's cells."""
    rows, layout = side["features"]
    assert layout.grid is not None
    h, w = layout.grid
    return rearrange(rows, "(b h w) c -> b c h w", h=h, w=w)


def nine_points(boxes: Float[Tensor, "m 7"]) -> Float[Tensor, "m 9 2"]:
    """x and y in metres of the corners of boxes in turn, of their middles, and of the middles of their edges."""
    ends = boxes.new_tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]])
    along, across = (ends * boxes[:, None, 3:5]).unbind(dim=-1)
    sine, cosine = boxes[:, 6:].sin(), boxes[:, 6:].cos()
    turned = torch.stack([along * cosine - across * sine, along * sine + across * cosine], dim=-1)
    corners = turned + boxes[:, None, :2]
    return torch.cat([corners, boxes[:, None, :2], (corners + corners.roll(-1, dims=1)) / 2], dim=1)


def sampled(maps: Float[Tensor, "b c h w"], places: list[Tensor], ground: Ground) -> Float[Tensor, "n k c"]:
    """Features at places ``(m, k, 2)`` of each frame, metres, between the four nearest cells; 0 outside the ground."""
    corner = maps.new_tensor(ground.corner)
    size = maps.new_tensor(ground.shape) * ground.cell
    found = [maps.new_zeros(0, places[0].shape[1], maps.shape[1])]
    for one, some in zip(maps, places, strict=True):
        if len(some):
            at = 2 * (some.to(maps) - corner) / size - 1  # x is the first axis of a map, which grid_sample wants last
            taken = F.grid_sample(one[None], at.flip(-1)[None], mode="bilinear", align_corners=False)
            found.append(rearrange(taken[0], "c m k -> m k c"))
    return torch.cat(found)


def relation(features: Float[Tensor, "n k c"]) -> Float[Tensor, "n k k"]:
    """Cosines of each thing's points."""
    unit: Tensor = features / (features.norm(dim=-1, keepdim=True) + LEAST)
    return unit @ unit.transpose(1, 2)


def highest(heat: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """The largest probability of a cell."""
    return torch.sigmoid(heat).clamp(EDGE, 1 - EDGE).amax(dim=1)


def told_apart(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"], temperature: float) -> Tensor:
    """``sum_i -log softmax_j(cos(t_i, s_j) / temperature)_i``."""
    scores = F.normalize(teacher, dim=1) @ F.normalize(student, dim=1).T / temperature
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="sum")


def _projector(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden)
    )


__all__ = [
    "BevDistill", "BevDistillParams", "UniDistill", "UniDistillParams", "highest", "nine_points", "relation", "sampled",
    "told_apart",
]  # fmt: skip
