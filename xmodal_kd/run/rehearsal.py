"""The dress rehearsal of a run: all that it will do, done once on copies before anything trains.

What a run can die of after hours is mostly there to be seen at its start: a file, a label, a loss that is not finite, a
folder that cannot be written. Nothing of a rehearsal reaches the run: models are copies or built anew, randomness is
addressed and put back, adapters are those of `Adapter.rehearsing`.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn

from ..adapter.adapter import Adapter, Batch, Evaluation, UntrainedControl, is_teacher
from ..objective.objective import Objective
from ..recipe.recipe import Loaded, Term
from ..report import model_cards as cards
from ..report.content import begun
from ..runtime.device import make_accelerator
from ..runtime.distributed import Ranks, ranks_of
from ..runtime.errors import RunError, UserError
from ..runtime.progress import Bar
from ..runtime.random_streams import Streams
from ..teacher_cache.session import cache_folder, identity
from ..training import loader
from ..training.controls import control_spec
from ..training.engine import Engine
from ..training.finite_check import NotFiniteError
from ..training.method import Distil, Method, Stage
from ..training.optim import parameters
from ..training.role_plan import RolePlan
from . import listed_files
from .places import check_places
from .resolved_recipe import resolved
from .roles import Adapters, compressions, labelled_by, make_method, models_of, training_source

#: Samples of dev and test that every role is measured on.
ITEMS = 4
#: No weight of a sound model is as large after its first step.
LARGEST = 1e15
#: Seconds of training from which on an export that takes its time is rehearsed, too.
LONG = 600.0


class Rehearsing(Engine):
    """The engine on the first batch of a training: no checkpoint, no log, no other rank."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.real, self.ranks = self.ranks, Ranks()
        self.first: Batch = {}
        #: That the whole training would take, were all steps as slow as the first.
        self.seconds = 0.0

    def save(self) -> None: ...

    def _log(self, values: Mapping[str, Any], steps: int, shown: Bar) -> None: ...

    def _watched(self, stage: Stage) -> bool:
        return True

    def rehearse(self) -> Iterator[Stage]:
        """One step of each stage; yields every stage that is over, the target as it leaves it."""
        for model in self.roles.values():
            model.to(self.device)
        share = {"rank": self.real.rank, "world": self.real.world, "accumulate": self.train.accumulate}
        micros = [send_to_device(batch, self.device) for batch in next(loader.steps(self.source, **share))]
        self.first = micros[0]
        stages, quiet = self.method.stages(), Bar("rehearsal", 1, 0, None, None)
        for index, stage in enumerate(stages):
            self.at.step = 0
            self._begin(stages, index, micros[0])
            start = perf_counter()
            self._step(stage, micros, quiet)
            self.seconds += stage.steps * (perf_counter() - start)
            if self.accelerator.scaler is None:  # of fp16 the first gradients may overflow, and are passed over
                self._leap(stage)
            self._end(stage)
            yield stage

    @torch.no_grad()
    def _leap(self, stage: Stage) -> None:
        """Raises `UserError` where a step at the highest learning rate leaves no weights; they are put back."""
        highest = max(self.train.schedule(step, stage.steps) for step in _places(stage.steps))
        for optimizer in self.optimizers.values():
            learning = parameters(optimizer)
            before = [parameter.clone() for parameter in learning]
            for group in optimizer.param_groups:
                group["lr"] = highest * group["initial_lr"] if "initial_lr" in group else group["lr"]
            optimizer.step()
            sound = all(bool((p.abs() < LARGEST).all()) for p in learning)
            for parameter, value in zip(learning, before, strict=True):
                parameter.copy_(value)
            if not sound:
                raise UserError(
                    f"train.optimizer: one step at a learning rate of {highest * self.train.optimizer.lr:g} takes "
                    f"weights of the {self.target} beyond {LARGEST:g}: lower lr (or lr_scale)"
                )


