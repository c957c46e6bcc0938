"""Masks that the teacher's own task finds on its feature, by which the student's is compared with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Strict
from ..losses.base import full_precision, item_sum
from ..objective.objective import Objective
from ..objective.parts import LossOut, Part
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..signals.signals import OUTPUTS, Signals
from ..training.method import Context, Roles, Stage, known_as
from ..training.optim import build_optimizer, scaling
from .base import SCHEMES, Scheme
from .rows import terms_of

#: Optimizer of the tokens.
TOKENS = "tokens"
#: What sums of a mask's squares are held off 0 by.
LEAST = 1e-12


class Receptive(Strict):
    on: str
    """Module of the student whose output is compared."""
    teacher: str | None = None
    """That of the teacher, on the same rows; None: of the same name."""
    tokens: int = Field(6, ge=1)
    """Masks."""
    weight: float = Field(1.0, gt=0)
    """Of the masked comparison."""
    diversity: float = Field(1.0, ge=0)
    """Weight of how alike the masks are, in what the tokens minimise."""


class Masks(nn.Module):
    """``sigmoid(token . row)`` of rows: ``(n, c)`` to ``(n, m)``."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(tokens, width))

    def forward(self, rows: Float[Tensor, "*n c"]) -> Float[Tensor, "*n m"]:
        return (rows @ self.tokens.T).sigmoid()


