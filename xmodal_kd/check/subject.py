"""What is checked, and how a check says what it found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import nn

from ..adapter.adapter import Adapter, Batch, is_teacher
from ..objective.objective import Objective
from ..objective.parts import Part
from ..recipe.recipe import Loaded, Recipe, Train
from ..run.roles import build, labelled_by, make_adapter, make_method, models_of, role_plans, training_source
from ..runtime.device import make_accelerator
from ..runtime.distributed import Ranks
from ..runtime.errors import page_of
from ..runtime.random_streams import Streams
from ..runtime.timing import StepTimer
from ..signals.signals import Signals
from ..training.loader import first_batch
from ..training.method import Context, Distil, Method, Stage
from ..training.role_plan import RolePlan
from .trial import Trial

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    status: Status
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def told(error: BaseException) -> str:
    """The advice of a finding that is what an error says: where more is told."""
    page = page_of(error)
    return f"see {page}" if page is not None and ".md" not in str(error) else ""


@dataclass
class Subject:
    """The roles of the student's training, and real batches."""

    loaded: Loaded
    adapter: Adapter
    roles: dict[str, nn.Module]
    streams: Streams
    wanted: str
    """Device as the command line names it."""

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @cached_property
    def role_plans(self) -> list[RolePlan]:
        """The trainings of the run."""
        return role_plans(self.loaded, self.adapter)

    @property
    def role_plan(self) -> RolePlan:
        """The student's training."""
        return next(role_plan for role_plan in self.role_plans if role_plan.role == "student")

    @property
    def student(self) -> nn.Module:
        return self.roles["student"]

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    @cached_property
    def objective(self) -> Objective:
        """As the recipe says it, not built."""
        return Objective(self.recipe.objective)

    @cached_property
    def batch(self) -> Batch:
        """The whole batch of the first step."""
        return self.here(first_batch(training_source(self.adapter, self.recipe, "student")))

    @cached_property
    def said(self) -> dict[str, Signals]:
        """What the roles say about the batch."""
        method = self.method()
        batch = method.seen(self.batch) if isinstance(method, Distil) else self.batch
        with torch.no_grad(), self.streams.forked("check"):
            found = {
                role: self.adapter.signals(role, model, batch, self.objective.features(role))
                for role, model in self.roles.items()
            }
        for said in found.values():
            said.labelled = batch.get("labelled")
        return found

    def here(self, batch: Batch) -> Batch:
        """On the device of the models."""
        moved: Batch = send_to_device(batch, self.device)
        return moved

    def method(self, adapter: Adapter | None = None) -> Method:
        """The recipe's method anew, so that no check finds what another left."""
        return make_method(self.loaded, adapter or self.adapter, self.role_plan, self.streams)

    @contextmanager
    def stages(self, adapter: Adapter | None = None) -> Iterator[Iterator[Entered]]:
        """Every stage of the student's training in turn, entered as the engine does it, of copies of the models."""
        method = self.method(adapter)
        roles = models_of(self.adapter, self.loaded, self.role_plan, self.streams, self.roles)
        roles = {name: model.to(self.device) for name, model in roles.items()} | {
            "student": copy.deepcopy(self.student)
        }
        roles |= {name: copy.deepcopy(roles[name]) for name in self.role_plan.teachers if changes(method, name)}
        with self.trial(method, roles, self.recipe.train, "fp32") as trial:
            yield (Entered(trial, trial.enter(i, self.batch), self.batch) for i in range(len(method.stages())))
        self.put_back()

    @contextmanager
    def trial(self, method: Method, roles: dict[str, nn.Module], train: Train, precision: str) -> Iterator[Trial]:
        """An engine whose folder goes with the block."""
        adapter, role = self.adapter, next(iter(roles))
        if train.batch_size != self.recipe.train.batch_size:
            adapter = make_adapter(self.loaded, self.streams, train.batch_size)
        self.adapter.begin(role, labelled_by(adapter.data("train"), self.recipe, role))
        with TemporaryDirectory() as folder:
            yield Trial(
                method, training_source(adapter, self.recipe, role), roles, train, streams=self.streams,
                folder=Path(folder), quiet=True, accelerator=make_accelerator(self.wanted, precision), target=role,
            )  # fmt: skip

    def put_back(self) -> None:
        """Modes and gradients as `prepare` left them."""
        for role, model in self.roles.items():
            model.train(role == "student").zero_grad(set_to_none=True)


class Entered(NamedTuple):
    """A stage that `begin` has prepared."""

    trial: Trial
    stage: Stage
    batch: Batch

    def parts(self, name: str) -> dict[str, Part]:
        """Every part of the first step's losses that is learned from, its randomness addressed by `name`."""
        trial, found = self.trial, dict[str, Part]()
        ctx = Context(self.stage, 0, 0, trial.streams, StepTimer(trial.device), Ranks())
        with trial.streams.forked("check", name):
            for _, out in trial.method.losses(self.batch, trial.roles, ctx):
                found |= {key: part for key, part in out.parts.items() if part.weight}
        return found

    def learning(self) -> dict[str, nn.Module]:
        return self.trial.learning(self.stage)


def changes(method: Method, role: str) -> bool:
    """Whether a method's stages change `role`, which then must be a copy, as in a run."""
    return any(role in stage.saves | stage.trains for stage in method.stages())


def prepare(loaded: Loaded, device: str) -> Subject:
    """Build the roles as a run would; a teacher that the recipe would train is checked with its initial weights."""
    recipe, streams = loaded.recipe, Streams(loaded.recipe.seed)
    torch.set_num_threads(recipe.threads)
    accelerator = make_accelerator(device, recipe.train.precision)
    adapter = make_adapter(loaded, streams)
    subject = Subject(loaded, adapter, {}, streams, device)
    roles, student = subject.roles, subject.role_plan
    for role_plan in subject.role_plans:
        if role_plan.role in student.teachers or is_teacher(role_plan.role):
            path = role_plan.path
            roles[role_plan.role] = (
                adapter.load(role_plan.role, path) if path else build(adapter, loaded, role_plan, streams)
            )
            roles[role_plan.role].requires_grad_(False)
    roles["student"] = models_of(adapter, loaded, student, streams, roles)["student"]
    adapter.begin("student", labelled_by(adapter.data("train"), recipe, "student"))
    for model in roles.values():
        model.to(accelerator.device)
    subject.method().check(roles)
    subject.put_back()
    return subject
