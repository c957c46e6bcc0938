"""The command ``cache`` behind its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..recipe.recipe import Loaded, load
from ..run.options import Options
from ..run.resolved_recipe import resolved
from ..run.roles import labelled_by, make_method, models_of, training_source
from ..run.run_folder import STATE
from ..run.runner import Run
from ..runtime.errors import UserError
from ..teacher_cache.session import Session
from ..training.loader import steps


def fill(recipe: str, sets: Sequence[str], out: Path | None, device: str, quiet: bool) -> dict[str, Any]:
    """Train or load the teacher, run it once over what the student will see, and say what the store holds.

    A recipe without a section ``cache`` gets one of defaults. Raises `UserError` for a recipe without a teacher, or
    whose terms need none.
    """
    loaded = _with_cache(recipe, sets)
    if loaded.recipe.teacher is None:
        raise UserError("cache: the recipe has no teacher")
    folder = out or loaded.recipe.out or Path("runs") / loaded.source.stem
    resume = (folder / STATE).is_file()
    run = Run(loaded, Options(folder, device, resume, only="teacher", quiet=quiet))
    run.execute()
    train, role_plan = loaded.recipe.train, next(one for one in run.role_plans if one.role == "student")
    student = models_of(run.adapter, loaded, role_plan, run.streams, run.models)["student"].to(run.accelerator.device)
    method = make_method(loaded, run.adapter, role_plan, run.streams)
    run.adapter.begin("student", labelled_by(run.adapter.data("train"), loaded.recipe, "student"))
    source = training_source(run.adapter, loaded.recipe, "student")
    session = Session.of(run.cache_user(), "student", run.adapter, source, method, train, resolved(loaded)["data"])
    if session.reading is None:
        raise UserError("cache: no term of the objective needs the teacher: there is nothing to store")
    models = {"student": student, "teacher": run.models["teacher"]}
    with torch.no_grad():  # what the objective builds is measured by and goes
        [batch] = next(steps(session.reading.source.source))
    method.begin(method.stages()[0], models, _here(batch, run))
    samples = sum(stage.steps for stage in method.stages()) * train.batch_size
    return session.facts(models, samples)["cache"] | {"run": str(folder)}  # type: ignore[no-any-return]


def _with_cache(recipe: str, sets: Sequence[str]) -> Loaded:
    loaded = load(recipe, sets)
    return loaded if loaded.recipe.cache is not None else load(recipe, [*sets, "cache={}"])


def _here(batch: Any, run: Run) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(batch, run.accelerator.device)


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    errors = ", ".join(f"{name} {share(value)}" for name, value in facts["loss_error"].items())
    kept = [
        f"{name}: {signal['codec']}, {signal['bytes_per_row']} bytes a {signal['kind']}"
        for name, signal in facts["signals"].items()
    ]
    paid = facts["paid_after_epochs"]
    return [
        f"{facts['path']}: {size(facts['bytes'])} on disk",
        *kept,
        f"{facts['computed']} computed in {facts['fill_seconds']:.1f} s, {facts['found']} found",
        f"teacher {facts['live_ms']:.2f} ms a batch, cache {facts['cached_ms']:.2f} ms; "
        + ("never paid: the teacher is quicker" if paid is None else f"paid after {paid:.1f} epochs"),
        f"error of the loss of one batch: {errors}",
    ]


def size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2g} %"