@SCHEMES.register("maskd")
class MaskedByTokens(Scheme):
    """The student is compared with the teacher's feature through masks that the teacher's own task has found on it.

    Huang et al., "Masked Distillation with Receptive Tokens", ICLR 2023: a token is a vector, its mask m =
    sigmoid(token . t) at every position of the teacher's feature t. Tokens learn by the terms without a teacher, of
    the teacher's answer where sum_k m_k t stands in the place of t, and by the masks' likeness (Dice): 2 sum m_i m_j /
    (sum m_i^2 + sum m_j^2) over pairs. The student adds ``weight`` times the mean over samples, masks and channels of
    sum m_k^2 (s - t)^2 / sum m_k to the objective, s after a linear map, masks held. They learn beside the student,
    where the paper trains them before; the released code's weights of masks by image are left out.
    """

    Params: ClassVar[type[Strict]] = Receptive
    paper, year, family = "Masked Distillation with Receptive Tokens", 2023, "training"
    teaches_itself: ClassVar[bool] = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        alone = [t for t in terms_of(self.objective, with_teacher=False) if OUTPUTS.issuperset(t.signals("student"))]
        if not alone:
            raise UserError("scheme maskd: no term without a teacher reads answers, by which masks could learn: add ce")
        #: What the teacher's masked answer is to keep.
        self.task = Objective(alone, steps=self.train.steps)
        self.masks: Masks | None = None
        self.project: nn.Linear | None = None

    @property
    def path(self) -> str:
        """The teacher's module."""
        return str(self.params.teacher or self.params.on)

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.balance.name != "fixed":
            raise UserError(f"scheme maskd: balance {recipe.balance.name} does not know its masks: leave it out")

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        self.find(roles[self.role], [self.params.on])
        self.find(roles[self.teacher], [self.path])

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        super().begin(stage, roles, batch)  # builds the objective
        if self.masks is None or self.project is None:
            with torch.no_grad(), self.streams.forked("dry run"):
                mine, theirs = self.features(roles, batch)
                said = self.forward_role(self.role, roles, batch)
                self.task.build(said, None, self.streams)
            with self.streams.forked("scheme", "masks"):
                self.masks = Masks(self.params.tokens, theirs.shape[1]).to(theirs)
                self.project = nn.Linear(mine.shape[1], theirs.shape[1]).to(mine)
        if any(True for _ in self.task.parameters()):
            raise UserError("scheme maskd: a term without a teacher learns parameters of its own: leave it out")
        config = self.train.optimizer
        learners = {known_as(self.role): roles[self.role], "objective": self.objective, "scheme": self.project}
        return {
            TOKENS: build_optimizer(scaling(config, lambda _: False), {TOKENS: self.masks}),
            self.role: build_optimizer(config, learners),
        }

    def modules(self) -> Mapping[str, nn.Module]:
        made = {} if self.masks is None or self.project is None else {"masks": self.masks, "project": self.project}
        return {**super().modules(), **made}

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        side = of or ("student" if role in self.learners else "teacher")
        own = self.params.on if side == "student" else self.path
        return self.forward_features(role, roles, batch, sorted({*self.objective.features(side), own}))

    def features(self, roles: Roles, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rows of both sides, in the dry run."""
        student, teacher = (self.forward_role(role, roles, batch) for role in (self.role, self.teacher))
        mine, theirs = student.layout(self.params.on), teacher.layout(self.path)
        if not mine.same_rows(theirs):
            raise UserError(
                f"scheme maskd: {self.params.on!r} has {len(mine)} rows and the teacher's {self.path!r} {len(theirs)} "
                "that do not mean the same: name layers of one resolution (on, teacher)"
            )
        return full_precision(student.rows(self.params.on)), full_precision(teacher.rows(self.path))

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        assert self.masks is not None and self.project is not None
        with ctx.timer.time("teacher"):
            with torch.no_grad():
                teacher = self.forward_role(self.teacher, roles, batch)
            with masked(roles[self.teacher], self.path, self.masks):
                kept = self.forward_role(self.teacher, roles, batch)
            out = self.task(kept, None, step=ctx.step, ranks=ctx.ranks)
            (rows, layout), valid = teacher[self.path], teacher.layout(self.path).mask
            if self.params.diversity > 0:
                alike = dice(self.masks(full_precision(rows[valid])), layout.item[valid], layout.items)
                out += LossOut.mean("diversity", alike, self.params.diversity)
        yield TOKENS, out.named(TOKENS)
        with ctx.timer.time("student"):
            student = self.forward_role(self.role, roles, batch)
        with ctx.timer.time("loss"):
            mine, own = student[self.params.on]
            valid = valid & own.mask
            target = full_precision(rows[valid])
            with torch.no_grad():
                masks = self.masks(target)
            values = apart(self.project(full_precision(mine[valid])), target, masks, layout.item[valid], layout.items)
            out = self.objective(student, teacher, step=ctx.step, ranks=ctx.ranks)
            yield (
                self.role,
                out + LossOut({"masked": Part(values.sum(), float(len(values)), self.params.weight, "masked")}),
            )
        self.settle(roles, ctx)


@contextmanager
def masked(model: nn.Module, path: str, masks: Masks) -> Iterator[None]:
    """Within the block what the module at `path` says is multiplied by the sum of its masks. Channels lie last, of maps
    ``(b, c, h, w)`` first."""

    def by_masks(module: nn.Module, given: Any, said: Tensor) -> Tensor:
        first = said.ndim == 4
        rows = said.movedim(1, -1) if first else said
        kept: Tensor = rows * masks(full_precision(rows)).sum(dim=-1, keepdim=True).to(rows)
        return kept.movedim(-1, 1) if first else kept

    hook = model.get_submodule(path).register_forward_hook(by_masks)
    try:
        yield
    finally:
        hook.remove()


def dice(masks: Float[Tensor, "n m"], item: Int[Tensor, " n"], items: int) -> Float[Tensor, " b"]:
    """Of each item the mean over pairs of its masks of ``2 sum m_i m_j / (sum m_i^2 + sum m_j^2)``; 0 of one mask."""
    count = masks.shape[1]
    both = item_sum(masks[:, :, None] * masks[:, None, :], item, items)
    squares = both.diagonal(dim1=1, dim2=2) + LEAST
    alike = 2 * both / (squares[:, :, None] + squares[:, None, :])
    beside = ~torch.eye(count, dtype=torch.bool, device=masks.device)
    return alike[:, beside].sum(dim=1) / max(1, count * (count - 1))


def apart(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], masks: Float[Tensor, "n m"], item: Int[Tensor, " n"],
    items: int,
) -> Float[Tensor, " b"]:  # fmt: skip
    """Of each item the mean over masks and channels of ``sum m^2 (s - t)^2 / sum m``."""
    squares = (student - teacher).square().mean(dim=1, keepdim=True)
    total, size = (item_sum(rows, item, items) for rows in (masks.square() * squares, masks))
    return (total / size.clamp(min=LEAST)).mean(dim=1)


__all__ = ["MaskedByTokens", "Masks", "apart", "dice", "masked"]
