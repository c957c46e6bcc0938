"""A recipe out of a teacher's folder and a folder of data: looked at by the modality, written and measured here.

May import ``check`` and what it may. Public is what ``xmodal-kd new`` writes: a recipe that loads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ..adapter.adapter import adapter_class
from ..adapter.saved_model import CARD
from ..adapter.sketch import SIZES, Given, Like, Noted, Sketch
from ..recipe.recipe import load
from ..run.listed_files import Looked, of_recipe
from ..runtime.checkpoint import read_object
from ..runtime.discovery import modality
from ..runtime.errors import UserError
from .estimate import measured
from .text import recipe_text

PAGE = "README.md#a-recipe-of-your-own"
#: The end of the list, beside a recipe, of samples that cannot be used, and the key of the data section that has it.
BAD, SKIP = ".bad.txt", "skip"
#: Of so many it is said why.
TOLD = 3


class Unfit(UserError):
    """What was brought makes no recipe; `problems` has a line for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def draft(
    name: str, path: Path, teacher: Path | None, data: Path | None, size: str = "medium", like: str | None = None,
    device: str = "auto", estimate: bool = True,
) -> list[str]:  # fmt: skip
    """Write a recipe to `path`, which must not be there, and try a few steps of it.

    Args:
        name: of the modality.
        like: what the student is to be: a registered model, or the folder of a saved one.
        estimate: whether time and memory are measured and told in the recipe's head.

    Returns:
        What one should know of the recipe, a line each.
    Raises:
        Unfit: what was brought does not make a recipe. Nothing is left at `path`.
    """
    looker = _looker(name)
    given = Given(teacher, data, SIZES[size], None if like is None else _like(name, like, looker))
    found: Sketch = looker.sketch(given)
    if found.problems:
        raise Unfit(found.problems)
    _write(path, recipe_text(name, path, found, ()), "x")
    bad = path.with_suffix(BAD)
    try:
        found = _without(found, of_recipe(load(str(path))), bad)
        _write(path, recipe_text(name, path, found, ()), "w")
        cost = measured(load(str(path)), device) if estimate else []
    except BaseException:
        path.unlink(missing_ok=True)
        if SKIP in found.sections.get("data", {}):
            bad.unlink(missing_ok=True)
        raise
    _write(path, recipe_text(name, path, found, cost), "w")
    return [*found.notes, *cost]


def _without(found: Sketch, looked: Looked, bad: Path) -> Sketch:
    """The same without the samples whose files will not do, which are named in a list beside the recipe.

    Raises `Unfit` where those are more than half of all: then it is not they that are odd.
    """
    keys = list(dict.fromkeys(one.key for one in looked.bad))
    if not keys:
        return found
    reasons = [f"{one.path}: {one.why.removeprefix(f'{one.path}: ')}" for one in looked.bad[:TOLD]]
    if 2 * len(looked.bad) > looked.files:
        few = f"{len(looked.bad):,} of {looked.files:,} files cannot be used, more than half: mend them"
        raise Unfit([few, *reasons])
    _write(bad, "".join(f"{key}\n" for key in keys), "x")
    more = f", and {len(looked.bad) - TOLD} more" if len(looked.bad) > TOLD else ""
    said = f"{len(keys):,} samples cannot be used ({'; '.join(reasons)}{more}): {bad} leaves them out, until mended"
    skip = Noted(str(bad), f"{len(keys):,} samples that cannot be used are left out: see the head of this file")
    sections = {**found.sections, "data": {**found.sections["data"], SKIP: skip}}
    return replace(found, sections=sections, notes=(*found.notes, said))


def _looker(name: str) -> ModuleType:
    """The module of a modality that looks at folders."""
    adapter_class(name)  # says which package is missing, where one is
    place: str | None = getattr(modality(name), "SKETCH", None)
    if place is None:
        raise UserError(f"modality {name!r} looks at no folders: start from its template: xmodal-kd new {name}")
    return importlib.import_module(f"xmodal_kd.modalities.{name}.{place}")


def _like(name: str, like: str, looker: ModuleType) -> Like:
    """A student by the name of its model, or as a saved one's folder describes it."""
    models, folder = adapter_class(name).models, Path(like)
    if like in models:
        return Like(like, {}, f"--like {like}, with its defaults")
    if (folder / CARD).is_file():
        told: dict[str, Any] = read_object(folder / CARD)
        if told.get("model") in models and isinstance(told.get("params"), dict):
            return Like(told["model"], told["params"], f"--like: as {folder / CARD} says")
    own: Callable[[Path], Like | None] | None = getattr(looker, "like", None)
    if own is not None and folder.is_dir() and (found := own(folder)) is not None:
        return found
    known = ", ".join(models)
    raise UserError(
        f"--like {like}: neither a model of {name} ({known}; xmodal-kd list models) nor a saved student's folder"
    )


def _write(path: Path, text: str, mode: str) -> None:
    try:
        with path.open(mode, encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise UserError(f"{path} is there already: name another file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}: name another file") from None


__all__ = ["Unfit", "draft"]
