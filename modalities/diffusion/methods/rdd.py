"""Progressive distillation by what a frozen network of pixels sees: how positions of images are alike (RDD)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.losses import LOSSES
from xmodal_kd.losses.connectors import RowNorm
from xmodal_kd.losses.logits import kl
from xmodal_kd.losses.queues import Queue
from xmodal_kd.signals.capture import find_modules
from xmodal_kd.training.method import METHODS, Context, Roles, Stage
from xmodal_kd.training.optim import build_optimizer

from ..models.denoiser import Denoiser
from ..models.pixel_network import CLASSIFIER, PixelNetwork, load_network, trained, untrained
from .few_step import FEATURES, denoisers
from .progressive import Progressive, ProgressiveParams, progressive_target, steps_of


class RddParams(ProgressiveParams):
    network: str = CLASSIFIER
    """As that of `add`: ``classifier``, or the folder of a network of transformers or torchvision."""
    at: str | None = None
    """Its module whose output is compared; None: the last one with positions among those that `add` reads."""
    between: float = Field(1.0, ge=0)
    """Weight of the likeness of positions of two images."""
    memory: float = Field(0.01, ge=0)
    """Weight of the likeness of positions to remembered ones."""
    pooled: float = Field(1.0, ge=0)
    """Weight of the divergence of mean features, as if these were scores."""
    sharper: float = Field(0.9, gt=0)
    """Temperature of the teacher's mean features; the student's is 1."""
    queue: int = Field(20000, ge=2)
    """Positions that are remembered."""
    compared: int = Field(4096, ge=2)
    """How many of them a position is compared with, equally far apart."""
    remembered: int = Field(128, ge=1)
    """Positions of a batch that are remembered, at random."""
    temperature: float = Field(0.1, gt=0)
    """Of the likeness to remembered ones; that of two images has 1."""


@METHODS.register("rdd")
class Rdd(Progressive):
    """Progressive distillation by relations in the features of a frozen network (RDD: Feng et al., 2024).

    As its release, of maps of the x that the student sees and of the one that two steps of the teacher lead to:
    `between` times `cirkd` at temperature 1, `memory` times KL of the positions' likeness to a queue of the teacher's,
    the student's behind two learned maps, and `pooled` times KL(softmax(t / sharper) || softmax(s)) of their means. No
    pixel is compared with another's value. Between the learned maps single rows are normalised, where the release has
    a norm of the batch; remembered positions are whole, where those of the release mix images.
    """

    Params: ClassVar[type[Strict]] = RddParams

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.network: PixelNetwork | None = None
        #: Of rows of the student.
        self.projection: nn.Module | None = None
        #: Of rows of the teacher.
        self.queue: Queue | None = None

    @property
    def at(self) -> list[str] | None:
        return None if self.params.at is None else [self.params.at]

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Also of the network: that it is there, sees such samples, and has the module."""
        super().check(roles)
        teacher = denoisers(roles)[0]
        shape = teacher.shape if teacher.parts is None else teacher.parts.image_shape(teacher.shape)
        if self.params.network != CLASSIFIER:
            load_network(Path(self.params.network).expanduser(), self.at).seen(torch.zeros(1, *shape))
        elif self.at is not None:
            find_modules(untrained(shape, 2), self.at[0])

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        optimizers = super().begin(stage, roles, batch)
        if stage.name == FEATURES:
            return optimizers
        (teacher, student), device = denoisers(roles), batch["x"].device
        if self.network is None or self.projection is None:
            source: Any = self.adapter.data("train")
            own, folder = self.params.network == CLASSIFIER, Path(self.params.network).expanduser()
            self.network = trained(source.images, self.at, device) if own else load_network(folder, self.at).to(device)
            with torch.no_grad():
                width = self.maps(teacher, batch["x"]).shape[1]
            with self.distil.streams.forked("relations"):
                enter, leave = (nn.Linear(width, width, bias=False) for _ in range(2))
                self.projection = nn.Sequential(enter, RowNorm("layer", width), nn.ReLU(), leave).to(device)
                self.queue = Queue(self.params.queue, width).to(device)
        return {"student": build_optimizer(self.train.optimizer, {"student": student, "relations": self.projection})}

    def modules(self) -> Mapping[str, nn.Module]:
        made = {"projection": self.projection, "queue": self.queue}
        return {**super().modules(), **{name: module for name, module in made.items() if module is not None}}

    def maps(self, teacher: Denoiser, x: Tensor) -> Float[Tensor, "b c n"]:
        """What the network makes of samples, a column a position; a vector is of one. With a gradient by them."""
        assert self.network is not None
        found = self.network(x if teacher.parts is None else teacher.parts.decode(x, gradient=True))
        placed: list[Tensor] = [value for value in found if value.ndim > 2] or [value[:, :, None] for value in found]
        return placed[-1].flatten(2)

    def values(self, batch: Batch, roles: Roles, ctx: Context) -> Tensor:
        (teacher, student), params = denoisers(roles), self.params
        with ctx.timer.time("teacher"), torch.no_grad():
            z, t, target = progressive_target(teacher, batch, steps_of(ctx.stage))
            aim = self.maps(teacher, target)
        with ctx.timer.time("student"):
            seen = self.maps(teacher, student.predict_x(z, t, batch.get("labels")))
        assert self.projection is not None and self.queue is not None
        mine, theirs = (maps.transpose(1, 2).flatten(0, 1) for maps in (seen, aim))
        item = torch.arange(len(seen), device=seen.device).repeat_interleave(seen.shape[2])
        between: Tensor = LOSSES["cirkd"].fn(mine, theirs, item, len(seen), temperature=1.0)  # of all images: one value
        pooled = apart(seen.mean(dim=2), aim.mean(dim=2) / params.sharper)
        order = torch.randperm(len(theirs), generator=ctx.generator("remembered"))[: params.remembered]
        self.queue.remember(ctx.ranks.gather_rows(F.normalize(theirs[order.to(theirs.device)], dim=1)))
        keys = self.queue.keys[spread(params.queue, params.compared)]
        likeness = [alike(rows, keys, params.temperature) for rows in (self.projection(mine), theirs)]
        memory = apart(*likeness).reshape(len(seen), -1).mean(dim=1)
        total: Tensor = params.between * between + params.pooled * pooled + params.memory * memory
        return total


def alike(rows: Float[Tensor, "n c"], keys: Float[Tensor, "k c"], temperature: float) -> Float[Tensor, "n k"]:
    """Cosines of rows with keys of length 1, as scores."""
    scores: Tensor = F.normalize(rows, dim=1) @ keys.to(rows).T / temperature
    return scores


def spread(size: int, count: int) -> Int[Tensor, " m"]:
    """Places of a queue, equally far apart."""
    return torch.linspace(0, size - 1, min(size, count), dtype=torch.float64).round().long()


def apart(student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """KL(teacher || student) of the softmax of each row."""
    return kl(teacher.log_softmax(dim=1), student.log_softmax(dim=1))


__all__ = ["Rdd", "RddParams", "alike", "apart", "spread"]
