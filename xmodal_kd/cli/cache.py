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
from ..teacher_cache.exported import export
from ..teacher_cache.folder import merge
from ..teacher_cache.session import Reading, Session


def act(
    words: Sequence[str], sets: Sequence[str], out: Path | None, device: str, quiet: bool, shard: str | None = None,
    on_missing: str | None = None,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """What the words after ``cache`` ask for. Returns its facts, and lines of them for people."""
    verb, *rest = words if words[0] in ("export", "import", "merge") else ("fill", *words)
    counts = {"fill": (1, "RECIPE"), "export": (2, "RECIPE FOLDER"), "import": (2, "RECIPE FOLDER")}
    if verb == "merge":
        if not rest or out is None:
            raise UserError("cache merge: FOLDER FOLDER ... --out FOLDER is expected")
        facts = merge([Path(one) for one in rest], out)
        return facts, [folder_line(facts)]
    number, wanted = counts[verb]
    if len(rest) != number:
        raise UserError(
            f"cache{'' if verb == 'fill' else f' {verb}'}: {wanted} is expected, got {' '.join(rest) or 'nothing'}"
        )
    if on_missing is not None and verb != "import":
        raise UserError("--on-missing is of cache import")
    more = [f"cache.signals={Path(rest[1]).absolute()}"] if verb == "import" else []
    more += [] if on_missing is None else [f"cache.on_missing={on_missing}"]
    facts, reading = fill(rest[0], [*sets, *more], out, device, quiet, _part(shard))
    if verb != "export":
        return facts, lines(facts)
    told = export(reading.filler, reading.source.kept, reading.manifest, reading.source.store, Path(rest[1]))
    return facts | {"exported": told}, [*lines(facts), folder_line(told)]


def _part(shard: str | None) -> tuple[int, int]:
    """``I/N`` as numbers: this is part I, from 0, of N."""
    if shard is None:
        return 0, 1
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise UserError(f"--shard {shard}: I/N is expected, part I (from 0) of N: 0/4, 1/4, 2/4, 3/4")
    return int(part), int(parts)


def fill(
    recipe: str, sets: Sequence[str], out: Path | None, device: str, quiet: bool, part: tuple[int, int] = (0, 1)
) -> tuple[dict[str, Any], Reading]:
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
    source, data = training_source(run.adapter, loaded.recipe, "student"), resolved(loaded)["data"]
    session = Session.of(run.cache_user(part), "student", run.adapter, source, method, train, data, student)
    if session.reading is None:
        raise UserError("cache: no term of the objective needs the teacher: there is nothing to store")
    models = {"student": student, "teacher": run.models["teacher"]}
    with torch.no_grad():  # what the objective builds is measured by and goes
        batch = session.reading.source.source.collate(session.reading.samples())
    method.begin(method.stages()[0], models, _here(batch, run))
    samples = sum(stage.steps for stage in method.stages()) * train.batch_size
    return session.facts(models, samples)["cache"] | {"run": str(folder)}, session.reading


def _with_cache(recipe: str, sets: Sequence[str]) -> Loaded:
    own = [one for one in sets if one.startswith("cache.")]  # keys of a section that must be there before them
    loaded = load(recipe, [one for one in sets if one not in own])
    first = [] if loaded.recipe.cache is not None else ["cache={}"]
    return load(recipe, [*(one for one in sets if one not in own), *first, *own])


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


def folder_line(facts: Mapping[str, Any]) -> str:
    return f"{facts['path']}: {facts['samples']} samples in {facts['shards']} shards, {size(facts['bytes'])}"


def size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2g} %"
