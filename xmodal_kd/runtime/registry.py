"""Names to things. Duplicates fail at import, misses offer the nearest names, import paths need permission."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from .errors import UserError, nearest

T = TypeVar("T")

#: Packages whose classes a recipe may name as ``package.module:Class`` (the CLI's ``--allow-import``).
allowed_imports: set[str] = set()


def import_object(path: str, kind: str) -> object:
    """The object behind ``package.module:name``. A recipe is data, so its package must have been allowed."""
    module, _, name = path.partition(":")
    package = module.split(".")[0]
    if package not in allowed_imports:
        raise UserError(f"{kind} {path!r} would import {package!r}: allow it with --allow-import {package}")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{kind} {path!r} cannot be imported: {error}") from error


class Registry(Generic[T]):
    """A table of one kind of thing.

    Third parties add to it by the entry-point group ``xmodal_kd.<kind>``, with underscores for spaces.

    Args:
        needs: attributes without which an object of an import path is none of the kind.

    >>> shapes = Registry("shape")
    >>> shapes.add("round", "a circle")
    >>> shapes["round"], list(shapes)
    ('a circle', ['round'])
    """

    def __init__(self, kind: str, needs: tuple[str, ...] = ()) -> None:
        self.kind, self.needs = kind, needs
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        def add(item: T) -> T:
            self.add(name, item)
            return item

        return add

    def add(self, name: str, item: T) -> None:
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._items[name] = item

    def __getitem__(self, name: str) -> T:
        if name in self._items:
            return self._items[name]
        if ":" in name:
            found = import_object(name, self.kind)
            if lacking := [attribute for attribute in self.needs if not hasattr(found, attribute)]:
                raise UserError(f"{name} is no {self.kind}: it has no {lacking[0]}: docs/own_models.md shows one")
            return found  # type: ignore[return-value]
        for entry in entry_points(group=f"xmodal_kd.{self.kind.replace(' ', '_')}", name=name):
            return entry.load()  # type: ignore[no-any-return]
        raise UserError(f"unknown {self.kind} {name!r}{nearest(name, self._items)}")

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
