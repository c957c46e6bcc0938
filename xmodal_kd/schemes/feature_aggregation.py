"""Feature aggregation: branches that learn from a mixture of their answers, weighed by what the shared trunk sees."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapter.adapter import Strict
from ..losses.base import full_precision, item_mean
from ..losses.connectors import NormKind, Place, RowNorm, grid_conv
from ..objective.parts import LossOut
from ..signals.signals import Layout, Signal, Signals
from ..training.method import Context
from .base import SCHEMES
from .ensembles import NativeEnsemble, OneParams
from .rows import dense_rows, mixed, replaced, weighed


class Aggregation(nn.Module):
    """Weights of the branches of each answer, of an item's features as kernels of several sizes see them.

    U = sum_m relu(norm(conv_m f)) with kernels of 3, 5, 7 and so on, one a branch; z = W mean(U); a = softmax over the
    branches of V_m z. Rows without a grid have no neighbours: each convolution is a linear map of them.

    Args:
        width: channels of the features.
        narrow: of z.
        answers: of an item that are weighed apart: its joints.
        axes: of the features' grid.
    """

    def __init__(self, width: int, narrow: int, branches: int, answers: int, axes: int, norm: NormKind) -> None:
        super().__init__()
        kernels: list[Any] = [3 + 2 * branch for branch in range(branches)]
        self.near = nn.ModuleList(grid_conv(width, width, kernel, axes) for kernel in kernels)
        self.norms = nn.ModuleList(RowNorm(norm, width) for _ in kernels)
        self.narrow = nn.Linear(width, narrow)
        self.scores = nn.ModuleList(nn.Linear(narrow, answers) for _ in kernels)

    def forward(self, features: Signal) -> Tensor:
        """``(b, answers, m)``, which sum to 1 over the last."""
        layout = features.layout
        valid = layout.mask.nonzero().squeeze(1)
        rows, place = full_precision(features.rows[valid]), Place(valid, layout.items, layout.grid)
        seen = [F.relu(norm(place.apply(near, rows))) for near, norm in zip(self.near, self.norms, strict=True)]
        pooled = item_mean(torch.stack(seen).sum(dim=0), layout.item[valid], layout.items)
        z = self.narrow(pooled)
        return torch.stack([score(z) for score in self.scores], dim=2).softmax(dim=2)


class AggregationParams(OneParams):
    ramp: float = Field(60 / 140, ge=0, le=1)
    """As of the other online ensembles."""
    ensemble: float = Field(6.0, ge=0)
    """Weight of the mixture's own terms, in weights of a branch's."""
    narrow: int | None = Field(None, ge=1)
    """Width of what the weights are made of; a quarter of the features' unless said."""
    norm: NormKind = "layer"
    """Of the convolutions; ``batch``, as published, makes a step of several micro-batches another one."""


@SCHEMES.register("okdhp")
class FeatureAggregation(NativeEnsemble):
    """Branches learn heat maps from labels and from a mixture of them, in which each joint has weights of its own.

    Li et al., "Online Knowledge Distillation for Efficient Pose Estimation", ICCV 2021: H_e = sum_m a_m H_m, a by joint
    from the trunk's features (`Aggregation`), and the loss sum_m MSE(H_m) + 6 MSE(H_e) + 5 w sum_m KL(H_e || H_m), w
    the ramp of 60 of 140 epochs. The terms of the objective stand for MSE (`heatmap_mse`) and KL (kd at temperature 1,
    over positions); of intermediate heads too, by ``on: {student: heads.0, teacher: logits}``. Rows of regions, as
    joints are, have weights of their own; of any other answers an item has one for all.

    In the released code gradients flow through the target of KL into the mixture; here it is held, and the mixture
    learns by its own MSE alone. The release averages KL over positions and sums it over joints: its weight of 5 is one
    of 5 J / (H W) here. The student is the branch that is kept, where the release keeps the best of them.
    """

    Params: ClassVar[type[Strict]] = AggregationParams
    paper, year = "Online Knowledge Distillation for Efficient Pose Estimation", 2021
    name: ClassVar[str] = "okdhp"

    def mixer_of(self, feature: Signal, answers: Signal) -> nn.Module:
        width, axes = feature.rows.shape[1], len(feature.layout.grid or ())
        narrow = self.params.narrow or max(1, width // 4)
        return Aggregation(width, narrow, len(self.learners), _apart(answers.layout), axes, self.params.norm)

    def targets(self, outputs: Mapping[str, Signals]) -> Mapping[str, Signals]:
        assert self.mixer is not None
        output, mine = self.adapter.output, outputs[self.role]
        layout = mine.layout(output)
        weights = self.mixer(mine[self.params.on])
        answers = [dense_rows(outputs[role][output]) for role in self.learners]
        if (apart := _apart(layout)) > 1:
            rows = mixed(answers, weights.flatten(0, 1), torch.arange(layout.items * apart, device=weights.device))
        else:
            rows = mixed(answers, weights.squeeze(1), layout.item)
        return dict.fromkeys(self.learners, replaced(mine, {output: rows}))

    def mixing(self, outputs: Mapping[str, Signals], targets: Mapping[str, Signals], ctx: Context) -> LossOut:
        out: LossOut = self.ensemble(targets[self.role], step=ctx.step, ranks=ctx.ranks)
        return weighed(out, self.ensemble, alone=self.params.ensemble).named("ensemble")


def _apart(layout: Layout) -> int:
    """How many answers of an item are weighed apart: rows of regions on a grid, which are as many in every item."""
    return prod(layout.grid) if layout.kind == "region" and layout.grid else 1
