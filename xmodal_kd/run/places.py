"""Every place that a run will write to, opened for writing before it computes anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..recipe.recipe import Loaded
from ..runtime.device import check_trackers
from ..runtime.errors import UserError
from ..runtime.whole_files import writable
from ..teacher_cache.session import cache_folder
from ..teacher_cache.store import Store


def check_places(loaded: Loaded, out: Path, roles: list[str]) -> None:
    """Raises `UserError` for a folder that a run in `out` could not write, by the key that names it."""
    check_trackers(loaded.recipe.trackers)
    for key, folder in _folders(loaded, out, roles):
        writable(folder, key)
    for key, file in _files(out, roles):
        if file.is_dir():
            raise UserError(f"{key}: {file} cannot be written: it is a folder: remove it, or choose another {key}")
    if loaded.recipe.cache is not None:
        Store(cache_folder(loaded.recipe, out)).entries()  # an environment that is there can be opened


def _folders(loaded: Loaded, out: Path, roles: list[str]) -> Iterator[tuple[str, Path]]:
    yield "--out", out
    yield "--out", out / "logs"
    for role in roles:
        yield "--out", out / "checkpoints" / role
        yield "--out", out / role
    if loaded.recipe.cache is not None:
        key = "--out" if loaded.recipe.cache.path is None else "cache.path"
        yield key, cache_folder(loaded.recipe, out) / "rank-0"


def _files(out: Path, roles: list[str]) -> Iterator[tuple[str, Path]]:
    for name in ("state.json", "recipe.yaml", "report.json", "report.md", "report.html", "panels.json"):
        yield "--out", out / name
    for role in roles:
        yield "--out", out / role / "README.md"


__all__ = ["check_places"]
