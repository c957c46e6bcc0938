"""Exits from the middle of the student, taught by its end."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from ..adapter.adapter import Adapter, Batch, Strict
from ..models.early_exit import Exits, Route, early, leaves
from ..objective.objective import Objective
from ..objective.parts import LossOut
from ..runtime import flops
from ..runtime.errors import UserError
from ..runtime.timing import latency
from ..signals.signals import OUTPUTS, Signals
from ..training.method import Context, Roles, Stage, known_as
from ..training.optim import build_optimizer
from .base import SCHEMES
from .rows import dense_rows, replaced, terms_of, weighed
from .self_distillation import SelfTeaching

#: Under which the student holds its exits while it learns, so that its average and its best on dev have theirs.
HELD = "early_exits"
#: Seconds that measuring the latency of an exit may take, and by how much its answer may differ from what was trained.
LATENCY, TOLERANCE = 2.0, 1e-3


class ExitParams(Strict):
    exits: tuple[str, ...] = Field(min_length=1)
    """Paths of the modules after which the student can be left, in its order."""
    feature: str
    """Path of the module whose output the exits imitate, the input of the student's head; terms may compare it."""
    labels: float = Field(0.7, ge=0)
    """Weight at the exits of the terms without a teacher; the student's own answer learns from these alone, by 1."""


