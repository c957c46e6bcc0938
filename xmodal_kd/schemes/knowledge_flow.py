"""Layers of frozen teachers that flow into the student's own while it learns, and leave it when it stands alone."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Strict
from ..losses.base import full_precision
from ..objective.parts import LossOut, Part
from ..recipe.recipe import Recipe
from ..runtime.errors import UserError, nearest
from ..runtime.progress import console
from ..signals.capture import capture, only_call
from ..signals.signals import OUTPUTS, Signal, Signals, of_teacher, teacher_name
from ..training.method import Context, Roles, Stage, known_as
from ..training.optim import build_optimizer
from ..training.role_plan import RolePlan
from .base import SCHEMES, Scheme
from .into_layers import Order, mixed_into, order_of
from .rows import dense_rows, diverged

#: The role of the student as it was a few steps ago.
OLD = "old"


class FlowParams(Strict):
    layers: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(min_length=1)
    """For modules of the student those of teachers that flow into them: a path of the first teacher, ``NAME/path`` of
    another."""
    dependence: float = Field(10.0, ge=0)
    """Weight of the dependence cost at the end: how strongly weights are pushed to the student. What a student leans on
    to the end is not saved with it, so that too little of this is worse than none."""
    rise: float = Field(0.5, ge=0, le=1)
    """Share of the steps in which it rises from 0, on a line."""
    change: float = Field(0.1, ge=0)
    """Weight of what the student's answers have changed by since it was copied last."""
    every: int = Field(10, gt=0)
    """Steps between copies."""
    alone: float = Field(0.99, gt=0, lt=1)
    """Weight of the student's own in every layer at which teachers are dropped."""
    lr: float = Field(0.05, gt=0)
    """Learning rate of the logits of the weights."""


