"""A whole run: teacher, control, student; evaluate; report; export. Every finished part survives a kill."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from .. import report
from ..adapter import panels
from ..adapter.adapter import Adapter, Source, UntrainedControl, is_teacher
from ..objective.objective import Objective, spec_of
from ..recipe.recipe import Loaded
from ..report import model_cards as cards
from ..report.content import begun
from ..report.content import content as report_content
from ..runtime import flops
from ..runtime.checkpoint import disk_errors
from ..runtime.common_folder import everywhere
from ..runtime.device import check_trackers, make_accelerator
from ..runtime.distributed import ranks_of
from ..runtime.errors import UserError
from ..runtime.random_streams import Streams
from ..runtime.run_lock import RunLock
from ..runtime.timing import latency
from ..teacher_cache.session import CacheUser, Session, check
from ..training.controls import control_spec
from ..training.engine import Engine
from ..training.label_budget import LabelBudget, facts
from ..training.loader import first_batch
from ..training.method import METHODS, Distil, Method, Stage, probe
from ..training.optim import build_optimizer, scaling
from ..training.role_plan import RolePlan
from . import provenance
from .fingerprints import role_prints
from .on_dev import OnDev
from .options import Options
from .rehearsal import Rehearsal
from .resolved_recipe import resolved
from .roles import (
    Adapters,
    build,
    compressions,
    find_all,
    labelled_by,
    make_adapter,
    make_method,
    models_of,
    other_task,
    role_plans,
    saved,
    scheme_of,
    shown,
    training_source,
    twin_of,
)
from .run_folder import STATE, Opening, open_run, refuse_folder, write_state
from .watched import Watched

#: Seconds that measuring the latency of a role may take.
LATENCY = 2.0


class Run:
    """One recipe in one folder."""

    def __init__(self, loaded: Loaded, options: Options) -> None:
        self.loaded, self.recipe, self.options = loaded, loaded.recipe, options
        self.out = options.out
        self.streams = Streams(self.recipe.seed)
        self.began = monotonic()
        self.accelerator = make_accelerator(options.device, self.recipe.train.precision)
        torch.set_num_threads(self.recipe.threads)
        self.ranks = ranks_of(self.accelerator)
        self.main = self.ranks.main
        self.adapter = make_adapter(loaded, self.streams)
        self.adapters = Adapters(loaded, self.adapter, self.streams)
        self.models: dict[str, nn.Module] = {}
        #: What trained the role before this one, where that is made of `Distil`.
        self.method: Distil | None = None
        self.lock: RunLock | None = None
        self.dev = OnDev()
        self.watched = Watched(self.out, loaded, self.adapter.metric, self.streams)
        self._look_ahead()
        self.state = self._open()

    def _look_ahead(self) -> None:
        """Find misspelt names of losses, methods, models and modules now, not after hours of training a teacher."""
        METHODS[self.recipe.method.name]
        check_trackers(self.recipe.trackers)
        for i, term in enumerate(self.recipe.objective):
            self.loaded.validate(spec_of(term).params, term.params, ("objective", i, "params"))
        self.role_plans = role_plans(self.loaded, self.adapter)
        self.twin = twin_of(self.recipe, self.adapter)
        if self.options.only == "teacher" and self.recipe.teacher is None:
            raise UserError("--only teacher: the recipe has no teacher")
        seen: dict[str, nn.Module] = {}
        for role_plan in self.role_plans:
            role, objective = role_plan.role, Objective(role_plan.terms)
            seen[role] = (
                self._load(role) if role_plan.path else build(self.adapter, self.loaded, role_plan, self.streams)
            )
            for teacher in set(role_plan.teachers) - {"control"}:
                find_all(teacher, seen[teacher], objective, "teacher")
            if not is_teacher(role):
                find_all(role, seen[role], objective)
            if not role_plan.path:
                training_source(self.adapters.of(role_plan), self.recipe, role)
            compressions(self.loaded, role).check(self.adapter, seen[role], seen)
        for key, data in scheme[0].sections(scheme[1]).items() if (scheme := scheme_of(self.loaded)) else ():
            other_task(self.loaded, self.adapter, key, data, self.recipe.train.batch_size)
        student = next(role_plan for role_plan in self.role_plans if role_plan.role == "student")
        method = make_method(self.loaded, self.adapter, student, self.streams)
        method.check({role: seen[role] for role in ("student", *student.teachers)})
        mine = scaling(self.recipe.train.optimizer, lambda pattern: pattern.startswith("student."))
        build_optimizer(mine, {"student": seen["student"]})
        check(self.recipe, self.adapter)

    def _load(self, role: str, folder: Path | None = None) -> nn.Module:
        """A role that is saved: in this run's folder, a copy of what is there, or where the recipe says."""
        if role not in self.models:
            path = next((role_plan.path for role_plan in self.role_plans if role_plan.role == role), None)
            self.models[role] = saved(self.adapter, role, path or folder or self.out / role).to(self.accelerator.device)
            compressions(self.loaded, role).restore(self.models[role], folder or self.out / role)
        return self.models[role]

    def _open(self) -> dict[str, Any]:
        """Start a run folder, or go on in one: the main process looks, all obey."""
        found: dict[str, Any] | UserError = {}
        if self.main:
            try:
                found = self._look_and_open()
            except UserError as error:
                found = error
        found = self.ranks.share(found)
        if isinstance(found, UserError):
            raise found
        return found

    def _look_and_open(self) -> dict[str, Any]:
        loaded = [(one.role, one.path) for one in self.role_plans if one.path is not None]
        how = Opening(
            self.options.resume, self.options.accept_changes, self.options.hash_data, loaded,
            threads_matter=self.accelerator.device.type == "cpu",
            prints=role_prints(self.loaded, self.adapter, self.role_plans),
        )  # fmt: skip
        begun = (self.out / STATE).exists()
        refuse_folder(self.out, how)
        if not begun:
            self._rehearse(())
        state, self.lock = open_run(self.out, self.loaded, how)
        if begun:
            try:
                self._rehearse(state["roles"])
            except BaseException:
                self.lock.release()
                raise
        return state

    def _keep(self) -> None:
        """Write what is known, which is what a killed run goes on from."""
        write_state(self.out, self.state)

    def _rehearse(self, done: Collection[str]) -> None:
        """See that the roles that are not `done` can be trained, measured and written. Raises `UserError` if not."""
        plans = [plan for plan in self.role_plans if self.options.only in (None, plan.role)]
        if all(plan.role in done for plan in plans):
            return
        there = [plan.role for plan in plans if plan.role in done or plan.path is not None]
        models = {role: self._load(role) for role in there}
        Rehearsal(
            self.loaded, self.adapter, self.adapters, plans, self.streams, self.options.device, self.out, models, done,
            exports=self.options.export,
        ).go()  # fmt: skip
        self.accelerator = make_accelerator(self.options.device, self.recipe.train.precision)

    def execute(self) -> dict[str, Any]:
        """All parts in order, and the folder is free again. Returns the report, or ``{}`` after ``--only``."""
        plans = [plan for plan in self.role_plans if self.options.only in (None, plan.role)]
        try:
            with self.watched.telling(plans, whole=self.options.only is None) if self.main else nullcontext():
                return self._execute()
        finally:
            if self.lock is not None:
                self.lock.release()

    def _execute(self) -> dict[str, Any]:
        for role_plan in self.role_plans:
            if self.options.only is None or role_plan.role == self.options.only:
                self._role(role_plan)
        if self.options.only is not None:
            return {}
        spec = control_spec(self.recipe)
        self.accelerator.state.destroy_process_group()
        if not self.main:
            return {}
        if isinstance(spec, UntrainedControl):
            self._untrained_control()
        if "overview" not in self.state:
            self.state["overview"] = self._overview()
            self._keep()
        with torch.no_grad(), self.streams.forked("evaluate"):
            models = {role: self.models[role].eval() for role in self.state["roles"]}
            panels.write(self.out, shown(self.loaded, self.adapter, models, self.out))
        content = report_content(
            self.loaded, self.state, spec, self.adapter.metric, self.adapter.describe(), self.accelerator, self.out,
            self.twin,
        )  # fmt: skip
        self._card("student", content)
        report.write(self.out, content)  # last: whoever finds the page finds all
        return content

    def _card(self, role: str, content: Mapping[str, Any]) -> None:
        """What people read of a saved model; the student's says what its teachers' say of licences."""
        entries, folder = self.state["roles"], self.out / role
        teachers = [Path(entry.get("path", self.out / name)) for name, entry in entries.items() if is_teacher(name)]
        about = self.adapter.about(role, self.models[role], folder)
        cards.write(folder, role, about, content, resolved(self.loaded)["data"], teachers)

    # ---------------------------------------------------------------- one role

    def _role(self, role_plan: RolePlan) -> None:
        """Train (or load), save and score a role, unless that is done."""
        role, folder = role_plan.role, self.out / role_plan.role
        if role in self.state["roles"]:
            with everywhere(folder, self.ranks) if role_plan.path is None else nullcontext(folder) as there:
                self._load(role, there)
            return
        if role_plan.path is not None:
            self._load(role)
            entry: dict[str, Any] = {"path": str(role_plan.path)}
        else:
            entry = self._fit(role_plan)
            if self.main:
                self.adapter.save(role, self.models[role], folder)
                compressions(self.loaded, role).save(self.models[role], folder)
        if self.main:
            entry |= self._score(role)
            if role == "student":
                entry["export"] = self._export(folder)
                entry["curve"] = entry["export"].pop("curve", [])
            if role_plan.path is None:
                entry["files"] = provenance.model_files(folder)
            self.state["roles"][role] = entry
            if is_teacher(role) and role_plan.path is None:
                self._card(role, begun(self.loaded, self.state, self.adapter.metric))
            self._keep()
        self.accelerator.wait_for_everyone()

    def _export(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.options.export:
            found = compressions(self.loaded).export(self.adapter, self.models["student"], folder)
        if self.method is not None:
            found |= self.method.export(self.models["student"], self.adapter, folder)
        return found

    def _fit(self, role_plan: RolePlan) -> dict[str, Any]:
        role, train = role_plan.role, role_plan.steps
        self.accelerator = make_accelerator(
            self.options.device, train.precision, trackers=self.recipe.trackers, logs=self.out / "logs"
        )
        self.accelerator.init_trackers(role)
        mine = self.adapters.of(role_plan)
        models = models_of(self.adapter, self.loaded, role_plan, self.streams, self.models)
        method = make_method(self.loaded, mine, role_plan, self.streams)
        changed = set().union(*(stage.saves | stage.trains for stage in method.stages()))
        models |= {teacher: copy.deepcopy(models[teacher]) for teacher in changed & set(role_plan.teachers)}
        adapter = mine
        if train.batch_size != self.recipe.train.batch_size:
            adapter = self.adapters.of(role_plan, train.batch_size)
        source = training_source(adapter, self.recipe, role)
        known = labelled_by(adapter.data("train"), self.recipe, role)
        for one in (mine, *([] if adapter is mine else [adapter])):
            one.begin(role, known)
        user, data = self.cache_user(), resolved(self.loaded)["data"]
        cache = Session.of(user, role, adapter, source, method, train, data, models[role])
        engine = Engine(
            method, cache.source, models, train, streams=self.streams, accelerator=self.accelerator,
            folder=self.out / "checkpoints" / role, metric=self.adapter.metric, target=role,
            evaluate=self.dev.watched(role, mine, known=len(method.stages()) == 1 and not self.recipe.compress),
            max_seconds=self._seconds_left(), quiet=self.options.quiet,
            finished=self._save_stage(role) if len(method.stages()) > 1 else None,
            owner=f"{self.state['id']}/{role}" if "id" in self.state else "", accept=self.options.accept_changes,
            evaluated=self.watched.evaluations(role, mine),
        )  # fmt: skip
        at = engine.fit(resume=self.options.resume)
        with disk_errors(self.out / "logs"):
            for tracker in self.accelerator.trackers:  # end_training() would end the processes' group with them
                tracker.finish()
        self.models[role] = models[role]
        small = compressions(self.loaded, role).finish(models[role])
        models |= {teacher: self.models[teacher] for teacher in role_plan.teachers}  # not what the method made of it
        scarce = {"labels": facts(known, source)} if isinstance(source, LabelBudget) else {}
        objective = method.modules().get("objective")
        built = {"objective": objective.describe()} if isinstance(objective, Objective) else {}
        training = {
            **at.told(),
            "flops_per_step": self._step_flops(role, mine, method, models, cache),
            **cache.facts(models, at.samples),
        }
        return scarce | built | small | self._told(method, models, cache) | {"training": training}

    def cache_user(self, part: tuple[int, int] = (0, 1)) -> CacheUser:
        """What a teacher's cache takes of this run."""
        return CacheUser(self.recipe, self.out, self.models, self.streams, self.accelerator, self.options.quiet, part)

    def _told(self, method: Method, models: dict[str, nn.Module], cache: Session) -> dict[str, Any]:
        if not isinstance(method, Distil):
            return {}
        self.method = method
        for model in models.values():
            model.eval()
        with torch.no_grad(), self.streams.forked("facts"):
            found = dict(method.facts(models, self._batch(cache.source)))
        return {"scheme": found} if found else {}

    def _save_stage(self, role: str) -> Callable[[Stage, nn.Module], None]:
        """What each of several stages made is a model of its own, beside the last one's."""
        return lambda stage, model: self.adapter.save(role, model, self.out / role / stage.name)

    def _seconds_left(self) -> float | None:
        if self.options.max_minutes is None:
            return None
        return max(0.0, 60 * self.options.max_minutes - (monotonic() - self.began))

    def _step_flops(
        self, role: str, adapter: Adapter, method: Any, models: dict[str, nn.Module], cache: Session
    ) -> float:
        """Of a step on one batch of the student's size: forward passes of all roles, losses, backward."""
        source = training_source(adapter, self.recipe, role, self.recipe.train.batch_size)
        source = cache.source if cache.reading is not None else source
        batch = self._batch(source)  # whose making costs more the first time, and that depends on where a run went on
        return flops.count(lambda: probe(method, models, batch, self.streams))

    def _untrained_control(self) -> None:
        """The teacher within the student's budget, saved so that it can be run and measured again."""
        if "control" in self.state["roles"]:
            self._load("control")
            return
        model = self.adapter.untrained_control(self._load("teacher"), self._load("student"))
        self.models["control"] = model.to(self.accelerator.device)
        self.adapter.save("control", model, self.out / "control")
        files = {"files": provenance.model_files(self.out / "control")}
        self.state["roles"]["control"] = self._score("control") | files
        self._keep()

    def _overview(self) -> dict[str, Any]:
        models = {role: self.models[role].eval() for role in self.state["roles"]}
        with torch.no_grad(), self.streams.forked("evaluate"):
            found = self.adapter.overview(models, self.out)
            scheme = scheme_of(self.loaded)
            facts = {} if scheme is None else scheme[0].overview(scheme[1], self.adapter, models, self.out)
        pictures = {caption: str(path.relative_to(self.out)) for caption, path in found.pictures.items()}
        return {"curve": list(found.curve), "facts": {**found.facts, **facts}, "pictures": pictures}

    def _batch(self, source: Source) -> Any:
        return send_to_device(first_batch(source), self.accelerator.device)

    def _score(self, role: str) -> dict[str, Any]:
        model = self.models[role].eval()
        with torch.no_grad(), self.streams.forked("evaluate"):
            dev, test = self.dev.of(role, self.adapter, model), self.adapter.evaluate(role, model, "test")
            alone = self._latency(role, model)
        split = "test" if METHODS[self.recipe.method.name].control == "noise" else "train"
        batch = self._batch(self.adapter.data(split))
        passes = flops.forward(model, lambda: self.adapter.signals(role, model, batch))
        return {
            "parameters": int(getattr(model, "saved_parameters", sum(p.numel() for p in model.parameters()))),
            "flops_per_sample": passes / len(batch["ids"]) * int(getattr(model, "nfe", 1)),
            "latency": alone,
            "metrics": test.metrics,
            "dev_metrics": dev.metrics,
            "examples": list(test.examples),
            "scores": [asdict(score) for score in test.scores],
        }

    def _latency(self, role: str, model: nn.Module) -> dict[str, float]:
        """Of the first test sample alone, on the threads of the run."""
        source, device = self.adapter.data("test"), self.accelerator.device
        batch = send_to_device(source.collate([source.sample(0, 0)]), device)
        found = latency(lambda: self.adapter.answer(role, model, batch), device=device, limit=LATENCY)
        return found | {"threads": torch.get_num_threads()}