@SCHEMES.register("byot")
class OwnTeacher(SelfTeaching):
    """The student's last layer teaches exits after its earlier ones, from any of which it can then answer.

    Zhang et al., "Be Your Own Teacher", ICCV 2019: at exit i (1 - a) CE_i + a T^2 KL(p_deepest || p_i) + b ||F_i -
    F_deepest||^2, at the end CE. Here ``labels`` is 1 - a (0.7), kd (weight a = 0.3, T 3) and hint on ``feature``
    (weight b = 0.03) are terms of the recipe. An exit is a bottleneck and a head that see each row alone
    (`early_exit.Exit`).

    The exits are saved beside the student, each is exported as a model that does not compute what lies behind it, and
    the report's curve has accuracy and latency of each. The control has no exits.
    """

    Params: ClassVar[type[Strict]] = ExitParams
    paper, year = "Be Your Own Teacher", 2019

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        alone = terms_of(self.objective, with_teacher=False)
        if not alone:
            raise UserError("scheme byot: no term without a teacher trains the last layer: add one")
        self.exits: Exits | None = None
        self.routes: list[Route | str] = []
        whole = Objective(alone, steps=self.train.steps, balance=self.objective.asked)
        self.objectives = {self.role: whole} | {one: copy.deepcopy(self.objective) for one in self.names}

    @property
    def names(self) -> list[str]:
        """Of the exits, from the first."""
        return [f"exit-{number}" for number in range(1, len(self.params.exits) + 1)]

    def check(self, roles: Mapping[str, nn.Module]) -> None:
        super().check(roles)
        allowed = {*OUTPUTS, self.params.feature}
        self.find(roles[self.role], [*self.params.exits, self.params.feature])
        for term in terms_of(self.objective, with_teacher=True):
            if other := [on for side in ("student", "teacher") for on in term.signals(side) if on not in allowed]:
                raise UserError(
                    f"term {term.name or term.loss!r}: an exit has answers and {self.params.feature!r}, no {other[0]!r}"
                )

    def begin(self, stage: Stage, roles: Roles, batch: Batch) -> Mapping[str, Optimizer]:
        student = roles[self.role]
        with torch.no_grad(), self.streams.forked("dry run"):
            outputs = self.forward_role(self.role, roles, batch)
            if self.exits is None:
                self.exits = self._made(outputs)
        student.add_module(HELD, self.exits)
        with torch.set_grad_enabled(self.objective.reads_gradients), self.streams.forked("dry run"):
            outputs = self.forward_role(self.role, roles, batch)
            for name, forward_features in {self.role: outputs, **self._said(outputs)}.items():
                if not self.objectives[name].built:
                    self.objectives[name].build(forward_features, outputs, self.streams)
        owners: dict[str, nn.Module] = {known_as(self.role): student, "objective": self.objectives[self.role]}
        owners |= {f"objective-{name}": self.objectives[name] for name in self.names}
        return {self.role: build_optimizer(self.train.optimizer, owners)}

    def _made(self, outputs: Signals) -> Exits:
        output, deepest = outputs[self.adapter.output], outputs[self.params.feature]
        for path in self.params.exits:
            if not outputs.layout(path).same_rows(output.layout):
                raise UserError(
                    f"scheme byot: exit {path!r} has {len(outputs.layout(path))} rows, the answer "
                    f"{len(output.layout)}: choose modules whose rows are the answer's"
                )
        shapes = [(outputs.rows(p).shape[1], deepest.rows.shape[1], output.rows.shape[1]) for p in self.params.exits]
        with self.streams.forked("scheme", "exits"):
            return Exits(self.params.exits, shapes).to(dense_rows(output))

    def forward_role(self, role: str, roles: Roles, batch: Batch, of: str | None = None) -> Signals:
        wanted = {*self.objective.features("student"), *self.params.exits, self.params.feature}
        return self.forward_features(role, roles, batch, sorted(wanted))

    def _said(self, outputs: Signals) -> dict[str, Signals]:
        """What each exit says: its answer and its imitation of the deepest features, in their places."""
        assert self.exits is not None
        found = {}
        for number, (name, path) in enumerate(zip(self.names, self.params.exits, strict=True)):
            for other in (self.adapter.output, self.params.feature):
                if len(outputs.rows(other)) != len(outputs.rows(path)):
                    raise UserError(
                        f"scheme byot: {path!r} has {len(outputs.rows(path))} rows and {other!r} "
                        f"{len(outputs.rows(other))}: take modules of the answer's resolution"
                    )
            features, answer = self.exits[number].both(dense_rows(outputs[path]))
            found[name] = replaced(outputs, {self.adapter.output: answer, self.params.feature: features})
        return found

    def loss(self, role: str, roles: Roles, batch: Batch, ctx: Context) -> LossOut:
        with ctx.timer.time("student"):
            outputs = self.forward_role(role, roles, batch)
            forward_features = self._said(outputs)
        with ctx.timer.time("loss"):
            out: LossOut = self.objectives[role](outputs, step=ctx.step, ranks=ctx.ranks)
            for name, exit_said in forward_features.items():
                objective = self.objectives[name]
                one = objective(exit_said, outputs, step=ctx.step, ranks=ctx.ranks)
                out += weighed(one, objective, alone=self.params.labels).named(name)
        return out

    # ---------------------------------------------------------------- what becomes of the exits

    def facts(self, roles: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Any]:
        """Takes the exits off the student, which is then the model that the recipe names; finds the way to each."""
        assert self.exits is not None
        student = roles[self.role]
        if hasattr(student, HELD):
            delattr(student, HELD)
        self.exits.eval()
        self.routes = [self._route(student, number, batch) for number in range(len(self.exits))]
        closed = {name: route for name, route in zip(self.names, self.routes, strict=True) if isinstance(route, str)}
        return {"closed": closed} if closed else {}

    def _route(self, student: nn.Module, number: int, batch: Batch) -> Route | str:
        """The way to an exit, or why the model cannot be left there."""
        assert self.exits is not None
        path, output = self.params.exits[number], self.adapter.output

        def run(model: nn.Module, features: Sequence[str] = ()) -> Signals:
            return self.adapter.signals(self.role, model, batch, features)

        try:
            route = leaves(student, path, run, self.exits[number].shape[0])
            found = dense_rows(run(early(student, self.exits[number], route))[output])
        except UserError as error:
            return str(error)
        except Exception as error:  # whatever a model does that is given other shapes than it expects
            return f"exit {path!r}: what lies behind it cannot be passed by ({type(error).__name__})"
        expected = self.exits[number].both(dense_rows(run(student, [path])[path]))[1]
        mask = run(student)[output].layout.mask
        difference = float((found - expected)[mask].abs().max()) if found.shape == expected.shape else float("inf")
        return route if difference < TOLERANCE else f"exit {path!r}: the model computes more behind it than modules"

    def export(self, model: nn.Module, adapter: Adapter, folder: Path) -> Mapping[str, Any]:
        """The exits' weights, each exit as an exported model in a folder of its own, and the curve."""
        assert self.exits is not None
        self.exits.save(folder, [route if isinstance(route, Route) else None for route in self.routes])
        found: dict[str, Any] = {}
        curve = []
        for number, route in enumerate(self.routes):
            if isinstance(route, str):
                continue
            small, name = early(model, self.exits[number], route).cpu().eval(), self.names[number]
            (folder / name).mkdir(exist_ok=True)
            for card in folder.glob("card.json"):  # what the files of an export are read by
                shutil.copy(card, folder / name)
            made = adapter.export(small, folder / name)
            found |= {f"{name}/{key}": value for key, value in made.items() if "bytes" in value}
            curve.append(measured(adapter, self.role, small, number + 1))
        curve.append(measured(adapter, self.role, copy.deepcopy(model).cpu().eval(), len(self.routes) + 1))
        return {**found, "curve": curve}


def measured(adapter: Adapter, role: str, model: nn.Module, number: int) -> dict[str, Any]:
    """A point of the curve: latency and cost on the CPU of one answer to the first test sample, metrics on test.

    Args:
        number: of the exit; the student's own answer is the last one.
    """
    source = adapter.data("test")
    batch = source.collate([source.sample(0, 0)])
    with torch.no_grad():
        time = latency(lambda: adapter.answer(role, model, batch), limit=LATENCY)
        metrics = adapter.evaluate(role, model, "test").metrics
    return {
        "role": role, "median_ms": time["median_ms"], "exit": number,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": flops.forward(model, lambda: adapter.answer(role, model, batch)), "metrics": metrics,
    }  # fmt: skip
