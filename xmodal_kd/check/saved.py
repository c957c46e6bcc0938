"""Checks of a saved teacher: its folder, and whether it reaches what it declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..adapter.saved_model import folder_of
from ..runtime.checkpoint import read_object
from .subject import Finding, Subject

#: A metric may be this share of the declared one worse, and at least `LEAST`.
TOLERANCE, LEAST = 0.05, 1e-3
REPORT, STATE = "report.json", "state.json"


def teacher_folder(subject: Subject) -> Iterator[Finding]:
    """Traps of a saved teacher that its modality knows: in diffusion, of its scheduler's configuration."""
    teacher = subject.recipe.teacher
    if teacher is None or teacher.path is None:
        return
    found = list(subject.adapter.lint(teacher.path))
    for status, what, advice in found:
        yield Finding("teacher folder", status, f"{teacher.path}: {what}", advice)
    if not found:
        yield Finding("teacher folder", "pass", str(teacher.path))


def gate(subject: Subject) -> Iterator[Finding]:
    """The saved teacher, measured on test, reaches the main metric that its card or its run's report declares."""
    teacher, (name, lower) = subject.recipe.teacher, subject.adapter.metric
    if teacher is None or teacher.path is None:
        yield Finding("gate", "fail", "the recipe has no saved teacher to measure", "give teacher.path")
        return
    value, source = declared(subject, teacher.path, name)
    if value is None:
        advice = "use a teacher of a finished run, or write its metrics into its card"
        yield Finding("gate", "fail", f"{teacher.path} declares no {name}", advice)
        return
    with torch.no_grad():
        found = subject.adapter.evaluate("teacher", subject.roles["teacher"].eval(), "test").metrics[name]
    subject.put_back()
    if found is None:
        advice = "nothing of it can be measured alone: look at what the student gains over its control"
        yield Finding("gate", "fail", f"{teacher.path} gives no answers, only layers", advice)
        return
    reached = float(found)
    worse = reached - value if lower else value - reached
    text = f"{name} {reached:.4g} on test, {source} declares {value:.4g}"
    if worse <= max(TOLERANCE * abs(value), LEAST):
        yield Finding("gate", "pass", text)
    else:
        advice = "do not distil from it: other data, features or sampling than it was measured with?"
        yield Finding("gate", "fail", text, advice)


def declared(subject: Subject, folder: Path, name: str) -> tuple[float | None, str]:
    """The metric of a saved model: in its card, else in the report or the state of the run around it."""
    for found, source in ((subject.adapter.declared(folder), "its card"), *_of_run(folder)):
        if isinstance(found.get(name), int | float):
            return float(found[name]), source
    return None, ""


def _of_run(folder: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    place = folder_of(folder.absolute())
    for file in (REPORT, STATE):
        path = place.parent / file
        if path.is_file():
            entry = read_object(path).get("roles", {}).get(place.name, {})
            yield entry.get("metrics", {}), f"{path.parent.name}/{file}"
