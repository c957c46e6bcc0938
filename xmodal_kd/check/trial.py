"""The engine over a few steps, watched: what a training does to its roles, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from typing import Any, cast

from torch import nn

from ..adapter.adapter import Batch
from ..runtime.checkpoint import digest
from ..runtime.progress import Bar
from ..training.engine import Engine
from ..training.method import Method, Stage
from ..training.optim import named_parameters, parameters

#: Optimizer steps of each stage; two show what moves, the others are timed.
STEPS = 4


class Brief:
    """A method with stages of a few steps; all else is its own."""

    def __init__(self, method: Method, steps: int) -> None:
        self._method, self._steps = method, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def stages(self) -> Sequence[Stage]:
        return [replace(stage, steps=min(stage.steps, self._steps)) for stage in self._method.stages()]


def brief(method: Method, steps: int = STEPS) -> Method:
    return cast(Method, Brief(method, steps))


@dataclass
class Seen:
    """What was seen of one stage.

    Attributes:
        frozen: digests at its start of the roles that must not change.
        trained: parameters by name that should learn, and in how many optimizers each is.
        reached: names of those that got a gradient.
        faults: what happened to frozen roles, and to modes.
        seconds: of each step but the first, data and all.
    """

    stage: Stage
    frozen: dict[str, str]
    trained: dict[str, int]
    reached: set[str] = field(default_factory=set)
    faults: dict[str, None] = field(default_factory=dict)
    asleep: dict[str, None] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        return median(self.seconds)


class Trial(Engine):
    """Keeps no checkpoint."""

    seen: list[Seen]
    _end_of_step: float

    def enter(self, index: int, batch: Batch) -> Stage:
        """Prepare a stage as `fit` would."""
        for model in self.roles.values():
            model.to(self.device)
        stages = self.method.stages()
        super()._begin(stages, index, batch)
        return stages[index]

    def learning(self, stage: Stage) -> dict[str, nn.Module]:
        """What the stage trains: its roles, and the method's modules."""
        return {**{role: self.roles[role] for role in sorted(stage.trains)}, **self.method.modules()}

    def save(self) -> None: ...

    def _begin(self, stages: Sequence[Stage], index: int, batch: Batch) -> None:
        super()._begin(stages, index, batch)
        stage = stages[index]
        owned = [id(p) for optimizer in self.optimizers.values() for p in parameters(optimizer)]
        still = self.roles.keys() - stage.trains - self.averages.keys()
        before = {role: digest(self.roles[role].state_dict().items()) for role in sorted(still)}
        counts = {name: owned.count(id(p)) for name, p in named_parameters(self.learning(stage))}
        self.seen = [*getattr(self, "seen", []), Seen(stage, before, counts)]
        self._end_of_step = perf_counter()

    def _step(self, stage: Stage, micros: Sequence[Batch], shown: Bar) -> None:
        super()._step(stage, micros, shown)
        seen, now = self.seen[-1], perf_counter()
        if self.at.step > 1 or stage.steps == 1:  # the first allocates, and starts the workers
            seen.seconds.append(now - self._end_of_step)
        seen.faults |= dict.fromkeys(self._disturbed(seen))
        seen.asleep |= {role: None for role in sorted(stage.trains) if not self.roles[role].training}
        for name, parameter in named_parameters(self.learning(stage)):
            if parameter.grad is not None and bool((parameter.grad != 0).any()):
                seen.reached.add(name)
        self._end_of_step = perf_counter()

    def _end(self, stage: Stage) -> None:
        seen = self.seen[-1]
        for role, before in seen.frozen.items():
            if digest(self.roles[role].state_dict().items()) != before:
                seen.faults[f"{role}: weights or buffers moved"] = None
        super()._end(stage)

    def _disturbed(self, seen: Seen) -> Iterator[str]:
        owned = {id(p) for optimizer in self.optimizers.values() for p in parameters(optimizer)}
        for role in seen.frozen:
            model = self.roles[role]
            if any(module.training for module in model.modules()):
                yield f"{role}: a module is in training mode"
            if any(p.grad is not None for p in model.parameters()):
                yield f"{role}: received a gradient"
            if any(id(p) in owned for p in model.parameters()):
                yield f"{role}: an optimizer holds its parameters"
