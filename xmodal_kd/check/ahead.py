"""What can be said of a recipe before anything of it is built, and the run's own dress rehearsal, part by part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..adapter.listed import named
from ..recipe.recipe import Loaded
from ..report.model_cards import licences
from ..run import listed_files
from ..run.listed_files import Bad
from ..run.places import check_places
from ..run.rehearsal import ITEMS, Rehearsal, guarded
from ..run.roles import Adapters
from ..runtime.errors import UserError
from .subject import Finding, Subject, told

SKIP = "mend it, or leave it out: check --bad FILE lists what data.skip leaves out"


def ahead(loaded: Loaded, bad: Path | None = None) -> Iterator[Finding]:
    """Places, cards and files of a recipe, each whatever the others say.

    Args:
        bad: where the names of the samples are written whose files will not do.
    """
    yield from _part("places", lambda: _places(loaded))
    yield from _part("teacher cards", lambda: _cards(loaded))
    yield from _part("files", lambda: _files(loaded, bad))


def _part(name: str, part: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    try:
        with guarded(name):
            return part()
    except UserError as error:
        return [Finding(name, "fail", str(error), told(error))]


def _places(loaded: Loaded) -> list[Finding]:
    out = folder_of(loaded)
    roles = [*loaded.recipe.taught_by(), "control", "student"]
    check_places(loaded, out, roles)
    cache = loaded.recipe.cache
    more = "" if cache is None or cache.path is None else f", {cache.path}"
    return [Finding("places", "pass", f"{out}{more} can be written to")]


def folder_of(loaded: Loaded) -> Path:
    """Where a run of the recipe is written that says nothing else."""
    return loaded.recipe.out or Path("runs") / loaded.source.stem


def _cards(loaded: Loaded) -> list[Finding]:
    paths = [teacher.path for teacher in loaded.recipe.taught_by().values() if teacher.path is not None]
    names = {name: None for path in paths for name in licences(path)}
    return [Finding("teacher cards", "pass", f"licences: {', '.join(names) or 'none named'}")] if paths else []


def _files(loaded: Loaded, bad: Path | None) -> list[Finding]:
    looked = listed_files.of_recipe(loaded)
    keys = list(dict.fromkeys(one.key for one in looked.bad))
    if bad is not None:
        try:
            bad.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--bad: {bad} cannot be written: {error.strerror}: choose another file") from None
    if not looked.bad:
        text = f"{looked.files:,} files are there, {looked.opened:,} of them opened now" if looked.files else ""
        return [Finding("files", "pass", text)] if text else []
    return [_of_reason(reason, some) for reason, some in grouped(looked.bad).items()]


def grouped(bad: Sequence[Bad]) -> dict[str, list[Bad]]:
    """Files that are bad for the same reason."""
    found: dict[str, list[Bad]] = defaultdict(list)
    for one in bad:
        found[one.why.replace(str(one.path), "").removeprefix(": ")].append(one)
    return found


def _of_reason(reason: str, bad: Sequence[Bad]) -> Finding:
    if len(bad) == 1:
        return Finding("files", "fail", f"sample {bad[0].key}: {bad[0].why}", SKIP)
    return Finding("files", "fail", f"{len(bad):,} files: {reason}: {named([str(one.path) for one in bad])}", SKIP)


# ---------------------------------------------------------------- the rehearsal


def dress_rehearsal(subject: Subject) -> Iterator[Finding]:
    """Every role trained for a step, measured on a few samples and written, as `run` does it before it trains."""
    there = {plan.role: subject.roles[plan.role] for plan in subject.role_plans if plan.path is not None}
    adapters = Adapters(subject.loaded, subject.adapter, subject.streams)
    made = Rehearsal(
        subject.loaded, subject.adapter, adapters, subject.role_plans, subject.streams, subject.wanted,
        folder_of(subject.loaded), there,
    )  # fmt: skip
    failed = False
    with made.aside():
        for name, part in made.parts():
            if name in ("places", "teacher cards", "files") or not _can_be_tried(name, made, failed):
                continue
            try:
                with guarded(name):
                    part()
            except UserError as error:
                failed = True
                yield Finding("rehearsal", "fail", str(error), told(error))
    subject.put_back()
    if not failed:
        roles = ", ".join(plan.role for plan in subject.role_plans)
        yield Finding("rehearsal", "pass", f"{roles}: a step, {ITEMS} items of dev and test, and all that is written")


def _can_be_tried(name: str, made: Rehearsal, failed: bool) -> bool:
    """Whether the roles that a part of the rehearsal needs stand; what is made of all of them needs all."""
    role = name.partition(",")[0]
    plan = next((plan for plan in made.role_plans if plan.role == role), None)
    if plan is None:
        return not failed
    needed = [role] if name != role else plan.teachers
    return all(one in made.standing for one in needed)


__all__ = ["ahead", "dress_rehearsal", "folder_of", "grouped"]
