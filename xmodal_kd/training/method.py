"""What a method is, and the default one: a student, a teacher and an objective.

A method owns its stages and the losses of a step; the engine owns the loop. Progressive distillation swaps roles and
starts a fresh optimizer at each stage, distribution matching alternates two optimizers within a step, mutual learning
has several students: all say so through the same four verbs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from ..adapter.adapter import CACHED, Adapter, Batch, Source, Strict, is_teacher
from ..adapter.panels import Panel
from ..losses import LOSSES
from ..models.weight_swap import weight_swap_of
from ..objective.objective import Objective
from ..objective.parts import LossOut
from ..recipe.recipe import Train
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError
from ..runtime.random_streams import Key, Streams
from ..runtime.registry import Registry
from ..runtime.timing import StepTimer
from ..signals.signals import Signals, TeacherSignals, of_teacher
from . import compiled
from .optim import build_optimizer, scaling

Roles = MutableMapping[str, nn.Module]


class Ema(NamedTuple):
    """A role that follows another as an exponential moving average of its weights."""

    source: str
    decay: float


# docs/decisions/004-stages-and-controls.md
@dataclass(frozen=True)
class Stage:
    """A stretch of training with one set of optimizers.

    Attributes:
        name: for the log and the checkpoint.
        steps: optimizer steps.
        trains: roles that learn; every other role is frozen within the stage (eval mode, no gradient).
        ema: roles that the engine updates after each step as averages of others (consistency targets, mean teachers);
            a role that does not exist yet starts as a copy of its source, as `begin` left it.
        saves: frozen roles whose weights `begin` changes, so that a checkpoint must hold them too.
        last: whether it ends with its last weights, not with its best: what is measured before is another network.
        part: whether its losses reach a part of what it trains alone; the rest learns in another stage.
        leave: what is done to the target at the end, before it is saved.

    >>> Stage("student", 100, frozenset({"student"})).saves
    frozenset()
    """

    name: str
    steps: int
    trains: frozenset[str]
    ema: Mapping[str, Ema] = field(default_factory=dict)
    saves: frozenset[str] = frozenset()
    last: bool = False
    part: bool = False
    leave: Callable[[nn.Module], object] = nn.Module.eval

    def evaluated_every(self, train: Train) -> int:
        """Steps from one look at dev to the next."""
        return train.eval_every or max(1, self.steps // 10)


@dataclass(frozen=True)
class Context:
    """What a method may know of the step it is in."""

    stage: Stage
    step: int
    """Within the stage, from 0."""
    micro: int
    """Micro-batch within the step: index * world + rank."""
    streams: Streams
    timer: StepTimer
    ranks: Ranks

    def generator(self, *path: Key, device: torch.device | str = "cpu") -> torch.Generator:
        """Noise of this micro-batch that resume, workers and call order do not change."""
        return self.streams.torch("step", self.stage.name, self.step, self.micro, *path, device=device)


class Method(Protocol):
    """Stages, and the losses of each step."""

    #: What a recipe may set under ``method.params``.
    Params: ClassVar[type[Strict]]
    #: What stands beside the student: the same student ``trained`` without the teacher; where the method buys fewer
    #: evaluations of the same model, the ``teacher`` itself within the student's budget; where it has no data, the same
    #: student taught on ``noise``.
    control: ClassVar[Literal["trained", "teacher", "noise"]]

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Raises `UserError` for roles that the method cannot train; asked before anything is trained."""
        ...

    def stages(self) -> Sequence[Stage]: ...

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        """Prepare a stage (swap roles or their weights, build modules from a real batch) and return its optimizers.

        On resume it is called again before the checkpoint's tensors are put back.
        """
        ...

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        """Yield ``(optimizer name, loss)``; the engine steps that optimizer before the generator goes on."""
        ...

    def modules(self) -> Mapping[str, nn.Module]:
        """What learns besides the roles: projectors, discriminators, banks."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """JSON of whatever else a resume needs; tensors belong into `modules`."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


METHODS: Registry[Any] = Registry("method")


class NoParams(Strict):
    """Of a method that has none."""


