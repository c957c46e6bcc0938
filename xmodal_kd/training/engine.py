"""The one training loop: backward, clip, step, average, log, evaluate, checkpoint. Newcomers start at `Engine.fit`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from ..adapter.adapter import Batch, Source
from ..objective.parts import LossOut
from ..recipe.recipe import Train
from ..runtime.checkpoint import disk_errors
from ..runtime.distributed import ranks_of
from ..runtime.interrupt import Interrupted, Stop
from ..runtime.progress import Bar, bar
from ..runtime.random_streams import Streams
from ..runtime.run_log import RunLog
from ..runtime.saved_steps import Checkpoints, Progressed
from ..runtime.shards import local
from ..runtime.timing import StepTimer
from . import loader
from .compiled import compiling, uncompiled
from .finite_check import NotFiniteError, check_finite
from .gradients import Turn, stepped
from .held import Held
from .journal import Journal
from .method import Context, Ema, Method, Stage
from .optim import parameters, set_lr
from .resuming import best_of, find_place, take_best
from .sharding import Sharding, fits, told_by_name

#: Steps between the entries of the log, and between the steps whose time is split into parts.
LOG_EVERY, CLOCK_EVERY = 10, 20
AVERAGE = "average"


# docs/decisions/003-one-loop.md
class Engine:
    """Trains the roles of a method.

    Args:
        method: stages and losses.
        source: training data.
        roles: models by name; the method's stages say which of them learn.
        train: optimizer, schedule, batch and so on.
        streams: all randomness.
        accelerator: device, precision, processes, trackers.
        folder: for checkpoints and the log; its name is shown.
        evaluate: metrics of the target role on dev; without it the last weights are the result.
        metric: the one the best is chosen by, and whether less is better.
        target: the role that is evaluated and whose best weights are the result, of each stage and of the whole.
        finished: told of every stage that is done and of the target's weights then, on the main process; after a kill
            it may be told twice.
        evaluated: told of every evaluation, with the role that it was of, on the main process.
        owner: whose checkpoints these are; another's are refused. Empty: anybody's.
        accept: go on with the last weights where the best ones are gone or damaged, and note it.
    """

    def __init__(
        self, method: Method, source: Source, roles: dict[str, nn.Module], train: Train, *, streams: Streams,
        accelerator: Accelerator, folder: Path, evaluate: Callable[[nn.Module], Mapping[str, Any]] | None = None,
        metric: tuple[str, bool] = ("loss", True), target: str = "student", max_seconds: float | None = None,
        quiet: bool = False, finished: Callable[[Stage, nn.Module], None] | None = None, owner: str = "",
        accept: bool = False, evaluated: Callable[[Progressed, nn.Module], None] | None = None,
    ) -> None:  # fmt: skip
        self.method, self.source, self.roles, self.train = method, source, roles, train
        self.streams, self.accelerator, self.folder = streams, accelerator, folder
        self.evaluate, self.metric, self.target, self.finished = evaluate, metric, target, finished
        self.evaluated = evaluated
        self.quiet, self.stop = quiet, Stop(max_seconds)
        self.device, self.ranks = accelerator.device, ranks_of(accelerator)
        self.checkpoints, self.accept = Checkpoints(folder, train.keep, owner), accept
        self.timer, self.log, self.at = StepTimer(self.device), RunLog(folder), Progressed()
        self.journal: Journal | None = None
        self._autocast = nullcontext if train.precision == "fp32" else accelerator.autocast
        self.optimizers: Mapping[str, Optimizer] = {}
        self.averages: dict[str, Ema] = {}
        self.sharding = Sharding(train, {}, frozenset(), self.ranks, self.device)
        self._trainable = {id(p) for model in roles.values() for p in model.parameters() if p.requires_grad}

    # ---------------------------------------------------------------- the loop

    def fit(self, *, resume: bool = False) -> Progressed:
        """Train to the end, or raise `Interrupted` with a checkpoint written. The target role ends with its best.

        Raises `UserError` for a folder that holds checkpoints, unless it is to go on from the last of them.
        """
        for model in self.roles.values():
            model.to(self.device)
        stages = self.method.stages()
        fits(self.train, self.method, self.ranks)
        steps = sum(stage.steps for stage in stages)
        place = find_place(self.checkpoints, stages, self.ranks, resume=resume, accept=self.accept)
        self.at, tensors, state = place.at, place.tensors, place.state
        if self.ranks.main:
            self.journal = Journal(self.log, stages, self.device, self.metric[0], self.at)
        start = monotonic() - self.at.seconds
        with (
            self.stop.listening(),
            closing(self._supply()) as supply,
            compiling(self.train, self.roles.values()),
            self._given_back(),
            bar(self.folder.name, steps, self.at.total, quiet=self.quiet or not self.ranks.main) as shown,
        ):
            first = self._here(next(supply))
            waited = self.at.waited - supply.waited
            for index in range(self.at.stage, len(stages)):
                supply.settle()
                self._begin(stages, index, first[0])
                if tensors:
                    self._held().put_back(tensors, state, self.folder)
                    tensors = {}
                while self.at.step < stages[index].steps and not self.at.stopped_early:
                    begun = perf_counter()
                    micros, first = first or self._here(next(supply)), []
                    self._step(stages[index], micros, shown)
                    if self._evaluates(stages[index]):
                        supply.settle()  # what is measured may read the same files
                    self.at.waited, self.at.stepping = waited + supply.waited, self.at.stepping + perf_counter() - begun
                    self.at.seconds = monotonic() - start
                    self._milestones(stages[index], shown)
                self._end(stages[index])
                if index + 1 < len(stages):
                    first = first or self._here(next(supply))
                    self.at = replace(self.at, stage=index + 1, step=0, best=None, bad=0, stopped_early=False)
        return self.at

    def _begin(self, stages: Sequence[Stage], index: int, batch: Batch) -> None:
        stage = stages[index]
        self.at.stage = index
        self.averages = self._ema(stage)
        followers = {AVERAGE} & self.averages.keys()
        for earlier in stages[: index + 1]:  # a resumed run has not been through the stages before
            for name, (source, _) in self._ema(earlier).items():
                if name not in self.roles:
                    self.roles[name] = copy.deepcopy(self.roles[source])
                    followers |= {name}
        self._freeze(stage)
        self.sharding = Sharding(self.train, self.roles, stage.trains | self.averages.keys(), self.ranks, self.device)
        self.sharding.enter()
        with told_by_name(self.roles):
            self.optimizers = self.method.begin(stage, self.roles, batch)
        for name in followers & self.averages.keys() - self.sharding.whole.keys():
            # an average starts as what `begin` made of its source
            self.roles[name] = copy.deepcopy(self.roles[self.averages[name].source]).eval().requires_grad_(False)
        self.ranks.agree([*self.roles.values(), *self.method.modules().values()])

    @contextmanager
    def _given_back(self) -> Iterator[None]:
        """However the training ends, the roles are models as they were given."""
        try:
            yield
        finally:
            self.sharding.leave(gather=False)

    def _ema(self, stage: Stage) -> dict[str, Ema]:
        mine = {} if self.train.ema is None else {AVERAGE: Ema(self.target, self.train.ema)}
        return {**stage.ema, **mine}

    def _step(self, stage: Stage, micros: Sequence[Batch], shown: Bar) -> None:
        """One step: all micro-batches through each of the method's losses, an optimizer step after each."""
        self._refreeze(stage)
        lr = {name: set_lr(o, self.train.schedule, self.at.step, stage.steps) for name, o in self.optimizers.items()}
        values: dict[str, Any] = {}
        with self.timer.step(self.at.total % CLOCK_EVERY == CLOCK_EVERY - 1):
            running = [self._losses(stage, batch, i) for i, batch in enumerate(micros)]
            watched = self._watched(stage)
            with told_by_name(self.roles) if self.sharding.spread else nullcontext():
                while (name := self._turn(running, micros, values)) is not None:
                    with self.timer.time("optimizer"):
                        values |= self._update(name, watched)
            if self.averages:
                self._average()
        self.at.step += 1
        self.at.total += 1
        self.at.samples += self.ranks.sum_number(sum(len(batch["ids"]) for batch in micros))
        self._log(values | {f"lr/{name}": value for name, value in lr.items()}, stage.steps, shown)

    def _losses(self, stage: Stage, batch: Batch, index: int) -> Iterator[tuple[str, LossOut]]:
        micro = index * self.ranks.world + self.ranks.rank
        ctx = Context(stage, self.at.step, micro, self.streams, self.timer, self.ranks)
        losses = self.method.losses(batch, self.roles, ctx)
        turn = 0
        while True:
            # dropout draws from the global generator: seeded here, a resumed step draws what it drew before
            self.streams.seed_torch("dropout", stage.name, self.at.step, micro, turn)
            with self._autocast():
                item = next(losses, None)
            if item is None:
                return
            yield item
            turn += 1

    def _turn(
        self, running: Sequence[Iterator[tuple[str, LossOut]]], micros: Sequence[Batch], values: dict[str, Any]
    ) -> str | None:
        """Gradients of the method's next loss over all micro-batches: its optimizer's name, None when there is none."""
        turn, name = None, None
        for losses, batch in zip(running, micros, strict=True):
            item = next(losses, None)
            if item is None:
                return None
            name, out = item
            check_finite(out, batch, self.target, self.at.step)
            turn = turn or Turn(parameters(self.optimizers[name]), len(running), self.ranks, self._scaled)
            with self.timer.time("backward"):
                turn.add(out)
        assert turn is not None
        values |= turn.finish()
        return name

    def _scaled(self, loss: Tensor) -> Tensor:
        scaler = self.accelerator.scaler
        return loss if scaler is None else scaler.scale(loss)

    def _watched(self, stage: Stage) -> bool:
        """Whether the step's gradients are measured though nothing is clipped: what is logged or kept must be sound."""
        step = self.at.step + 1
        return self._logged(step, stage.steps) or step % self._checkpoint_every(stage) == 0

    def _update(self, name: str, watched: bool) -> dict[str, float]:
        """Clip and step the bare optimizer (Accelerate's wrapper costs more than 100 microseconds a step)."""
        norm = stepped(self.optimizers[name], self.accelerator.scaler, self.train.clip, watched)
        if norm is None:
            return {}
        if self.accelerator.scaler is None and not math.isfinite(norm):
            raise NotFiniteError(f"{self.target}: the gradient became {norm} at step {self.at.step}: lower the lr")
        return {f"grad_norm/{name}": norm}

    @torch.no_grad()
    def _average(self) -> None:
        for name, (source, decay) in self.averages.items():
            mine, theirs = self.roles[name].state_dict(), self.roles[source].state_dict()
            done = set[tuple[int, torch.Size]]()
            for key, value in mine.items():
                there = (local(value).data_ptr(), value.shape)
                if there in done:  # weights of two names (a decoder's embedding and head) take one step
                    continue
                done.add(there)
                if value.is_floating_point():
                    local(value).lerp_(local(theirs[key]), 1 - decay)
                else:
                    value.copy_(theirs[key])

    # ---------------------------------------------------------------- frozen roles

    def _freeze(self, stage: Stage) -> None:
        """Within the stage a role learns or is frozen: eval mode and no gradient, whatever the caller left on."""
        for name, model in self.roles.items():
            learns = name in stage.trains
            model.train(learns)
            for parameter in model.parameters():
                parameter.requires_grad_(learns and id(parameter) in self._trainable)
        for module in self.method.modules().values():
            module.train()

    def _refreeze(self, stage: Stage) -> None:
        """After an evaluation, or after somebody's ``.train()`` on the whole system."""
        for name, model in self.roles.items():
            if model.training != (name in stage.trains):
                model.train(name in stage.trains)

    # ---------------------------------------------------------------- milestones

    @property
    def shown_role(self) -> str:
        """The role that is evaluated: the target's average where one is kept."""
        return AVERAGE if self.train.ema is not None else self.target

    def _milestones(self, stage: Stage, shown: Bar) -> None:
        if self._evaluates(stage):
            self._evaluate(stage, shown)
        done = self.at.step == stage.steps or self.at.stopped_early
        reason = self.stop.reason
        stopping = self.ranks.any(reason is not None)
        if self.journal is not None:
            self.journal.told(self.at, now=done or stopping)
        if done or stopping or self.at.step % self._checkpoint_every(stage) == 0:
            self.save()
        if stopping:
            self.ranks.barrier()  # a launcher ends all processes when the first one leaves
            raise Interrupted(self.at.step, stage.steps, reason or "stopped on another rank")

    def _evaluates(self, stage: Stage) -> bool:
        """Whether dev is looked at after this step."""
        at = self.at.step
        return self.evaluate is not None and (at == stage.steps or at % stage.evaluated_every(self.train) == 0)

    def _checkpoint_every(self, stage: Stage) -> int:
        return self.train.checkpoint_every or stage.evaluated_every(self.train)

    def _evaluate(self, stage: Stage, shown: Bar) -> None:
        with self.sharding.looked_at(self.shown_role) as model:
            self._measure(stage, model.eval(), shown)

    def _measure(self, stage: Stage, model: nn.Module, shown: Bar) -> None:
        assert self.evaluate is not None
        name, lower = self.metric
        metrics: Any = None
        if self.ranks.main:
            with torch.no_grad(), self.streams.forked("evaluate"), uncompiled():
                metrics = dict(self.evaluate(model))
        metrics = self.ranks.share(metrics)
        value = float(metrics[name])
        if not math.isfinite(value):
            raise NotFiniteError(f"dev {name} is {value} at step {self.at.total}: nothing can be chosen by it")
        self.at.evaluations.append({"step": self.at.total, name: value})
        delta = self.train.early_stop.min_delta if self.train.early_stop else 0.0
        gain = None if self.at.best is None else (self.at.best - value if lower else value - self.at.best)
        shown.note(
            f"dev {name} {value:.4f} at step {self.at.total}" + ("  (best)" if gain is None or gain > delta else "")
        )
        self._track({f"dev/{name}": value})
        if gain is None or gain > delta or stage.last:
            self.at.best, self.at.best_at, self.at.bad = value, self.at.total, 0
            if self.ranks.main:
                found = {"step": self.at.total, name: value}
                name = best_of(stage, self.method.stages())
                self.checkpoints.save_best(model.state_dict(), found, name)
        else:
            self.at.bad += 1
        if self.train.early_stop and self.at.bad >= self.train.early_stop.patience:
            self.at.stopped_early = True
        if self.evaluated is not None and self.ranks.main:
            self.evaluated(self.at, model)

    def _log(self, values: Mapping[str, Any], steps: int, shown: Bar) -> None:
        if not self._logged(self.at.step, steps):
            return
        self.at.split = self.timer.split() or self.at.split
        if self.journal is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        shown.update(self.at.total, {name: value for name, value in numbers.items() if "/" not in name})
        self._track(numbers)
        self.journal.append(self.at.total, numbers)

    def _logged(self, step: int, steps: int) -> bool:
        return (self.at.total + step - self.at.step) % LOG_EVERY == 0 or step in (1, steps)

    def _track(self, numbers: Mapping[str, float]) -> None:
        with disk_errors(Path(self.accelerator.logging_dir or "logs")):
            self.accelerator.log(dict(numbers), step=self.at.total)

    def _supply(self) -> loader.Supply:
        train, ranks = self.train, self.ranks
        stream = loader.steps(
            self.source, start=self.at.total, rank=ranks.rank, world=ranks.world, accumulate=train.accumulate,
            workers=train.workers,
        )  # fmt: skip
        return loader.Supply(stream, ahead=train.ahead and not train.workers)

    def _here(self, micros: Sequence[Batch]) -> Sequence[Batch]:
        if self.device.type == "cpu":  # where loaders make them
            return micros
        return [send_to_device(batch, self.device) for batch in micros]

    # ---------------------------------------------------------------- checkpoints

    def _saved_roles(self) -> set[str]:
        """What changes in any stage, as far as it exists in this one."""
        changing = set().union(*(s.trains | s.saves | self._ema(s).keys() for s in self.method.stages()))
        return changing & self.roles.keys()

    def _held(self) -> Held:
        return Held(self.roles, self._saved_roles(), self.method, self.optimizers, self.accelerator.scaler)

    def save(self) -> None:
        """A checkpoint of everything that a resume needs, on the main process."""
        if self.sharding.spread or self.ranks.main:
            tensors, state = self._held().taken(self.ranks.main)
        if self.ranks.main:
            self.checkpoints.save(self.at.total, tensors, {"at": vars(self.at), **state})

    def _end(self, stage: Stage) -> None:
        """Leave the target role with the stage's best weights on dev; without a dev, with the last (or average)."""
        self.sharding.leave(gather=True)
        target, name = self.roles[self.target], best_of(stage, self.method.stages())
        self.ranks.barrier()  # the main process may still be writing it
        if self.at.best is not None:
            take_best(self.checkpoints, self.at, target, name, self.ranks)
        elif self.train.ema is not None:
            target.load_state_dict(self.roles[AVERAGE].state_dict())
        self.ranks.agree([target])  # where the others get the best, which only the main process can read
        stage.leave(target)
        if self.finished is not None and self.ranks.main:
            self.finished(stage, target)
