"""What a method is, and the default one: a student, a teacher and an objective.

A method owns its stages and the losses of a step; the engine owns the loop. Progressive distillation swaps roles and
starts a fresh optimizer at each stage, distribution matching alternates two optimizers within a step, mutual learning
has several students: all say so through the same four verbs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from .adapter import Adapter, Batch, Strict
from .clock import Clock
from .errors import UserError
from .objective import LossOut, Objective
from .optim import build_optimizer, scaling
from .ranks import Ranks
from .recipe import Train
from .registry import Registry
from .signals import Signals
from .streams import Key, Streams
from .teacher_cache.entries import CACHED, Kept, restored

Roles = MutableMapping[str, nn.Module]


class Ema(NamedTuple):
    """A role that follows another as an exponential moving average of its weights."""

    source: str
    decay: float


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
    """

    name: str
    steps: int
    trains: frozenset[str]
    ema: Mapping[str, Ema] = field(default_factory=dict)
    saves: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Context:
    """What a method may know of the step it is in."""

    stage: Stage
    step: int
    """Within the stage, from 0."""
    micro: int
    """Micro-batch within the step: index * world + rank."""
    streams: Streams
    clock: Clock
    ranks: Ranks

    def generator(self, *path: Key, device: torch.device | str = "cpu") -> torch.Generator:
        """Noise of this micro-batch that resume, workers and call order do not change."""
        return self.streams.torch("step", self.stage.name, self.step, self.micro, *path, device=device)


class Method(Protocol):
    """Stages, and the losses of each step."""

    #: What a recipe may set under ``method.params``.
    Params: ClassVar[type[Strict]]
    #: What stands beside the student: the same student ``trained`` without the teacher, or, where the method buys fewer
    #: evaluations of the same model, the ``teacher`` itself within the student's budget.
    control: ClassVar[Literal["trained", "teacher"]]

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
    """Teacher and student see a batch, the objective compares what they say of it (Hinton et al., 2015)."""

    Params: ClassVar[type[Strict]] = NoParams
    control: ClassVar[Literal["trained", "teacher"]] = "trained"
    #: Whether its teacher may be one that ran before: `teacher_cache`.
    cacheable: ClassVar[bool] = True

    def __init__(
        self, adapter: Adapter, objective: Objective, train: Train, streams: Streams, role: str = "student",
        params: Strict | None = None, teacher: str = "teacher",
    ) -> None:  # fmt: skip
        self.adapter, self.objective, self.train, self.streams, self.role = adapter, objective, train, streams, role
        #: The role that teaches; the adapter is asked for its signals by this name.
        self.teacher = teacher
        #: How cached signals of the teacher are read, where batches bring some.
        self.kept: Mapping[str, Kept] = {}
        if objective.reads_gradients and train.precision == "fp16":
            raise UserError("balance gradnorm: gradients of fp16 are not scaled where it reads them: use bf16 or fp32")

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        """Any teacher and student will do: what the objective compares is checked on a real batch."""

    def stages(self) -> Sequence[Stage]:
        return [Stage(self.role, self.train.steps, frozenset({self.role}))]

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        if not self.objective.built:
            with torch.set_grad_enabled(self.objective.reads_gradients), self.streams.forked("dry run"):
                student = self._says(self.role, roles, batch)
                self.objective.build(student, self._teacher(roles, batch, student), self.streams)
        config, name = self.train.optimizer, self.role
        if self.role in ("control", "self_training"):  # the student's recipe, but not for the objective's parameters
            config, name = scaling(config, lambda pattern: not pattern.startswith("objective.")), "student"
        return {self.role: build_optimizer(config, {name: roles[self.role], "objective": self.objective})}

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        cached = CACHED in batch  # and then put on the student's rows, which must be there first
        with ctx.clock.time("teacher"):
            teacher = None if cached else self._teacher(roles, batch)
        with ctx.clock.time("student"):
            student = self._says(self.role, roles, batch)
        with ctx.clock.time("teacher"):
            teacher = self._teacher(roles, batch, student) if cached else teacher
        with ctx.clock.time("loss"):
            out = self.objective(student, teacher, step=ctx.step, ranks=ctx.ranks)
        yield self.role, out

    def _says(self, role: str, roles: Roles, batch: Batch) -> Signals:
        side = "teacher" if role == self.teacher != self.role else "student"
        said = self.adapter.signals(role, roles[role], batch, self.objective.features(side))
        said.model, said.labelled = roles[role], batch.get("labelled")
        return said

    def _teacher(self, roles: Roles, batch: Batch, student: Signals | None = None) -> Signals | None:
        """What the teacher says, or said when its cache was filled, brought to the rows of `student`."""
        if not self.objective.needs_teacher:
            return None
        with torch.no_grad():
            if student is None or CACHED not in batch:
                return self._says(self.teacher, roles, batch)
            said = restored(self.kept, batch[CACHED], student)
            said.model = roles.get(self.teacher)
            return said

    def modules(self) -> Mapping[str, nn.Module]:
        return {"objective": self.objective}

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def probe(method: Method, roles: Roles, batch: Batch, streams: Streams) -> dict[str, LossOut]:
    """The first step's losses and their backward pass on `batch`, with no optimizer step; gradients are left in place.

    For checks and for counting. Randomness is put back as it was.
    """
    device = next(iter(next(iter(roles.values())).parameters())).device
    ctx = Context(method.stages()[0], 0, 0, streams, Clock(device), Ranks())
    found = {}
    with streams.forked("probe"):
        for name, out in method.losses(batch, roles, ctx):
            out.value().backward()
            found[name] = out
    return found
