"""Compression by adapters: weights that a student starts with fade while factors of low rank learn in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..adapter.adapter import Adapter, Batch, Strict
from ..losses.base import full_precision
from ..models.weight_swap import WeightSwap, weight_swap_of
from ..objective.parts import LossOut, Part
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError
from ..signals.capture import find_modules
from ..signals.signals import Signals
from ..training.method import Context, Distil, Roles, Stage
from ..training.role_plan import RolePlan
from .base import COMPRESSIONS, Compression, record
from .low_rank import LowRank, layers_of

#: The stage in which weights fade; the one behind it trains what is left.
FADE, DISTIL = "fade", "distil"
Kind = Literal["sine", "linear", "cosine"]


class Fading(Strict):
    rank: int = Field(32, ge=1)
    """Of the factors; a layer of which they would be no fewer weights stays whole, and learns."""
    layers: tuple[str, ...] = ("*",)
    """Paths of linear layers and convolutions, or globs of them."""
    fade: float = Field(0.8, gt=0, lt=1)
    """Share of ``train.steps`` in which the weights fade; the rest trains what is left."""
    schedule: Kind = "sine"
    """How they fade from 1 to 0: ``1 - sin(pi t / 2)``, ``1 - t``, ``cos(pi t / 2)``."""
    feature: float = Field(0.8, ge=0)
    """Weight of the mean over layers of the squared difference from the teacher's outputs."""
    features: tuple[str, ...] | None = None
    """Modules whose outputs are compared; None: the layers themselves."""


class Fade(WeightSwap):
    """Stands before the weights and biases of layers: ``share W + B A`` and ``share b + c``, of which A, B and c learn.

    Attributes:
        share: of the weights that the student started with.
    """

    share: Tensor

    def __init__(self, model: nn.Module, layers: Sequence[str], rank: int) -> None:
        apart = [LowRank(model.get_submodule(path), rank) for path in layers]
        biased = [path for path, low in zip(layers, apart, strict=True) if low.up.bias is not None]
        super().__init__([*(f"{path}.weight" for path in layers), *(f"{path}.bias" for path in biased)])
        self.layers, self.rank = tuple(layers), rank
        self.down = nn.ParameterList(low.down.weight for low in apart)
        self.up = nn.ParameterList(nn.Parameter(torch.zeros_like(low.up.weight)) for low in apart)
        self.bias = nn.ParameterList(
            nn.Parameter(torch.zeros_like(low.up.bias)) for low in apart if low.up.bias is not None
        )
        self.register_buffer("share", torch.ones((), dtype=apart[0].up.weight.dtype))
        self._weights = {f"{path}.weight": number for number, path in enumerate(layers)}
        self._biases = {f"{path}.bias": number for number, path in enumerate(biased)}

    def made(self, name: str, weight: Tensor) -> Tensor:
        number = self._weights.get(name)
        if number is None:
            more: Tensor = self.bias[self._biases[name]]
        else:
            more = (self.up[number].flatten(1) @ self.down[number].flatten(1)).reshape(weight.shape)
        return self.share * weight.detach() + more

    def leave(self, model: nn.Module) -> None:
        """Give `model` the factors alone: the same parameters, so that who holds them need not be told."""
        self.detach(model)
        for number, path in enumerate(self.layers):
            low = LowRank(model.get_submodule(path), self.rank)
            low.down.weight, low.up.weight = self.down[number], self.up[number]
            if low.up.bias is not None:
                low.up.bias = self.bias[self._biases[f"{path}.bias"]]
            model.set_submodule(path, low)


def left(step: int, steps: int, kind: Kind) -> float:
    """The share of the weights that is there at a step, 1 at the first and 0 after `steps`."""
    t = min(1.0, step / steps)
    shares = {"sine": 1 - math.sin(math.pi * t / 2), "linear": 1 - t, "cosine": math.cos(math.pi * t / 2)}
    return 0.0 if t == 1 else shares[kind]


class FadedDistil(Distil):
    """`Distil` in two stages: while the learner's weights fade, and with its factors alone."""

    Params: ClassVar[type[Strict]] = Fading
    cacheable: ClassVar[bool] = False
    shards: ClassVar[bool] = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Modules whose outputs are compared, where there is a teacher.
        self.paths: tuple[str, ...] = ()
        #: What roles said of the batch of a step.
        self._said: dict[str, Signals] = {}

    def stages(self) -> Sequence[Stage]:
        steps = self.train.steps
        fade = min(max(1, round(self.params.fade * steps)), steps - 1)
        learners = frozenset(self.learners)
        return [
            Stage(FADE, fade, learners, last=True, leave=self._leave),
            Stage(DISTIL, steps - fade, learners),
        ]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        model = roles[self.role]
        for objective in self.objectives.values():  # schedules of its weights run over a stage, as that of the lr
            objective.steps = stage.steps
        if stage.name == DISTIL and isinstance(swap := weight_swap_of(model), Fade):
            swap.leave(model)  # a training that goes on here
        if self.teacher in roles and self.params.feature > 0:
            self.paths = self.params.features or layers_in(model)
        return super().begin(stage, roles, batch)

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        side = of or ("student" if role in self.learners else "teacher")
        wanted = sorted({*self.objective.features(side), *self.paths})
        self._said[role] = self.forward_features(role, roles, batch, wanted)
        return self._said[role]

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        if isinstance(swap := weight_swap_of(roles[role]), Fade):
            swap.share.fill_(left(ctx.step, ctx.stage.steps, self.params.schedule))
        self._said = {}
        out = super().loss(role, roles, batch, ctx)
        if self.paths:
            with ctx.timer.time("teacher"), torch.no_grad():
                theirs = self._said.get(self.teacher) or self.forward_role(self.teacher, roles, batch)
            with ctx.timer.time("loss"):
                out += self._compared(self._said[role], theirs)
        self._said = {}
        return out

    def _compared(self, mine: Signals, theirs: Signals) -> LossOut:
        parts, weight = {}, self.params.feature / len(self.paths)
        for path in self.paths:
            (rows, layout), (others, own) = mine[path], theirs[path]
            if not layout.same_rows(own) or rows.shape != others.shape:
                raise UserError(
                    f"compress pc_lora: {path!r} of student and teacher are {tuple(rows.shape)} and "
                    f"{tuple(others.shape)}: the teacher must be what the student starts as (layer_copy)"
                )
            valid = layout.mask & own.mask
            a, b = full_precision(rows[valid]), full_precision(others[valid])
            values = F.mse_loss(a, b, reduction="none").mean(dim=1)
            parts[f"feature/{path}"] = Part(values.sum(), float(len(values)), weight, f"rows of {path}")
        return LossOut(parts)

    def _leave(self, model: nn.Module) -> None:
        swap = weight_swap_of(model)
        assert isinstance(swap, Fade)
        swap.leave(model.eval())