class Flow(nn.Module):
    """Adapters of the teachers' layers, and for each of the student's the logits of its own weight and of theirs.

    Args:
        widths: for each layer the student's channels and those of every candidate.
    """

    since: Tensor

    def __init__(self, widths: Mapping[str, tuple[int, Sequence[int]]]) -> None:
        super().__init__()
        self.layers = tuple(widths)
        self.adapters = nn.ModuleList(
            nn.ModuleList(nn.Linear(theirs, own) for theirs in others) for own, others in widths.values()
        )
        self.logits = nn.ParameterList(nn.Parameter(torch.zeros(1 + len(others))) for _, others in widths.values())
        #: The step after which the student stood alone, -1 before.
        self.register_buffer("since", torch.tensor(-1))

    @property
    def alone(self) -> bool:
        return int(self.since) >= 0

    def own(self) -> Float[Tensor, " l"]:
        """The logarithm of the weight of the student's own in each of the layers."""
        return torch.stack([full_precision(logits).log_softmax(dim=0)[0] for logits in self.logits])

    def into(self, layer: int, candidates: Sequence[Signal]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n 1"]]:
        """``sum_j w_j Q_j(t_j)`` of each row, and the weight that it has there: that of the candidates that see it."""
        weights = full_precision(self.logits[layer]).softmax(dim=0)[1:]
        seen = torch.stack([one.layout.mask for one in candidates], dim=1)
        share = weights * seen
        adapters: Any = self.adapters[layer]
        said = [adapter(dense_rows(one)) for adapter, one in zip(adapters, candidates, strict=True)]
        return (share[:, :, None] * torch.stack(said, dim=1)).sum(dim=1), share.sum(dim=1, keepdim=True)


@SCHEMES.register("knowledge_flow")
class KnowledgeFlow(Scheme):
    """Teachers' layers are mixed into the student's while it learns, ever less, until it stands alone.

    Liu, Peng, Schwing, "Knowledge Flow: Improve upon Your Teachers", ICLR 2019: what a layer of the student says
    becomes ``w_0 h + sum_j w_j Q_j(t_j)`` with a softmax of learned weights w and a linear map Q_j of the rows of
    teachers' layers t_j; to the objective come ``-dependence * sum over layers of log w_0``, whose weight rises, and
    ``change * KL(old || new)`` with the answers of the student as it was some steps ago (of numbers half the squared
    distance), teachers flowing into it as they did. When w_0 is above `alone` in every layer, teachers are dropped:
    from then on none is asked, and there is no such term. What is measured and saved is always the student by itself.

    A term with a teacher compares with the first one, and goes on to ask it. Weights start equal. A row that a teacher
    does not see keeps that teacher's share for the student's own. Teachers' layers must have the rows of the student's.
    """

    Params: ClassVar[type[Strict]] = FlowParams
    paper, year, family = "Knowledge Flow: Improve upon Your Teachers", 2019, "several teachers"
    several: ClassVar[bool] = True
    teaches_itself: ClassVar[bool] = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.flow: Flow | None = None
        #: As it was when the student was copied last.
        self.old_flow: Flow | None = None
        #: By layer how its module lays out rows.
        self.orders: dict[str, Order] = {}

    @classmethod
    def plan(cls, params: Any, recipe: Recipe, student: RolePlan) -> Sequence[RolePlan]:
        names = [teacher_name(role) for role in student.teachers]
        for path in itertools.chain(*params.layers.values()):
            if "/" in path and (name := path.partition("/")[0]) not in names:
                raise UserError(f"scheme.params.layers: no teacher is called {name!r}{nearest(name, names)}")
            if path.rpartition("/")[2] in OUTPUTS:
                raise UserError(f"scheme.params.layers: {path!r} is an answer, and no layer: name a module")
        return super().plan(params, recipe, student)

    @property
    def candidates(self) -> list[list[tuple[str, str]]]:
        """Of each layer the role and module of what flows into it."""
        return [
            [(role, own) for path in paths for role in self.teachers if (own := of_teacher(role, path)) is not None]
            for paths in self.params.layers.values()
        ]

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        self.find(roles[self.role], self.params.layers)
        for role, path in itertools.chain(*self.candidates):
            self.find(roles[role], [path])

    def stages(self) -> Sequence[Stage]:
        return [Stage(self.role, self.train.steps, frozenset(self.learners), saves=frozenset({OLD}))]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        if self.flow is None:
            with torch.no_grad(), self.streams.forked("dry run"):
                widths = self._widths(roles, batch)
            with self.streams.forked("scheme", "flow"):
                self.flow = Flow(widths).to(next(roles[self.role].parameters()))
        if self.params.change > 0 and OLD not in roles:
            roles[OLD] = copy.deepcopy(roles[self.role]).eval().requires_grad_(False)
            self.old_flow = copy.deepcopy(self.flow).requires_grad_(False)
        return super().begin(stage, roles, batch)

    def _widths(self, roles: Roles, batch: Batch) -> dict[str, tuple[int, list[int]]]:
        """Channels of both sides of each layer; finds out how the student's modules lay out their rows."""
        layers = list(self.params.layers)
        with capture(roles[self.role], layers) as taken:
            student = self.forward_features(self.role, roles, batch, layers)
        said = self.teachers_say(roles, batch)
        found = {}
        for layer, candidates in zip(layers, self.candidates, strict=True):
            rows, layout = student[layer]
            self.orders[layer] = order_of(only_call(layer, taken[layer]), student[layer], layer)
            for role, path in candidates:
                if not said[role].layout(path).same_rows(layout):
                    raise UserError(
                        f"scheme knowledge_flow: {layer!r} has {len(layout)} rows and {teacher_name(role)}'s {path!r} "
                        f"{len(said[role].layout(path))} that do not mean the same: name layers of one resolution"
                    )
            found[layer] = (rows.shape[1], [said[role].rows(path).shape[1] for role, path in candidates])
        return found

    def _optimizer(self, role: str, roles: Roles) -> Optimizer:
        config = self.train.optimizer
        own = {"flow.logits.*": self.params.lr / config.lr}
        modules = {known_as(role): roles[role], "objective": self.objectives[role], "flow": self.flow}
        return build_optimizer(config.model_copy(update={"lr_scale": {**own, **config.lr_scale}}), modules)  # type: ignore[arg-type]

    def modules(self) -> Mapping[str, nn.Module]:
        made = {"flow": self.flow, "old_flow": self.old_flow}
        return {**super().modules(), **{name: module for name, module in made.items() if module is not None}}

    def teachers_say(self, roles: Roles, batch: Batch) -> dict[str, Signals]:
        """What the teachers say that flow into a layer, with what the terms ask of the first."""
        asked: dict[str, set[str]] = {}
        for role, path in itertools.chain(*self.candidates):
            asked.setdefault(role, set()).add(path)
        if self.teacher in asked and self.objective.needs_teacher:
            asked[self.teacher] |= set(self.objective.features("teacher"))
        return {role: self.forward_features(role, roles, batch, sorted(paths)) for role, paths in asked.items()}

    @contextmanager
    def flowing(self, model: nn.Module, flow: Flow, said: Mapping[str, Signals]) -> Iterator[None]:
        """Within the block teachers flow into `model`; without `said` nothing does."""
        with ExitStack() as stack:
            for number, layer in enumerate(self.params.layers if said else ()):
                candidates = [said[role][path] for role, path in self.candidates[number]]
                rows, share = flow.into(number, candidates)
                stack.enter_context(mixed_into(model, layer, self.orders[layer], rows, share, candidates[0].layout))
            yield

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        assert self.flow is not None
        if self.old_flow is not None and ctx.step % self.params.every == 0 and ctx.micro < ctx.ranks.world:
            roles[OLD].load_state_dict(roles[self.role].state_dict())  # the first micro-batch of a step
            self.old_flow.load_state_dict(self.flow.state_dict())
        yield from super().losses(batch, roles, ctx)

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        assert self.flow is not None
        with ctx.timer.time("teacher"), torch.no_grad():
            said = {} if self.flow.alone else self.teachers_say(roles, batch)
            teaching = said.get(self.teacher) or self._teaching(role, roles, batch)
        with ctx.timer.time("student"), self.flowing(roles[role], self.flow, said):
            outputs = self.forward_role(role, roles, batch)
        with ctx.timer.time("teacher"), torch.no_grad():
            old = None if self.old_flow is None or not said else self._old(roles, batch, said)
        with ctx.timer.time("loss"):
            out: LossOut = self.objectives[role](outputs, teaching, step=ctx.step, ranks=ctx.ranks)
            if said:
                own, weight = self.flow.own(), self.params.dependence * self.risen(ctx)
                out += LossOut({
                    "dependence": Part(-own.sum(), 1.0, weight, "dependence"),
                    "own": Part(own.detach().exp().min(), 1.0, 0.0, "dependence"),
                })  # fmt: skip
            if old is not None:
                out += self._changed(old, outputs[self.adapter.output])
        return out

    def _old(self, roles: Roles, batch: Batch, said: Mapping[str, Signals]) -> Signal:
        """What the student answered as it was, in eval mode."""
        assert self.old_flow is not None
        with self.flowing(roles[OLD], self.old_flow, said):
            return self.forward_features(self.role, {self.role: roles[OLD]}, batch, ())[self.adapter.output]

    def _changed(self, old: Signal, new: Signal) -> LossOut:
        valid = old.layout.mask & new.layout.mask
        values = diverged(old.rows[valid], new.rows[valid], of_classes=self.adapter.output == "logits")
        return LossOut({"change": Part(values.sum(), float(len(values)), self.params.change, "answers, change")})

    def risen(self, ctx: Context) -> float:
        """The share of the dependence cost's weight that there is at a step."""
        over = self.params.rise * ctx.stage.steps
        return 1.0 if over <= 0 else min(1.0, ctx.step / over)

    def settle(self, roles: Roles, ctx: Context) -> None:
        super().settle(roles, ctx)
        assert self.flow is not None
        if self.flow.alone:
            return
        least = float(self.flow.own().detach().min())
        if least > math.log(self.params.alone):
            self.flow.since.fill_(ctx.step + 1)
        elif ctx.step + 1 == ctx.stage.steps and ctx.ranks.main:
            told = f"{math.exp(least):.2f} of a layer is the student's own at the end, the rest is not saved with it"
            console.print(
                f"note: knowledge_flow: {told}: raise scheme.params.dependence", highlight=False, soft_wrap=True
            )

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        """The last weight of the student's own in each layer, and the step since which it stands alone, if it does."""
        assert self.flow is not None
        own = dict(zip(self.flow.layers, self.flow.own().exp().tolist(), strict=True))
        return {"own weight": own, "alone since step": int(self.flow.since) if self.flow.alone else None}


__all__ = ["Flow", "KnowledgeFlow"]
