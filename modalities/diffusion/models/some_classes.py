"""A teacher of many classes for data of some: its network is left with those, by the data's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xmodal_kd.runtime.errors import UserError, nearest

from .denoiser import Denoiser

KEY = "data.teacher_classes"


def keep_classes(model: Denoiser, folder: Path, names: Sequence[str], told: Mapping[str, int | str]) -> None:
    """Leave a network the classes that the data have, in their order; that of none stays the last.

    Args:
        names: of the data's classes.
        told: of each the number or the name that it has in the teacher. Those of the same name need not be told.

    Raises:
        UserError: a class of the data that is not told, or of the teacher that is not there.
    """
    net: Any = model.net
    assert model.classes is not None
    if unknown := next((name for name in told if name not in names), None):
        raise UserError(f"{KEY}: the data have no class {unknown!r}{nearest(unknown, names)}")
    kept = [_number(model, folder, name, told.get(name)) for name in names]
    none = [] if model.null is None else [int(model.null[0])]
    tables = _tables(net)
    if not tables:
        raise UserError(f"{folder}: a {type(net).__name__} has no table of its classes, which {KEY} needs")
    for owner, name in tables:
        table: nn.Embedding = getattr(owner, name)
        rows = table.weight.detach()[torch.tensor([*kept, *none])]
        setattr(owner, name, nn.Embedding.from_pretrained(rows.clone(), freeze=False))
        if hasattr(owner, "num_classes"):
            owner.num_classes = len(kept)
    for key in ("num_class_embeds", "num_embeds_ada_norm"):
        if net.config.get(key) is not None:
            net.register_to_config(**{key: len(kept) + (len(none) if key == "num_class_embeds" else 0)})
    model.classes, model.class_names = len(kept), tuple(names)
    model.null = torch.tensor([len(kept)]) if none else None


def _number(model: Denoiser, folder: Path, name: str, told: int | str | None) -> int:
    known = model.class_names or ()
    if isinstance(told, int):
        if not 0 <= told < (model.classes or 0):
            raise UserError(f"{KEY}: {name}: {told}: {folder} numbers its classes from 0 to {(model.classes or 1) - 1}")
        return told
    wanted = name if told is None else told
    if wanted in known:
        return known.index(wanted)
    if known:
        raise UserError(f"{folder}: it knows no class {wanted!r}{nearest(wanted, known)}: say which it is in {KEY}")
    raise UserError(
        f"{folder}: its {model.classes} classes have no names, the data have {name!r}: say which of them it is in "
        f"{KEY}, as {{{name}: 0}}"
    )


def _tables(net: Any) -> list[tuple[Any, str]]:
    """Where a network keeps a row for each class: the module, and the name in it."""
    if isinstance(getattr(net, "class_embedding", None), nn.Embedding):
        return [(net, "class_embedding")]
    return [(module, "embedding_table") for module in net.modules() if hasattr(module, "embedding_table")]


__all__ = ["KEY", "keep_classes"]