def layers_in(model: nn.Module) -> tuple[str, ...]:
    """Paths of the layers that are, or will be, of two factors."""
    swap = weight_swap_of(model)
    if isinstance(swap, Fade):
        return swap.layers
    return tuple(path for path, module in model.named_modules() if isinstance(module, LowRank))


@COMPRESSIONS.register("pc_lora")
class FadedWeights(Compression):
    """The weights that the student starts with fade out while adapters of low rank learn, which are all that is left.

    Hwang et al., "PC-LoRA: Low-Rank Adaptation for Progressive Model Compression with Knowledge Distillation", 2024: a
    layer computes ``share (W x + b) + B A x + c``; W and b are held, B and c start at 0, and `share` falls from 1 to 0.
    The loss is 0.2 of the task, a term of that weight, and 0.8 (`feature`) of the mean over layers of the squared
    difference from the teacher's outputs. Linear layers and convolutions, of which A has the kernel, are then two
    layers of `rank`, in the saved model too; all else learns as usual. The teacher is the network that it starts as,
    whole: put ``layer_copy`` before this, or ``pretrained``. No release was found, and of the paper the abstract alone
    could be read: the schedules, their share and the weights are by summaries of it. The control does the same without
    its teacher.
    """

    Params: ClassVar[type[Strict]] = Fading
    paper, year = "PC-LoRA: Low-Rank Adaptation for Progressive Model Compression with Knowledge Distillation", 2024

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, role_plan: RolePlan) -> RolePlan:
        role_plan = super().plan(params, recipe, role_plan)
        if role_plan.method is not Distil:
            raise UserError("compress pc_lora: it trains the student in stages of its own: leave scheme and method out")
        kinds = [COMPRESSIONS[spec.name] for spec in recipe.compress]
        if other := next((spec.name for spec in recipe.compress if COMPRESSIONS[spec.name].swaps_weights), None):
            raise UserError(f"compress pc_lora: {other} stands before the same weights: leave one of them out")
        if kinds[-1] is not cls:
            raise UserError("compress pc_lora: it is the last of the list, as it leaves other layers behind")
        if recipe.train.ema is not None or recipe.cache is not None:
            key = "train.ema" if recipe.cache is None else "cache"
            raise UserError(f"compress pc_lora: it knows no {key}, as layers change and are compared: leave it out")
        if recipe.train.steps < 2:
            raise UserError("compress pc_lora: weights fade, then what is left learns: give train.steps at least 2")
        return replace(role_plan, method=FadedDistil, settings=params)

    @classmethod
    def check(cls, params: Any, adapter: Adapter, model: nn.Module, roles: Mapping[str, nn.Module]) -> None:
        if not adapter.saves_low_rank:
            raise UserError("compress pc_lora: this modality cannot save layers of two factors: leave it out")
        found = cls._layers(params, model)
        for path in (params.features or found) if "teacher" in roles and params.feature > 0 else ():
            for whole in (model, roles["teacher"]):
                if len(find_modules(whole, path)) > 1:
                    raise UserError(f"compress pc_lora, features: {path!r} names several modules: name each")

    @classmethod
    def start(
        cls, params: Any, adapter: Adapter, role_plan: RolePlan, model: nn.Module, roles: Mapping[str, nn.Module]
    ) -> nn.Module:
        before = sum(p.numel() for p in model.parameters())
        swap = Fade(model, cls._layers(params, model), params.rank)
        for name in swap.names:
            model.get_parameter(name).requires_grad_(False)
        whole = sum(model.get_parameter(name).numel() for name in swap.names)
        factors = sum(p.numel() for p in swap.parameters())
        swap.attach(model)
        record(model).facts["pc_lora"] = {
            "parameters_before": before, "parameters": before - whole + factors, "layers": len(swap.layers),
        }  # fmt: skip
        return model

    @staticmethod
    def _layers(params: Any, model: nn.Module) -> list[str]:
        if found := layers_of(model, params.rank, params.layers):
            return found
        raise UserError(
            f"compress pc_lora: no linear layer or convolution of {', '.join(params.layers)} has fewer weights at rank "
            f"{params.rank}: give a lower rank, or other layers"
        )


__all__ = ["Fade", "FadedDistil", "FadedWeights", "Fading", "left"]
