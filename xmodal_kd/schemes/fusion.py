"""Feature fusion: branches whose maps, side by side, feed a classifier of their own that teaches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Strict
from ..losses.base import full_precision
from ..losses.connectors import NormKind, Place, RowNorm
from ..objective.objective import Objective
from ..objective.parts import LossOut
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS, Layout, Signal, Signals
from ..training.method import Context, Roles, Stage
from .base import SCHEMES
from .ensembles import Ensemble, OneParams
from .rows import answered, dense_rows, replaced, weighed

CONVOLUTIONS: Mapping[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Fusion(nn.Module):
    """Maps of all branches side by side to one answer: a convolution of each channel, a linear map, the classifier.

    A norm and a ReLU follow the first two. Rows without a grid have no neighbours, and no convolution.

    Args:
        width: channels of one branch, and of what the branches become.
        axes: of the grid.
    """

    def __init__(self, width: int, branches: int, answers: int, axes: int, norm: NormKind) -> None:
        super().__init__()
        whole = width * branches
        kind: Any = CONVOLUTIONS.get(axes)
        self.near = None if kind is None else kind(whole, whole, 3, padding=1, groups=whole, bias=False)
        self.across = nn.Linear(whole, width, bias=False)
        self.norms = nn.ModuleList([RowNorm(norm, whole), RowNorm(norm, width)])
        self.head = nn.Linear(width, answers)

    def forward(self, features: Sequence[Signal], answers: Layout) -> Tensor:
        """``(n, k)`` of the rows of `answers`: of each, or of the mean of an item's where features lie on others."""
        layout = features[0].layout
        valid = layout.mask.nonzero().squeeze(1)
        rows = torch.cat([full_precision(one.rows[valid]) for one in features], dim=1)
        if self.near is not None:
            rows = Place(valid, layout.items, layout.grid).apply(self.near, rows)
        rows = F.relu(self.norms[0](rows))
        rows = F.relu(self.norms[1](self.across(rows)))
        return answered(self.head, rows, layout, answers)


class FusionParams(OneParams):
    norm: NormKind = "layer"
    """Of the fusion; ``batch``, as published, makes a step of several micro-batches another one."""


@SCHEMES.register("ffl")
class FeatureFusion(Ensemble):
    """Branches learn from a classifier on their fused maps, which learns from the mean of their scores.

    Kim et al., "Feature Fusion for Online Mutual Knowledge Distillation", ICPR 2020: sum_k CE(z_k) + CE(z_f) + w T^2
    (KL(mean_k z_k || z_f) + sum_k KL(z_f || z_k)), z_f a depthwise convolution, a linear map over the channels of all
    branches and a classifier (`Fusion`). The terms of the objective that read answers alone stand for CE and KL (kd at
    temperature 3); w is the ramp of the released code, 80 of 300 epochs. The student is the branch that is kept.
    """

    Params: ClassVar[type[Strict]] = FusionParams
    paper, year = "Feature Fusion for Online Mutual Knowledge Distillation", 2020
    name: ClassVar[str] = "ffl"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        terms = [term.term for term in self.objective if OUTPUTS.issuperset(term.term.signals("student"))]
        #: Of the fusion's own answer.
        self.fused = Objective(terms, steps=self.train.steps)
        if all(term.spec.needs_teacher for term in self.fused):
            raise UserError(
                "scheme ffl: no term without a teacher reads the answers, so nothing can train their fusion"
            )

    def mixer_of(self, feature: Signal, answers: Signal) -> nn.Module:
        axes, width = len(feature.layout.grid or ()), answers.rows.shape[1]
        return Fusion(feature.rows.shape[1], len(self.learners), width, axes, self.params.norm)

    def targets(self, outputs: Mapping[str, Signals]) -> Mapping[str, Signals]:
        assert self.mixer is not None
        output, mine = self.adapter.output, outputs[self.role]
        rows = self.mixer([outputs[role][self.params.on] for role in self.learners], mine.layout(output))
        return dict.fromkeys(self.learners, replaced(mine, {output: rows}))

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        found = super().begin(stage, roles, batch)
        if not self.fused.built:
            with torch.no_grad(), self.streams.forked("dry run"):
                said = self.forward_role(self.role, roles, batch)
                self.fused.build(said, said, self.streams)
        if any(True for _ in self.fused.parameters()):
            raise UserError("scheme ffl: a term of the answers learns parameters of its own: leave it out")
        return found

    def mixing(self, outputs: Mapping[str, Signals], targets: Mapping[str, Signals], ctx: Context) -> LossOut:
        output, mine = self.adapter.output, outputs[self.role]
        mean = torch.stack([dense_rows(outputs[role][output]).detach() for role in self.learners]).mean(dim=0)
        teacher = replaced(mine, {output: mean})
        out = self.fused(targets[self.role], teacher, step=ctx.step, ranks=ctx.ranks)
        return weighed(out, self.fused, with_teacher=self.ramp(ctx)).named("fusion")
