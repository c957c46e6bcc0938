"""What a run says at its end: ``report.json`` for programs, ``report.md`` and ``report.html`` for people.

Also the cards of saved models and the statistics behind intervals. May import ``recipe`` and what it may. Public are
the keys of ``report.json``, not the functions. What draws a page imports no torch; what makes a report (``content``)
does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.whole_files import write_bytes, write_json
from .html import html
from .index import find_runs, write_index
from .markdown import markdown
from .received import read, shown
from .summary import show_runs

PAGE = "README.md#what-is-in-the-box"

__all__ = [
    "find_runs",
    "html",
    "load",
    "markdown",
    "rewrite",
    "show_runs",
    "shown",
    "write",
    "write_index",
]

#: What the first versions did not write.
OLDER: dict[str, Any] = {"curve": [], "facts": {}, "pictures": {}, "gain": None}


# docs/decisions/010-pages-and-cards.md
def write(folder: Path, found: Mapping[str, Any]) -> None:
    """All reports into `folder`, which holds the run: the page shows its logs and pictures."""
    write_json(folder / "report.json", found)
    write_bytes(folder / "report.md", markdown(found).encode())
    write_bytes(folder / "report.html", html(found, folder).encode())


def load(folder: Path) -> dict[str, Any]:
    """The report of a run, whose parts are what a run writes. Raises `UserError` where they are not."""
    return OLDER | read(folder)


def rewrite(folder: Path) -> dict[str, Any]:
    """Both pages of a finished run anew; returns its report. Raises `UserError` for what cannot be shown."""
    found = load(folder)
    with shown(folder):
        write(folder, found)
    return found
