"""What `list` shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ..adapter.adapter import Adapter, adapter_class
from ..compress import COMPRESSIONS
from ..losses import LOSSES
from ..runtime.discovery import modality, modality_names, shipped
from ..runtime.errors import UserError, nearest
from ..runtime.progress import console
from ..schemes import SCHEMES
from ..training.method import METHODS

Row = dict[str, Any]


def catalogue(what: str) -> list[Row]:
    """Rows of one kind of thing. Raises `UserError` with the nearest kinds."""
    if what not in KINDS:
        raise UserError(f"list {what!r}: there is no such list{nearest(what, KINDS)}")
    return KINDS[what]()


def adapters() -> Iterator[tuple[str, type[Adapter]]]:
    """The modalities whose packages are installed; the others are named on stderr."""
    for name in modality_names():
        try:
            yield name, adapter_class(name)
        except UserError as error:
            console.print(f"left out: {error}", markup=False, highlight=False)


def _losses() -> list[Row]:
    list(adapters())  # a modality registers losses of its own
    return [LOSSES[name].describe() for name in LOSSES]


def _methods() -> list[Row]:
    list(adapters())
    return [{"name": name, "summary": first_line(METHODS[name])} for name in METHODS]


def _schemes() -> list[Row]:
    return [
        {"name": name, "family": kind.family, "paper": kind.paper, "year": kind.year, "teacher": kind.recipe_teacher,
         "experimental": kind.experimental, "summary": first_line(kind)}
        for name, kind in ((name, SCHEMES[name]) for name in SCHEMES)
    ]  # fmt: skip


def _compressions() -> list[Row]:
    return [
        {"name": name, "paper": kind.paper, "year": kind.year, "experimental": kind.experimental,
         "summary": first_line(kind)}
        for name, kind in ((name, COMPRESSIONS[name]) for name in COMPRESSIONS)
    ]  # fmt: skip


def _models() -> list[Row]:
    return [
        {"name": model, "modality": name, "summary": first_line(kind.models[model])}
        for name, kind in adapters()
        for model in kind.models
    ]


def _modalities() -> list[Row]:
    return [{"name": name, "summary": first_line(modality(name))} for name in modality_names()]


def _datasets() -> list[Row]:
    return [
        {"name": source, "modality": name, "summary": summary}
        for name, kind in adapters()
        for source, summary in sorted(kind.datasets.items())
    ]


def _recipes() -> list[Row]:
    def headline(text: str) -> str:
        return text.partition("\n")[0].removeprefix("#").strip()

    return [{"name": name, "summary": headline(path.read_text())} for name, path in shipped().items()]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "losses": _losses,
    "methods": _methods,
    "schemes": _schemes,
    "compress": _compressions,
    "models": _models,
    "modalities": _modalities,
    "datasets": _datasets,
    "recipes": _recipes,
}


def first_line(thing: object) -> str:
    """Of its docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]
