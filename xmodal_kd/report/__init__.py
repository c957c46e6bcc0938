"""What a run says at its end: ``report.json`` for programs, ``report.md`` for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import read_json, write_bytes, write_json
from ..errors import UserError
from .content import content
from .markdown import markdown

__all__ = ["content", "load", "markdown", "write"]


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """Both reports into `folder`."""
    write_json(folder / "report.json", found)
    write_bytes(folder / "report.md", markdown(found).encode())


def load(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    if not path.is_file():
        raise UserError(f"{folder} has no report.json: is it a finished run?")
    found: dict[str, Any] = read_json(path)
    return found
