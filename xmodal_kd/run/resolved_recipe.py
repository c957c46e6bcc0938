"""A recipe with all its defaults, as a run folder keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..adapter.adapter import adapter_class
from ..recipe.recipe import Loaded, M
from .roles import compressions, scheme_of


def resolved(loaded: Loaded) -> dict[str, Any]:
    """The recipe with all defaults and with absolute paths, so that a run folder can be used from anywhere."""
    content = loaded.recipe.model_dump(mode="json", exclude={"out", "on"})  # an address may hold a secret
    data = loaded.validate(adapter_class(loaded.recipe.modality).Data, loaded.recipe.data, ("data",))
    content["data"] = _absolute(data).model_dump(mode="json")
    if loaded.recipe.cache is not None:
        content["cache"] = _absolute(loaded.recipe.cache).model_dump(mode="json")
    if loaded.recipe.teacher is not None:
        content["teacher"] = _absolute(loaded.recipe.teacher).model_dump(mode="json")
    if (scheme := scheme_of(loaded)) is not None:
        sections = scheme[0].sections(scheme[1]).items()
        kind = adapter_class(loaded.recipe.modality).Data
        content["scheme"]["params"] |= {
            key: _absolute(loaded.validate(kind, one, ("scheme", "params", key))).model_dump(mode="json")
            for key, one in sections
        }
    for number, (_, params) in enumerate(compressions(loaded).ways):
        content["compress"][number]["params"] = _absolute(params).model_dump(mode="json")
    for name, teacher in loaded.recipe.teachers.items():
        content["teachers"][name] = _absolute(teacher).model_dump(mode="json")
    return content


def _absolute(section: M) -> M:
    return section.model_copy(update={name: _with_absolute_paths(value) for name, value in section})


def _with_absolute_paths(value: Any) -> Any:
    if isinstance(value, Path):
        return value.expanduser().absolute()
    if isinstance(value, tuple):
        return tuple(map(_with_absolute_paths, value))
    return _absolute(value) if isinstance(value, BaseModel) else value
