"""Pruning that is learnt with the task: gates on units close to a target, then what is left learns on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from ..adapter.adapter import Adapter, Batch, Strict
from ..models.weight_swap import weight_swap_of
from ..objective.parts import LossOut, Part
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..training.method import Context, Distil, Roles, Stage
from ..training.role_plan import RolePlan
from .base import COMPRESSIONS, Compression, record
from .gates import Gates, constraint, cut, resize, units_of

#: The stage in which gates close; the one behind it learns as the recipe says.
PRUNE, DISTIL = "prune", "distil"


class Pruning(Strict):
    sparsity: float = Field(0.75, gt=0, lt=1)
    """The share of the student's weights, its head among them, that is to be gone."""
    steps: int | None = Field(None, gt=0)
    """Of the stage in which gates close; None: twice ``train.steps``, which are those of the stage behind it."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of these steps in which the target rises from 0."""
    lr_scale: float = Field(2.0, gt=0)
    """The learning rate of that stage, in units of ``train.optimizer.lr``."""
    gate_lr: float = Field(0.02, gt=0)
    """Learning rate of the gates' logits and of the two multipliers."""
    units: tuple[str, ...] = ("*",)
    """Names of units that may go, or globs of them."""


class PrunedDistil(Distil):
    """`Distil` in two stages: with gates on the learner, and with what they left of it."""

    Params: ClassVar[type[Strict]] = Pruning
    shards: ClassVar[bool] = False
    _stage = PRUNE
    #: The learner, and of its units how many are left once they were cut.
    _model: nn.Module | None = None
    _left: Mapping[str, int] | None = None

    @property
    def _steps(self) -> int:
        return self.params.steps or 2 * self.train.steps

    def stages(self) -> Sequence[Stage]:
        learners = frozenset(self.learners)
        return [
            Stage(PRUNE, self._steps, learners, last=True, leave=self._cut),
            Stage(DISTIL, self.train.steps, learners),
        ]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        self._stage, self._model = stage.name, roles[self.role]
        for objective in self.objectives.values():  # schedules of its weights run over a stage, as that of the lr
            objective.steps = stage.steps
        if stage.name == DISTIL and (gates := weight_swap_of(self._model)) is not None:
            gates.detach(self._model)  # a training that goes on here: `load_state_dict` says what is left
        return super().begin(stage, roles, batch)

    def _optimizer(self, role: str, roles: Roles) -> Optimizer:
        if self._stage == DISTIL:
            return super()._optimizer(role, roles)
        whole, config = self.train, self.train.optimizer
        lr = config.lr * self.params.lr_scale
        mine = {"student.compressed.*": self.params.gate_lr / lr}
        scaled = config.model_copy(update={"lr": lr, "lr_scale": {**mine, **config.lr_scale}})
        self.train = whole.model_copy(update={"optimizer": scaled})
        try:
            return super()._optimizer(role, roles)
        finally:
            self.train = whole

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        out = super().loss(role, roles, batch, ctx)
        gates = weight_swap_of(roles[role])
        if not isinstance(gates, Gates):
            return out
        now = gates.sparsity()
        return out + LossOut({
            "constraint": Part(constraint(now, self.target(ctx.step), gates.multipliers), 1.0, 1.0, "constraint"),
            "sparsity": Part(now.detach(), 1.0, 0.0, "sparsity"),
        })  # fmt: skip

    def target(self, step: int) -> float:
        """The sparsity that is asked for at a step: it rises in a line and stays."""
        rising = self.params.warmup * self._steps
        return float(self.params.sparsity * (min(1.0, step / rising) if rising else 1.0))

    def _cut(self, model: nn.Module) -> None:
        gates = weight_swap_of(model)
        assert isinstance(gates, Gates)
        with torch.no_grad():
            said = float(gates.sparsity())
        gates.detach(model)
        self._left = cut(model.eval(), gates)
        parameters = sum(p.numel() for p in model.parameters())
        record(model).facts["l0_prune"] = {
            "sparsity": 1 - parameters / gates.whole, "expected_sparsity": said, "parameters_before": gates.whole,
            "parameters": parameters, "left": {one.name: [self._left[one.name], one.count] for one in gates.units},
        }  # fmt: skip

    def state_dict(self) -> Mapping[str, Any]:
        assert self._model is not None
        facts = record(self._model).facts.get("l0_prune")
        return {} if self._left is None else {"left": dict(self._left), "facts": facts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state and self._model is not None:
            self._left = {name: int(count) for name, count in state["left"].items()}
            resize(self._model, self._left)
            record(self._model).facts["l0_prune"] = state["facts"]


@COMPRESSIONS.register("l0_prune")
class L0Prune(Compression):
    """Gates learn which heads, inner units and channels go while the student learns; what is left learns on.

    Peng et al., "DPHuBERT: Joint Distillation and Pruning of Self-Supervised Speech Models", Interspeech 2023, with
    hard-concrete gates (Louizos et al., ICLR 2018) and an augmented Lagrangian for the share of weights that is to go.
    Stage ``prune`` learns weights and gates by the recipe's objective, whatever that is; then the closed units are
    taken out, the open ones' gates go into the weights that read them, and stage ``distil`` trains the smaller network
    for ``train.steps``. The student starts as it is built, so it should be built with trained weights. The control does
    the same without its teacher. Of each group at least one unit stays, which the release does not ask for. Where a
    norm runs over channels, what is left is normalised over those that are left, as in the release: the second stage
    mends it.
    """

    Params: ClassVar[type[Strict]] = Pruning
    paper, year = "DPHuBERT: Joint Distillation and Pruning of Self-Supervised Speech Models", 2023

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, role_plan: RolePlan) -> RolePlan:
        role_plan = super().plan(params, recipe, role_plan)
        if role_plan.method is not Distil:
            raise UserError(
                "compress l0_prune: it trains the student in stages of its own: leave scheme and method out"
            )
        if other := next((s.name for s in recipe.compress if COMPRESSIONS[s.name].swaps_weights), None):
            raise UserError(f"compress l0_prune: {other} stands before the same weights: leave one of them out")
        if recipe.train.ema is not None:
            raise UserError("compress l0_prune: an average of weights has no gates: leave train.ema out")
        return replace(role_plan, method=PrunedDistil, settings=params)

    @classmethod
    def check(cls, params: Any, adapter: Adapter, model: nn.Module, roles: Mapping[str, nn.Module]) -> None:
        units_of(model, params.units)

    @classmethod
    def start(
        cls, params: Any, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module]
    ) -> nn.Module:
        Gates(model, units_of(model, params.units)).attach(model)
        return model


__all__ = ["L0Prune", "PrunedDistil", "Pruning"]
