"""What the commands that look at scans do with those they are given. Nothing heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import typer
from rich.console import Console

from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.progress import each, named

from ..data.suffixes import IN_FOLDERS


class Work(Protocol):
    """What is done with one scan, whose results lie `below` the folder of all."""

    def __call__(self, path: Path, *, below: Path) -> dict[str, Any]: ...


def per_scan(
    places: Mapping[Path, Path], empty: Sequence[str], errors: Console, doing: str, undone: str, work: Work
) -> Iterator[dict[str, Any]]:
    """What comes of each scan; one that fails is named on `errors`, and after all of them the status is 2.

    Args:
        places: the scans, and below which folder the results of each lie, as `scans_named` has them.
        empty: lines of folders without any.
        doing: what the progress says.
        undone: what is said of a scan that nobody thought of.
    """
    for line in empty:
        _complain(errors, line)
    failed = bool(empty)
    for path in each(list(places), doing, errors):
        try:
            result = work(path, below=places[path])
        except UserError as error:
            _complain(errors, named(path, error))
            failed = True
            continue
        except (ValueError, ArithmeticError, LookupError, MemoryError) as error:
            # whatever a file that nobody thought of leads to: the others go on
            said = str(error).splitlines() or ["no more is known"]
            _complain(errors, f"{path}: {undone} ({type(error).__name__}: {said[0]}): leave it out")
            failed = True
            continue
        yield result
    if failed:
        raise typer.Exit(2)


def _dangles(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def same_file(one: Path, other: Path) -> bool:
    """Whether two names are of one file; a link that leads round to itself is none but itself."""
    return os.path.realpath(one) == os.path.realpath(other)


def _complain(errors: Console, line: str) -> None:
    errors.print(line, style="red", soft_wrap=True, markup=False, highlight=False)


def scans_named(scans: Sequence[Path], ends: tuple[str, ...] = IN_FOLDERS) -> tuple[dict[Path, Path], list[str]]:
    """The files named, and those in the folders named, each with the folder of its results below ``--out``, in order;
    and a line for each folder without any. A missing file is left for the reader to complain.

    Args:
        ends: of the names of what is looked for in folders.
    """
    found: dict[Path, Path] = {}
    empty = []
    several = sum(path.is_dir() for path in scans) > 1
    for path in scans:
        if not path.is_dir():
            found[path] = Path()
            continue
        # a link to nothing, as where a disk is not mounted, is no scan less: it is named as one that cannot be read
        inside = sorted(p for p in path.rglob("*") if p.name.lower().endswith(ends) and (p.is_file() or _dangles(p)))
        if not inside:
            what = "scans" if ends == IN_FOLDERS else "photographs"
            empty.append(f"{path}: no {what} in this folder (looked for {', '.join(ends)})")
        top = Path(path.resolve().name) if several else Path()
        found |= {scan: top / scan.relative_to(path).parent for scan in inside}
    return found, empty
