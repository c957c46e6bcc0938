"""What is found by folder: modalities, the recipes that ship. Light, so that the program answers Tab at once."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from .errors import UserError, nearest


def modality_names() -> list[str]:
    folders = importlib.import_module("xmodal_kd.modalities").__path__
    return sorted(m.name for m in pkgutil.iter_modules(folders) if m.ispkg)


def modality(name: str) -> Any:
    """The package of a modality, by folder name. Light: heavy imports wait until its adapter is asked for."""
    if name not in modality_names():
        raise UserError(f"unknown modality {name!r}{nearest(name, modality_names())}")
    return importlib.import_module(f"xmodal_kd.modalities.{name}")


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    roots = map(Path, importlib.import_module("xmodal_kd.recipes").__path__)
    return {str(p.relative_to(root).with_suffix("")): p for root in roots for p in sorted(root.rglob("*.yaml"))}


def in_checkout(path: Path) -> Path | None:
    """A relative path of a shipped recipe as it lies in the checkout that the recipes are of; None without one."""
    some = next(iter(shipped().values()), None)
    if path.is_absolute() or some is None:
        return None
    root = next((root for root in some.resolve().parents if (root / "recipes").is_dir()), None)  # nor any folder above
    return None if root is None or not (root / path).exists() else root / path
