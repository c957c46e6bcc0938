"""Robust distillation: what a student learns is to hold for inputs that somebody has moved a little."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapter.adapter import Adapter, Batch, Source, Strict, is_teacher
from ..losses.base import full_precision
from ..objective.parts import LossOut
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..signals.signals import Signals
from ..training.method import Context, Distil, Roles
from ..training.modes import evaluating
from ..training.role_plan import RolePlan
from .base import SCHEMES, Scheme
from .batches import recorded
from .rows import weighed


class Attack(Strict):
    """Projected gradient descent; lengths are shares of the range of the input's values."""

    radius: float = Field(8 / 255, gt=0, le=1)
    """How far a value of the input may be moved."""
    step: float = Field(2 / 255, gt=0, le=1)
    """How far a step of the attack moves it."""
    steps: int = Field(10, ge=1)
    """Steps of the attack in training."""
    random_start: bool = True
    """Whether it starts beside the input."""
    robust_teacher: bool = True
    """Whether a teacher that the run trains learns on attacked inputs too: only a robust one teaches robustness."""
    tested: int = Field(20, ge=0)
    """Steps of the attack on the test split, by the labels, of which the report has the accuracy; 0: none."""


def pgd(
    clean: Tensor, start: Tensor, harm: Callable[[Tensor], Tensor], *, bounds: tuple[float, float], radius: float,
    step: float, steps: int,
) -> Tensor:  # fmt: skip
    """The input that `harm` has moved by the signs of its gradients, within `radius` of `clean` and within `bounds`.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, eq. 2.1 and below.
    """
    low, high = torch.clamp(clean - radius, min=bounds[0]), torch.clamp(clean + radius, max=bounds[1])
    x = torch.clamp(start, low, high).detach()
    for _ in range(steps):
        x.requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(harm(x + 0), x)  # no leaf, whose gradient torch's count of FLOPs refuses
        x = torch.clamp(x.detach() + step * slope.sign(), low, high)
    return x


def by_labels(outputs: Signals) -> Tensor:
    """Sum of the cross-entropies of all rows that have a label."""
    logits, layout = outputs["logits"]
    labels = outputs["labels"]
    held = layout.mask & labels.layout.mask
    held = held if outputs.labelled is None else held & outputs.labelled[layout.item]
    return F.cross_entropy(full_precision(logits[held]), labels.rows[held], reduction="sum")


class Attacking(Distil):
    """Every term on inputs that were moved against the labels: the control, and the teacher, of robust schemes."""

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        with ctx.timer.time("student"):
            attacked = attack(self, role, roles, batch, ctx, by_labels, anywhere=True)
        return super().loss(role, roles, attacked, ctx)


def attack(
    method: Distil, role: str, roles: Roles, batch: Batch, ctx: Context, harm: Callable[[Signals], Tensor],
    *, anywhere: bool,
) -> Batch:  # fmt: skip
    """The batch whose input was moved so that it harms the role most, which stands in eval mode meanwhile."""
    params, (key, low, high) = method.params, _attacked(method.adapter)
    clean, span = batch[key], high - low
    start = clean
    if params.random_start:
        draw = ctx.generator("attack", role, device=clean.device)
        like: Any = {"generator": draw, "device": clean.device, "dtype": clean.dtype}
        if anywhere:
            start = clean + params.radius * span * (2 * torch.rand(clean.shape, **like) - 1)
        else:
            start = clean + 1e-3 * span * torch.randn(clean.shape, **like)

    def harmed(x: Tensor) -> Tensor:
        return harm(method.forward_features(role, roles, {**batch, key: x}, ()))

    with evaluating(roles[role]):
        moved = pgd(
            clean, start, harmed, bounds=(low, high), radius=params.radius * span, step=params.step * span,
            steps=params.steps,
        )  # fmt: skip
    return {**batch, key: moved}


def _attacked(adapter: Adapter) -> tuple[str, float, float]:
    key, found = recorded(adapter, "a robust scheme moves the values of an input against the scores of its classes")
    return key, found.low, found.high


