"""What `list` shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import data_free  # noqa: F401 - registers its methods
from ..adapter.adapter import Adapter, adapter_class
from ..compress.known import COMPRESSIONS
from ..losses import LOSSES, LossSpec
from ..runtime.discovery import modality, modality_names, shipped
from ..runtime.errors import UserError, nearest
from ..runtime.progress import console
from ..schemes import SCHEMES, Scheme
from ..training.method import METHODS

Row = dict[str, Any]
#: Needs of a loss that are no feature captured from inside a model.
SIGNALS = {"logits", "labels", "prediction", "regression", "teacher"}


def catalogue(
    what: str, needs: Sequence[str] = (), without: Sequence[str] = (), modality: str | None = None
) -> list[Row]:
    """Rows of one kind of thing.

    Args:
        needs: only what needs all of these.
        without: only what needs none of these.
        modality: only what serves, or belongs to, this one.

    Raises:
        UserError: with the nearest kinds, words and modalities.
    """
    if what not in KINDS:
        raise UserError(f"list {what!r}: there is no such list{nearest(what, KINDS)}")
    rows = KINDS[what]()
    if needs or without:
        known = {word for row in rows for word in row.get("needs", ())}
        if not known:
            raise UserError(f"list {what}: they have no needs to choose by: losses and schemes do")
        if unknown := next((word for word in (*needs, *without) if word not in known), None):
            raise UserError(f"list {what}: nothing needs {unknown!r}{nearest(unknown, sorted(known))}")
        rows = [r for r in rows if set(needs) <= set(r["needs"]) and not set(without) & set(r["needs"])]
    if modality is not None:
        if modality not in modality_names():
            raise UserError(f"list --for {modality!r}: no such modality{nearest(modality, modality_names())}")
        if rows and not {"for", "modality"} & rows[0].keys():
            raise UserError(f"list {what}: they are for every modality alike: leave --for out")
        rows = [row for row in rows if modality in row.get("for", (row.get("modality"),))]
    return rows


def serves(spec: LossSpec, name: str, kind: type[Adapter]) -> bool:
    """Whether a modality can give a loss what it asks for; a loss of a modality's own serves that one alone."""
    home = spec.fn.__module__.split(".")
    if home[:2] == ["xmodal_kd", "modalities"]:
        return home[2] == name
    return asked(spec) <= kind.gives


def asked(spec: LossSpec) -> frozenset[str]:
    """The words of `Adapter.gives` that a loss asks for: all that is captured from inside a model is a feature."""
    asked = spec.needs & {"logits", "prediction", "regression"}
    labels = {"labels" if "label_item" not in spec.inputs else "item_labels"} if "labels" in spec.inputs else set()
    features = {"features"} if spec.needs - SIGNALS else set()
    return frozenset(asked | features | (labels if "regression" not in asked else set()))


def adapters() -> Iterator[tuple[str, type[Adapter]]]:
    """The modalities whose packages are installed; the others are named on stderr."""
    for name in modality_names():
        try:
            yield name, adapter_class(name)
        except UserError as error:
            console.print(f"left out: {error}", markup=False, highlight=False)


def _losses() -> list[Row]:
    found = list(adapters())  # a modality registers losses of its own
    return [
        LOSSES[name].describe() | {"for": [m for m, kind in found if serves(LOSSES[name], m, kind)]} for name in LOSSES
    ]


def _methods() -> list[Row]:
    list(adapters())
    return [{"name": name, "summary": first_line(METHODS[name])} for name in METHODS]


def _schemes() -> list[Row]:
    return [
        {"name": name, "family": kind.family, "paper": kind.paper, "year": kind.year, "teacher": kind.recipe_teacher,
         "needs": scheme_needs(kind), "experimental": kind.experimental, "summary": first_line(kind)}
        for name, kind in ((name, SCHEMES[name]) for name in SCHEMES)
    ]  # fmt: skip


def scheme_needs(kind: type[Scheme]) -> list[str]:
    """A teacher of the recipe's, or several."""
    several = ["several_teachers"] if kind.family == "several teachers" else []
    return several + (["teacher"] if kind.recipe_teacher == "needed" else [])


def _compressions() -> list[Row]:
    list(adapters())
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
