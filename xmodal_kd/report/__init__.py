"""What a run says at its end: ``report.json`` for programs, ``report.md`` and ``report.html`` for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.checkpoint import read_json, write_bytes, write_json
from ..runtime.errors import UserError
from .content import begun, content
from .html import html
from .index import find_runs, write_index
from .markdown import markdown
from .summary import show_runs

__all__ = ["begun", "content", "find_runs", "html", "load", "markdown", "show_runs", "write", "write_index"]

#: What the first versions did not write.
OLDER: dict[str, Any] = {"curve": [], "facts": {}, "pictures": {}, "gain": None}


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """All reports into `folder`, which holds the run: the page shows its logs and pictures."""
    write_json(folder / "report.json", found)
    write_bytes(folder / "report.md", markdown(found).encode())
    write_bytes(folder / "report.html", html(found, folder).encode())


def load(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    if not path.is_file():
        raise UserError(f"{folder} has no report.json: is it a finished run?")
    found: dict[str, Any] = read_json(path)
    return OLDER | found