class Robust(Scheme):
    """Base: terms without a teacher on the input as it is, those with one on what an attack made of it.

    The teacher sees the input as it is. The control learns by the labels on inputs that were moved against them.
    """

    Params: ClassVar[type[Strict]] = Attack
    family = "training"
    #: Share of the terms with a teacher that is of the attacked input; the rest is of the input as it is.
    share: ClassVar[float]
    #: Whether the attack starts anywhere within the radius, or beside the input by noise of 0.001.
    anywhere: ClassVar[bool]

    @classmethod
    def refuse(cls, recipe: Recipe) -> None:
        super().refuse(recipe)
        if recipe.balance.name != "fixed":
            raise UserError(f"scheme: balance {recipe.balance.name} knows one view of a sample: leave it out")

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        _attacked(adapter)
        return source

    @classmethod
    def prepare(cls, params: Any, role_plan: RolePlan) -> RolePlan:
        if role_plan.role == "control" or (params.robust_teacher and is_teacher(role_plan.role)):
            return replace(role_plan, method=Attacking, settings=params)
        return role_plan

    @classmethod
    def overview(
        cls, params: Any, adapter: Adapter, models: Mapping[str, nn.Module], folder: Path
    ) -> Mapping[str, Any]:  # fmt: skip
        """The accuracy of every role on the test split under attack."""
        if params.tested == 0:
            return {}
        found = {role: under_attack(params, adapter, role, model) for role, model in models.items()}
        return {f"accuracy under an attack of {params.tested} steps": found}

    def harm(self, teaching: Signals) -> Callable[[Signals], Tensor]:
        """What the attack makes as large as it can."""
        raise NotImplementedError

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        objective = self.objectives[role]
        with ctx.timer.time("teacher"):
            teaching: Any = self._teaching(role, roles, batch)
        with ctx.timer.time("student"):
            moved = attack(self, role, roles, batch, ctx, self.harm(teaching), anywhere=self.anywhere)
            clean, attacked = (self.forward_role(role, roles, view) for view in (batch, moved))
        with ctx.timer.time("loss"):
            out = objective(clean, teaching, step=ctx.step, ranks=ctx.ranks)
            other = objective(attacked, teaching, step=ctx.step, ranks=ctx.ranks)
            out = weighed(out, objective, with_teacher=1 - self.share)
            return out + weighed(other, objective, with_teacher=self.share, alone=0.0).named("attacked")


@torch.no_grad()
def under_attack(params: Attack, adapter: Adapter, role: str, model: nn.Module) -> float:
    """Share of the test split's rows that are answered rightly after an attack by their labels, from their place."""
    source, (key, low, high) = adapter.data("test"), _attacked(adapter)
    device, right, rows = next(model.parameters()).device, 0, 0
    for first in range(0, len(source), adapter.batch_size):
        numbers = range(first, min(first + adapter.batch_size, len(source)))
        batch = send_to_device(source.collate([source.sample(i, 0) for i in numbers]), device)

        def said(x: Tensor, batch: Batch = batch) -> Signals:
            return adapter.signals(role, model, {**batch, key: x}, ())

        x = pgd(
            batch[key], batch[key], lambda x, said=said: by_labels(said(x)), bounds=(low, high),  # type: ignore[misc]
            radius=params.radius * (high - low), step=params.step * (high - low), steps=params.tested,
        )  # fmt: skip
        outputs = said(x)
        logits, layout = outputs["logits"]
        held = layout.mask & outputs["labels"].layout.mask
        right += int((logits[held].argmax(dim=1) == outputs.rows("labels")[held]).sum())
        rows += int(held.sum())
    return right / max(rows, 1)


@SCHEMES.register("ard")
class AdversariallyRobust(Robust):
    """The student learns labels on inputs as they are, and on attacked ones what the teacher says of the former.

    Goldblum et al., "Adversarially Robust Distillation", AAAI 2020, eq. 3: (1 - a) CE(x) + a T^2 KL(t(x) || s(x')), x'
    within the radius of x by the student's cross-entropy with the label, from a random start. Weights are the
    objective's: a is 1 for CIFAR-10. Samples without a label stay at their start. The teacher is to be robust.
    """

    paper, year = "Adversarially Robust Distillation", 2020
    share: ClassVar[float] = 1.0
    anywhere: ClassVar[bool] = True

    def harm(self, teaching: Signals) -> Callable[[Signals], Tensor]:
        return by_labels


@SCHEMES.register("rslad")
class RobustSoftLabels(Robust):
    """The teacher's soft labels in every place: in the attack, on attacked inputs and on inputs as they are.

    Zi et al., "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better", ICCV 2021: 5/6
    KL(t(x) || s(x')) + 1/6 KL(t(x) || s(x)), x' within the radius of x by KL(t(x) || s(x')), from noise of 0.001. kd at
    temperature 1 and no other term is the paper's; terms without a teacher are of inputs as they are. The teacher is to
    be robust. No label is needed, but by the control.
    """

    paper, year = "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better", 2021
    share: ClassVar[float] = 5 / 6
    anywhere: ClassVar[bool] = False

    def harm(self, teaching: Signals) -> Callable[[Signals], Tensor]:
        target, layout = teaching["logits"]
        log_p = full_precision(target.detach()).log_softmax(dim=1)

        def apart(outputs: Signals) -> Tensor:
            rows, own = outputs["logits"]
            held = layout.mask & own.mask
            log_q = full_precision(rows[held]).log_softmax(dim=1)
            return F.kl_div(log_q, log_p[held], reduction="sum", log_target=True)

        return apart