def _places(steps: int) -> Sequence[int]:
    """Steps at which a schedule is looked at."""
    return sorted({*range(0, steps, max(1, steps // 200)), steps - 1})


# docs/decisions/018-a-run-is-rehearsed.md
@dataclass
class Rehearsal:
    """What a run will do, in parts that are done in order.

    Args:
        adapters: what trains each role.
        models: roles that are there: loaded by the recipe's paths, or finished.
        done: roles that are finished; they teach, and are not rehearsed.
        exports: whether the run will make the student deployable.
    """

    loaded: Loaded
    adapter: Adapter
    adapters: Adapters
    role_plans: Sequence[RolePlan]
    streams: Streams
    device: str
    out: Path
    models: Mapping[str, nn.Module] = field(default_factory=dict)
    done: Collection[str] = ()
    exports: bool = True

    def __post_init__(self) -> None:
        self.standing: dict[str, nn.Module] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self._few: dict[int, Adapter] = {}
        self.folder = Path()
        #: What trained the student, where that is made of `Distil`.
        self.method: Distil | None = None
        #: That all trainings will take, by their first steps.
        self.seconds = 0.0

    def go(self) -> None:
        """Raises `UserError` for the first thing that the run would die of."""
        with self.aside():
            for name, part in self.parts():
                with guarded(name):
                    part()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A folder that goes with the block, and randomness that is put back after it."""
        states = random.getstate(), np.random.get_state()
        with TemporaryDirectory(prefix="xmodal-kd-rehearsal-") as folder, self.streams.forked("rehearsal"):
            self.folder = Path(folder)
            try:
                yield
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])
                self.standing.clear()
                self._few.clear()

    def parts(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """What is done, by name: cheap things first, then each role in the order of the run."""
        yield "places", lambda: check_places(self.loaded, self.out, [plan.role for plan in self.role_plans])
        yield "teacher cards", self.teacher_cards
        yield "files", lambda: listed_files.of_recipe(self.loaded).refuse()
        yield "splits", self.splits
        for plan in self.role_plans:
            yield plan.role, lambda plan=plan: self.role(plan)  # type: ignore[misc]
        for plan in self.role_plans:
            if plan.role not in self.done:
                yield f"{plan.role}, measured", lambda plan=plan: self.measured(plan)  # type: ignore[misc]
        trained = {plan.role for plan in self.role_plans}
        if "student" in trained and isinstance(control_spec(self.loaded.recipe), UntrainedControl):
            yield "control", self.untrained_control
        yield "export", self.export
        yield "cards", self.written_cards

    # ---------------------------------------------------------------- before any model

    def teacher_cards(self) -> None:
        """The licences of the saved teachers can be read."""
        for plan in self.role_plans:
            if plan.path is not None:
                cards.licences(plan.path)

    def splits(self) -> None:
        """There are samples to train with and to measure on."""
        adapter = self._data(self.adapter)
        for split in ("train", "dev", "test"):
            if not len(adapter.data(split)):
                raise UserError(f"data: the {split} split is empty: give it samples")

    def _data(self, adapter: Adapter) -> Adapter:
        """An adapter whose dev and test are short; that they can be made says that the splits are sound."""
        if id(adapter) not in self._few:
            self._few[id(adapter)] = adapter.rehearsing(ITEMS)
        return self._few[id(adapter)]

    # ---------------------------------------------------------------- one role

    def role(self, plan: RolePlan) -> None:
        """Train a role for a step and save it; one that is there is copied."""
        role, there = plan.role, self.models.get(plan.role)
        if there is not None:
            self.standing[role] = copy.deepcopy(there).eval()
            return
        self.standing[role] = self._trained(plan)
        self._saved(plan)

    def _trained(self, plan: RolePlan) -> nn.Module:
        role, train = plan.role, plan.steps
        mine = self._data(self.adapters.of(plan))
        other = train.batch_size != self.loaded.recipe.train.batch_size
        adapter = self._data(self.adapters.of(plan, train.batch_size)) if other else mine
        source = training_source(adapter, self.loaded.recipe, role)
        known = labelled_by(adapter.data("train"), self.loaded.recipe, role)
        for one in (mine, *([adapter] if other else [])):
            one.begin(role, known)
        accelerator = make_accelerator(self.device, train.precision)
        self._shares(plan, source, ranks_of(accelerator).world)
        models = models_of(mine, self.loaded, plan, self.streams, self.standing)
        models = {name: model.to(accelerator.device) for name, model in models.items()}
        method = make_method(self.loaded, mine, plan, self.streams)
        models |= {teacher: copy.deepcopy(models[teacher]) for teacher in plan.teachers if changes(method, teacher)}
        engine = Rehearsing(
            method, source, models, train, streams=self.streams, accelerator=accelerator,
            folder=self.folder / "checkpoints" / role, metric=self.adapter.metric, target=role, quiet=True,
        )  # fmt: skip
        several = len(method.stages()) > 1
        try:
            for stage in engine.rehearse():
                if several:
                    self._data(self.adapter).save(role, models[role], self.folder / role / stage.name)
        except NotFiniteError as error:
            raise UserError(_not_finite(role, error, plan.terms)) from error
        self._cached(role, method)
        compressions(self.loaded, role).finish(models[role])
        self.seconds += engine.seconds
        if isinstance(method, Distil):
            for model in models.values():
                model.eval()
            with torch.no_grad(), self.streams.forked("facts"):
                method.facts(models, engine.first)
            self.method = method if role == "student" else self.method
        return models[role].eval()

    def _shares(self, plan: RolePlan, source: Any, world: int) -> None:
        """Raises `UserError` where no batch can be cut as the recipe says."""
        train, longest = plan.steps, max((len(batch) for batch in source.plan(0)), default=0)
        if longest >= train.accumulate * world:
            return
        key = "train" if not is_teacher(plan.role) else f"{plan.role.replace('-', 's.')}.train"
        ranks = f" on {world} ranks" if world > 1 else ""
        raise UserError(
            f"{key}.accumulate: {train.accumulate} micro-batches{ranks} need as many samples in a batch, and the "
            f"largest has {longest}: lower accumulate, or raise {key}.batch_size"
        )

    def _cached(self, role: str, method: Method) -> None:
        objective = method.modules().get("objective")
        if self.loaded.recipe.cache is None or role != "student" or not isinstance(objective, Objective):
            return
        if (teacher := self.models.get("teacher")) is not None and objective.needs_teacher:
            recipe, data = self.loaded.recipe, resolved(self.loaded)["data"]
            identity(recipe, objective, teacher, data).adopt(cache_folder(recipe, self.out))

    # ---------------------------------------------------------------- what is told of it

    def measured(self, plan: RolePlan) -> None:
        """A role on a few samples of dev and test, and what a user computes with it."""
        role, model, adapter = plan.role, self.standing[plan.role], self._data(self.adapters.of(plan))
        found = {split: self._evaluation(role, model, adapter, plan, split) for split in ("dev", "test")}
        source = adapter.data("test")
        with torch.no_grad():
            device = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0)).device
            adapter.answer(role, model, send_to_device(source.collate([source.sample(0, 0)]), device))
        self.entries[role] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "flops_per_sample": 1.0,
            "latency": {"median_ms": 1.0},
            "metrics": found["test"].metrics,
            "dev_metrics": found["dev"].metrics,
            "examples": list(found["test"].examples),
            "scores": [asdict(score) for score in found["test"].scores],
        }

    def _evaluation(
        self, role: str, model: nn.Module, adapter: Adapter, plan: RolePlan, split: str
    ) -> Evaluation:  # fmt: skip
        """Of a few samples; of all, where they do not say enough."""
        name = self.adapter.metric[0]
        try:
            found = self._tried(role, model, adapter, split)
            if found.metrics[name] is None or math.isfinite(float(found.metrics[name])):
                return found
        except Exception as error:  # of what is too little to be measured; if it is something else, it comes again
            if isinstance(error, torch.OutOfMemoryError):
                raise
        every = self.adapters.of(plan)
        count = len(every.data(split))
        found = self._tried(role, model, every.rehearsing(count), split)
        if not math.isfinite(value := float(found.metrics[name])):
            raise UserError(
                f"data: {name} of the {role} on {split} is {value} over all {count} samples: nothing can be measured "
                f"there: has the {split} split labels?"
            )
        return found

    def _tried(self, role: str, model: nn.Module, adapter: Adapter, split: str) -> Evaluation:
        with torch.no_grad(), self.streams.forked("evaluate"):
            return adapter.evaluate(role, model, split)

    def _saved(self, plan: RolePlan) -> None:
        role, folder = plan.role, self.folder / plan.role
        self._data(self.adapter).save(role, self.standing[role], folder)
        compressions(self.loaded, role).save(self.standing[role], folder)

    def untrained_control(self) -> None:
        """The control of methods that train none."""
        if "control" in self.done:
            return
        adapter = self._data(self.adapter)
        with torch.no_grad(), self.streams.forked("evaluate"):
            model = adapter.untrained_control(self.standing["teacher"], self.standing["student"])
        adapter.save("control", model, self.folder / "control")

    def export(self) -> None:
        """The student is made deployable, where the run will do it and that is quick or the run is long."""
        student = self.standing.get("student")
        rehearsed = self.exports and (self.adapter.quick_export or self.seconds > LONG)
        if student is None or "student" in self.done or not rehearsed:
            return
        adapter, folder = self._data(self.adapter), self.folder / "student"
        with self.streams.forked("export"):
            compressions(self.loaded).export(adapter, copy.deepcopy(student), folder)
            if self.method is not None:
                self.method.export(student, adapter, folder)

    def written_cards(self) -> None:
        """Every card, with the metrics of the rehearsal."""
        content = begun(self.loaded, {"roles": self.entries}, self.adapter.metric)
        data, adapter = resolved(self.loaded)["data"], self._data(self.adapter)
        teachers = [plan.path or self.folder / plan.role for plan in self.role_plans if is_teacher(plan.role)]
        for plan in self.role_plans:
            folder = self.folder / plan.role
            if folder.is_dir() and plan.role in self.entries and (is_teacher(plan.role) or plan.role == "student"):
                about = adapter.about(plan.role, self.standing[plan.role], folder)
                cards.write(folder, plan.role, about, content, data, teachers)


def changes(method: Method, role: str) -> bool:
    """Whether a method's stages change `role`, which then must be a copy, as in a run."""
    return any(role in stage.saves | stage.trains for stage in method.stages())


def _not_finite(role: str, error: NotFiniteError, terms: Sequence[Term]) -> str:
    """What of the recipe a NaN or Inf comes from."""
    where = "on the first batch, before anything was trained"
    name = (error.term or "").partition("/")[0]
    found = next((i for i, term in enumerate(terms) if (term.name or term.loss) == name), None)
    if found is None:
        return f"objective: the gradient of the {role} is not finite {where}: look at params and weights of its terms"
    term = terms[found]
    params = ", ".join(f"{key} {value}" for key, value in term.params.items()) or "its defaults"
    return f"objective: term {name!r} is NaN or Inf {where} (params: {params}; weight {term.weight:g}): change them"


@contextmanager
def guarded(name: str) -> Iterator[None]:
    """Whatever ends a part of the rehearsal is one line."""
    try:
        yield
    except UserError:
        raise
    except RunError as error:
        raise UserError(f"{error} (seen in the rehearsal of {name}, before anything was trained)") from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(f"{name}: out of memory on its first batch: raise accumulate or lower batch_size") from error
    except Exception as error:  # of a model, a loss or an adapter of the user's own, or of a key nobody checked
        text = " ".join(f"{type(error).__name__}: {error}".split())
        where = "in the rehearsal, before anything was trained; --debug shows where"
        raise UserError(f"{name}: {text} ({where})") from error


__all__ = ["ITEMS", "Rehearsal", "Rehearsing", "changes", "guarded"]
