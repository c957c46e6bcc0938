"""Methods of detection: a teacher's confident boxes beside the labels.

May import ``losses``, ``models``, ``views`` and ``data``, beside the core. Public are the names of methods in recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal_kd.adapter.adapter import Batch, Strict
from xmodal_kd.objective.parts import LossOut
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.training.method import METHODS, Context, Distil, Roles

from .models.decoding import Found


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


__all__ = ["LabelKD", "joined"]
