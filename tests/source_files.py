"""The Python files of the core and of the modalities, for tests that hold for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE, ADAPTERS, RECIPES = ROOT / "xmodal_kd", ROOT / "modalities", ROOT / "recipes"


def sources(folder: Path) -> Iterator[Path]:
    """Python files below `folder`, not through links (an editable checkout may link its sister packages)."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from sources(path)
        elif path.suffix == ".py":
            yield path


CORE_FILES, ADAPTER_FILES = list(sources(CORE)), list(sources(ADAPTERS))


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))