@METHODS.register("distil")
class Distil:
    """Teacher and student see a batch, the objective compares what they say of it (Hinton et al., 2015).

    Schemes are made of it: `learners` says which roles learn, each by an objective of its own, `teacher_signals` what
    teaches one on a batch, `loss` how the two are compared.
    """

    Params: ClassVar[type[Strict]] = NoParams
    control: ClassVar[Literal["trained", "teacher", "noise"]] = "trained"
    #: Whether its teacher may be one that ran before: `teacher_cache`.
    cacheable: ClassVar[bool] = True
    #: Whether models need only be called: then they may be spread over ranks (``train.sharding``).
    shards: ClassVar[bool] = True
    #: Whether what teaches depends on what the learner says of the batch.
    learner_first: ClassVar[bool] = False

    def __init__(
        self, adapter: Adapter, objective: Objective, train: Train, streams: Streams, role: str = "student",
        params: Strict | None = None, teacher: str = "teacher", peers: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.adapter, self.objective, self.train, self.streams, self.role = adapter, objective, train, streams, role
        self.params: Any = params or self.Params()
        #: The role that teaches; the adapter is asked for its signals by this name.
        self.teacher = teacher
        #: Roles that learn beside `role`, of this method alone.
        self.peers = tuple(peers)
        #: By role that learns.
        self.objectives = {role: objective} | {peer: copy.deepcopy(objective) for peer in self.peers}
        #: How the teacher's signals are made of what batches bring of a cache, beside the learner's own.
        self.restore: Callable[[Any, Signals], Signals] | None = None
        if objective.reads_gradients and train.precision == "fp16":
            raise UserError("balance gradnorm: gradients of fp16 are not scaled where it reads them: use bf16 or fp32")

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        """The data of its trainings, made of the student's (pairs of a class, two views of a sample)."""
        return source

    @classmethod
    def show(cls, adapter: Adapter, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        """What `export` left in the student's `folder`, for the run's page."""
        return ()

    def seen(self, batch: Batch) -> Batch:
        """What roles are given of a batch of `source`, for whoever looks on."""
        return batch

    @property
    def learners(self) -> tuple[str, ...]:
        """The roles that learn, each after the step of the one before it."""
        return (self.role, *self.peers)

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Any teacher and student will do: what the objective compares is checked on a real batch.

        Raises `UserError` for terms that look inside models which are to be compiled, or compare tokens of two
        vocabularies as if they were of one.
        """
        compiled.check(self.train, self.objective)
        for role in filter(is_teacher, roles):
            _check_tokens(self.adapter, role, self.objective)

    def stages(self) -> Sequence[Stage]:
        return [Stage(self.role, self.train.steps, frozenset(self.learners))]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        for role, objective in self.objectives.items():
            if not objective.built:
                with torch.set_grad_enabled(objective.reads_gradients), self.streams.forked("dry run"):
                    outputs = self.forward_role(role, roles, batch)
                    teaching = self._teaching(role, roles, batch, outputs)
                    one = next(iter(teaching.values())) if isinstance(teaching, Mapping) else teaching
                    objective.build(outputs, one, self.streams)
        return {role: self._optimizer(role, roles) for role in self.learners}

    def _optimizer(self, role: str, roles: Roles) -> Optimizer:
        """Of a learner and its objective; patterns of ``lr_scale`` know every learner of the recipe as the student."""
        config = self.train.optimizer
        if role in ("control", "self_training"):  # the student's recipe, but not for the objective's parameters
            config = scaling(config, lambda pattern: not pattern.startswith("objective."))
        return build_optimizer(config, {known_as(role): roles[role], "objective": self.objectives[role]})

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        for role in self.learners:
            out = self.loss(role, roles, batch, ctx)
            yield role, out if role == self.role else out.named(role)
        self.settle(roles, ctx)

    def settle(self, roles: Roles, ctx: Context) -> None:
        """What a step ends with, when its last loss has been dealt with."""
        for role in self.learners:
            if (swap := weight_swap_of(roles[role])) is not None:
                swap.settle(ctx.ranks)

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        """Of one learner on a batch."""
        last = self.learner_first or CACHED in batch  # what is kept is put on the learner's rows, which must be there
        with ctx.timer.time("teacher"):
            teacher = None if last else self._teaching(role, roles, batch)
        with ctx.timer.time("student"):
            outputs = self.forward_role(role, roles, batch)
        with ctx.timer.time("teacher"):
            teacher = self._teaching(role, roles, batch, outputs) if last else teacher
        with ctx.timer.time("loss"):
            out: LossOut = self.objectives[role](outputs, teacher, step=ctx.step, ranks=ctx.ranks)
        return out

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        """What a role says of a batch: a learner what the terms ask of a student, another what they ask of a teacher.

        Args:
            of: "student" or "teacher", where that is not so.
        """
        side = of or ("student" if role in self.learners else "teacher")
        return self.forward_features(role, roles, batch, self.objective.features(side))

    def forward_features(self, role: str, roles: Roles, batch: Batch, features: Sequence[str]) -> Signals:
        """What a role says of a batch, these features included."""
        outputs = self.adapter.signals(role, roles[role], batch, features)
        outputs.model, outputs.labelled = roles[role], batch.get("labelled")
        return outputs

    def _teaching(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None = None) -> TeacherSignals:
        if not self.objectives[role].needs_teacher:
            return None
        with torch.no_grad():
            return self.teacher_signals(role, roles, batch, outputs)

    def teacher_signals(self, role: str, roles: Roles, batch: Batch, outputs: Signals | None) -> TeacherSignals:
        """What teaches `role` on a batch, without gradient: the teacher, or what it said when its cache was filled.

        A scheme may return several roles' signals by name, of which every term with a teacher then takes the mean.

        Args:
            outputs: by `role` on the batch, where `learner_first` or a cache asks for it, and in the dry run.
        """
        if outputs is None or CACHED not in batch:
            return self.forward_role(self.teacher, roles, batch)
        assert self.restore is not None, (
            "batches with cached signals come from a source that also says how to read them"
        )
        cached = self.restore(batch[CACHED], outputs)
        cached.model = roles.get(self.teacher)
        return cached

    def modules(self) -> Mapping[str, nn.Module]:
        """The objective, and one of each peer."""
        return {"objective" if role == self.role else f"objective-{role}": o for role, o in self.objectives.items()}

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        """What a report should say of the training that is over, in eval mode without gradients on a training batch."""
        return {}

    def export(self, model: nn.Module, adapter: Adapter, folder: Path) -> Mapping[str, Any]:
        """Write what was made beside the student into its `folder`; returns what was measured, for the report.

        Rows of the report's curve stand under ``curve``: see `Overview`.
        """
        return {}


def _check_tokens(adapter: Adapter, role: str, objective: Objective) -> None:
    """Raises `UserError` for a term that takes a teacher's tokens for the student's."""
    for term in objective:
        if not term.spec.needs_teacher or "other_tokens" in term.spec.properties:
            continue
        paths = (of_teacher(role, path) or path for path in term.term.signals("teacher"))
        if differ := next((found for path in paths if (found := adapter.other_tokens(role, path))), None):
            able = ", ".join(sorted(name for name in LOSSES if "other_tokens" in LOSSES[name].properties))
            raise UserError(
                f"term {term.name!r}: {differ}: row i must mean the same token, so take a teacher and a student of one "
                f"tokenizer, or a loss that compares two vocabularies: {able}"
            )


def known_as(role: str) -> str:
    """The name by which a recipe's ``lr_scale`` knows a role: ``teacher`` or ``student``."""
    return "teacher" if is_teacher(role) else "student"


def probe(method: Method, roles: Roles, batch: Batch, streams: Streams) -> dict[str, LossOut]:
    """The first step's losses and their backward pass on `batch`, with no optimizer step; gradients are left in place.

    For checks and for counting. Randomness is put back as it was.
    """
    device = next(iter(next(iter(roles.values())).parameters())).device
    ctx = Context(method.stages()[0], 0, 0, streams, StepTimer(device), Ranks())
    found = {}
    with streams.forked("probe"):
        for name, out in method.losses(batch, roles, ctx):
            out.value().backward()
            found[name] = out
    return found
