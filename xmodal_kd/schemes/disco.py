"""A student without labels that is like its teacher on two crops, and told apart from others by its own average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapter.adapter import Adapter, Batch, Strict, is_teacher
from ..losses.base import without_autocast
from ..losses.queues import Queue
from ..objective.parts import LossOut
from ..training.method import Context, Roles
from .base import SCHEMES
from .dino import MEAN, Count, Share, WithoutLabels, by_neighbours, in_order
from .rows import pooled


class DiscoParams(Strict):
    on: str
    """Module of the student whose output, averaged over a sample's rows, is its representation."""
    teacher: str | None = None
    """That of the teacher whose output is its embedding; None: of the same name."""
    hidden: Count = 2048
    """Width inside the student's projection; the paper has it as wide as a large teacher's."""
    crops: tuple[Share, Share] = (0.7, 1.0)
    """Shares of an input's sides that the two crops have, resized to the whole."""
    contrast: float = Field(1.0, ge=0)
    """Weight of the contrast; 0: the teacher alone."""
    distance: float | None = Field(None, ge=0)
    """Weight of a sample's two squared distances; None: ``train.batch_size``, for the release sums over a batch."""
    temperature: float = Field(0.2, gt=0)
    """Of the contrast."""
    queue: Count = 65536
    """What the average has said last, to be told from."""
    momentum: float = Field(0.999, ge=0, lt=1)
    """Of the average. 0.99 for short trainings."""
    neighbours: int = Field(20, ge=0)
    """As `DinoParams.neighbours`."""
    whole: bool = False
    """As `DinoParams.whole`."""

    @model_validator(mode="after")
    def _check_order(self) -> DiscoParams:
        in_order(self, "crops")
        return self


@SCHEMES.register("disco")
class TaughtWithoutLabels(WithoutLabels):
    """Without labels, the student's embeddings of two crops are those of its teacher, beside a contrast of its own.

    Gao et al., "DisCo: Remedy Self-supervised Learning on Lightweight Models with Distilled Contrastive Learning", ECCV
    2022, as released. Of two crops of a sample q and q' are the student's embeddings, t and t' the teacher's, k' what
    an average of the student says of the second, all of length 1: ``|t - q|^2 + |t' - q'|^2`` and the contrast of q
    with k' among a queue of earlier ones (MoCo). The student's projection, two linear layers with ReLU between, has the
    teacher's width. Crops, the linear probe on `on` and the nearest neighbours are those of `dino`. The control learns
    from labels alone, with all of its layers; a term with a teacher compares with the recipe's.
    """

    Params: ClassVar[type[Strict]] = DiscoParams
    name: ClassVar[str] = "disco"
    recipe_teacher: ClassVar[Literal["needed", "optional", "none"]] = "needed"
    paper = "DisCo: Remedy Self-supervised Learning on Lightweight Models with Distilled Contrastive Learning"
    year, family = 2022, "training"

    @property
    def path(self) -> str:
        """The teacher's module."""
        return str(self.params.teacher or self.params.on)

    @classmethod
    def overview(
        cls, params: Any, adapter: Adapter, models: Mapping[str, nn.Module], folder: Path
    ) -> Mapping[str, Any]:  # fmt: skip
        if params.neighbours == 0:
            return {}
        theirs = params.model_copy(update={"on": params.teacher or params.on})
        seen = {role: theirs if is_teacher(role) else params for role in models}
        found = {role: by_neighbours(seen[role], adapter, role, model) for role, model in models.items()}
        return {f"accuracy of {params.neighbours} nearest neighbours at {params.on}": found}

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        self.find(roles[self.teacher], [self.path])

    def widths(self, roles: Roles, batch: Batch) -> Sequence[int]:
        return [self.embedded(roles, batch).shape[1]]

    def made(self, *widths: int) -> tuple[nn.Module, nn.Module | None]:
        width, out, hidden = *widths, self.params.hidden
        layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))
        return layers, Queue(self.params.queue, out)

    def embedded(self, roles: Roles, batch: Batch) -> Float[Tensor, "b d"]:
        """The teacher's embeddings."""
        return pooled(self.adapter.signals(self.teacher, roles[self.teacher], batch, [self.path])[self.path])

    def compared(self, batch: Batch, roles: Roles, ctx: Context) -> LossOut:
        views = [self.crop(batch, ctx, number) for number in range(2)]
        with ctx.timer.time("student"):
            student = [self.projected("student", self.role, roles, view) for view in views]
        with ctx.timer.time("teacher"), torch.no_grad():
            teacher = [self.embedded(roles, view) for view in views]
            key = F.normalize(self.projected("mean", MEAN, roles, views[1]), dim=1)
            self.said.append(key)
        weight = float(self.train.batch_size) if self.params.distance is None else self.params.distance
        with ctx.timer.time("loss"):
            out = LossOut.mean("distance", distances(student, teacher), weight)
            if self.params.contrast == 0:
                return out
            found = told_apart(student[0], key, self.memory.keys, self.params.temperature)
            return out + LossOut.mean("contrast", found, self.params.contrast)

    def momentum(self, ctx: Context) -> float:
        return float(self.params.momentum)

    def remember(self, said: Float[Tensor, "n k"], ctx: Context) -> None:
        self.memory.remember(ctx.ranks.gather_rows(said))


def distances(student: Sequence[Float[Tensor, "b d"]], teacher: Sequence[Float[Tensor, "b d"]]) -> Float[Tensor, " b"]:
    """The sum over crops of the squared distance of both embeddings, brought to length 1."""
    apart = [F.normalize(s, dim=1) - F.normalize(t, dim=1) for s, t in zip(student, teacher, strict=True)]
    return torch.stack([one.square().sum(dim=1) for one in apart]).sum(dim=0)


def told_apart(
    query: Float[Tensor, "b d"], key: Float[Tensor, "b d"], others: Float[Tensor, "k d"], temperature: float
) -> Float[Tensor, " b"]:
    """Minus the log-likelihood of each query's key among the others; keys have length 1."""
    with without_autocast(query.device.type):
        query = F.normalize(query, dim=1)
        own = (query * key).sum(dim=1, keepdim=True)
        scores = torch.cat([own, query @ others.to(query).T], dim=1) / temperature
        return -scores.log_softmax(dim=1)[:, 0]


__all__ = ["TaughtWithoutLabels", "distances", "told_apart"]
