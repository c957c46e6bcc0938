"""What methods without data share: inputs made in the place of samples, a student that is asked them, its control."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from ..adapter.adapter import Adapter, Batch, Input, Source, Strict
from ..adapter.panels import Panel
from ..objective.loss_inputs import reads_labels
from ..objective.objective import Objective
from ..objective.parts import LossOut
from ..runtime.distributed import Ranks
from ..runtime.errors import UserError
from ..signals.signals import Signals
from ..training.method import Context, Distil, Roles, Stage
from ..training.modes import evaluating
from .draws import Draws
from .shown import panel, write


class MadeParams(Strict):
    student_steps: int = Field(1, ge=1, le=1000)
    """Steps of the student in a step of the training."""


# docs/decisions/019-without-data.md
class DataFree(Distil):
    """Base: the student learns by the terms with a teacher on inputs that are made; no sample is read, no label.

    Terms without a teacher train the teacher alone, where the run trains it. The control is the same student, taught by
    the same terms in as many steps on plain noise: each value of an input drawn evenly from the input's range.
    """

    Params: ClassVar[type[Strict]] = MadeParams
    control: ClassVar[Literal["trained", "teacher", "noise"]] = "noise"
    cacheable: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    moving: ClassVar[bool] = True
    #: Source of the method.
    paper: ClassVar[str]
    year: ClassVar[int]

    def __init__(self, adapter: Adapter, objective: Objective, *given: Any, **named: Any) -> None:
        super().__init__(adapter, taught(objective, self.name()), *given, **named)

    @classmethod
    def name(cls) -> str:
        """As a recipe has it."""
        return cls.__name__.lower()

    @classmethod
    def asked(cls, adapter: Adapter) -> Input:
        """What an input looks like. Raises `UserError` where the modality does not say."""
        if (found := adapter.input()) is None:
            raise UserError(
                f"method {cls.name()} makes inputs in the place of samples, and this data section has no input whose "
                "values could be set: use the method distil"
            )
        return found

    @classmethod
    def source(cls, params: Any, source: Source, adapter: Adapter) -> Source:
        return Draws(adapter.batch_size, adapter.streams, partial(cls.draw, params, cls.asked(adapter)))

    @classmethod
    @abstractmethod
    def draw(cls, params: Any, asked: Input, generator: torch.Generator) -> dict[str, Tensor]:
        """What the inputs of one sample are made of."""

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        asked = self.asked(self.adapter)
        if self.teacher not in roles:
            raise UserError(f"method {self.name()} asks a teacher what made inputs are, and there is none: give one")
        teacher, like = roles[self.teacher], like_of(roles[self.teacher])
        with torch.no_grad(), evaluating(teacher):
            x = torch.zeros(2, *asked.shape, device=like.device, dtype=like.dtype)
            said = self.adapter.signals(self.teacher, teacher, self.adapter.given(x))
        if "logits" not in said:
            raise UserError(f"method {self.name()} asks a teacher for classes, and it answers values: use distil")

    # ---------------------------------------------------------------- inputs

    def prepare(self, roles: Roles) -> Mapping[str, Optimizer]:
        """Build what makes inputs, on the device and in the precision of `roles`; returns what learns beside."""
        return {}

    @abstractmethod
    def inputs(self, batch: Batch, turn: int = 0) -> Tensor:
        """``(b, *shape)``: what is made of a batch of draws as things stand."""

    @abstractmethod
    def turns(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        """The losses of a step of the student's training, and of whatever makes its inputs."""

    def noise(self, count: int, generator: torch.Generator, like: Tensor | None = None) -> Tensor:
        """``(count, *shape)`` drawn evenly from the range: the control's inputs."""
        asked, kind = self.asked(self.adapter), torch.float32 if like is None else like.dtype
        x = torch.rand((count, *asked.shape), generator=generator, device=generator.device, dtype=kind)
        return asked.low + (asked.high - asked.low) * x

    def seen(self, batch: Batch) -> Batch:
        """Noise, before anything is made."""
        device = batch["ids"].device
        return self.adapter.given(self.noise(len(batch["ids"]), self.streams.torch("seen", device=device)))

    # ---------------------------------------------------------------- the steps

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        makes = {} if self.role == "control" else self.prepare(roles)
        like = like_of(roles[self.role])
        x = self.noise(len(batch["ids"]), self.streams.torch("dry run", device=like.device), like)
        return {**makes, **super().begin(stage, roles, self.adapter.given(x))}

    def losses(self, batch: Batch, roles: Roles, ctx: Context) -> Iterator[tuple[str, LossOut]]:
        if self.role == "control":
            like = like_of(roles[self.role])
            for turn in range(self.params.student_steps):
                drawn = ctx.generator("noise", turn, device=like.device)
                yield self.role, self.learns(self.noise(len(batch["ids"]), drawn, like), roles, ctx)
        else:
            yield from self.turns(batch, roles, ctx)
        self.settle(roles, ctx)

    def learns(self, x: Tensor, roles: Roles, ctx: Context) -> LossOut:
        """The student's loss on inputs."""
        return self.loss(self.role, roles, self.adapter.given(x.detach()), ctx)

    def said(self, role: str, roles: Roles, x: Tensor, features: Sequence[str] = ()) -> Signals:
        """What a role says of inputs, with the graph to them."""
        return self.forward_features(role, roles, self.adapter.given(x), features)

    # ---------------------------------------------------------------- what is told

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        """Of a batch of made inputs: how often the student answers as the teacher, and how many classes that names."""
        if self.role == "control":
            return {}
        models = dict(roles)
        x = self.inputs(batch)
        (mine, layout), (theirs, _) = (self.said(role, models, x)["logits"] for role in (self.role, self.teacher))
        student, teacher = (rows[layout.mask].argmax(dim=1) for rows in (mine, theirs))
        counts = torch.bincount(teacher, minlength=theirs.shape[1])
        return {
            "made inputs, answered as by the teacher": float((student == teacher).float().mean()),
            "made inputs, share of the teacher's commonest class": float(counts.max() / counts.sum()),
            "made inputs, classes that the teacher names": int((counts > 0).sum()),
        }

    def examples(self) -> Tensor:
        """Some inputs as they are made at the end, for whoever looks."""
        draw = partial(self.draw, self.params, self.asked(self.adapter))
        source = Draws(64, self.streams, draw)
        return self.inputs(source.collate([source.sample(i, -1) for i in range(64)]))

    def export(self, model: nn.Module, adapter: Adapter, folder: Path) -> Mapping[str, Any]:
        with torch.no_grad():
            write(folder, self.examples())
        return {}

    @classmethod
    def show(cls, adapter: Adapter, models: Mapping[str, nn.Module], folder: Path) -> Sequence[Panel]:
        return panel(adapter, cls.asked(adapter), models, folder)


def taught(objective: Objective, name: str) -> Objective:
    """The terms with a teacher. Raises `UserError` for one that reads labels, which made inputs have none of."""
    kept = [one for one in objective if one.spec.needs_teacher]
    for one in kept:
        if reads_labels(one.term, one.spec):
            raise UserError(f"method {name}: the term {one.name!r} reads labels, and made inputs have none: take kd")
    if not kept:
        raise UserError(f"method {name}: no term of the objective learns from a teacher: add one, as kd")
    return Objective([one.term for one in kept], steps=objective.steps, balance=objective.asked)


def like_of(model: nn.Module) -> Tensor:
    """A tensor on the model's device, of its precision."""
    return next(p for p in model.parameters() if p.is_floating_point())


def over_ranks(value: Tensor, ranks: Ranks) -> tuple[Tensor, float]:
    """Total and count of a value that every rank computes over all ranks' rows, keeping its own rows' gradient."""
    if ranks.world > 1:
        value = value / ranks.world + (value - value.detach()) * (1 - 1 / ranks.world)
    return value, 1 / ranks.world


__all__ = ["DataFree", "MadeParams", "like_of", "over_ranks", "taught"]
