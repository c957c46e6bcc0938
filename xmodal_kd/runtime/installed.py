"""What is installed and what was asked for, by the packages' own metadata: nothing is imported, nothing can fail to."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PACKAGE = __name__.partition(".")[0]
PROJECT = PACKAGE.replace("_", "-")
#: Of a checkout: what was tested together.
LOCK = "requirements/lock.txt"


@dataclass(frozen=True)
class Asked:
    """A package that this one asks for."""

    project: str
    """As pip names it."""
    specifier: SpecifierSet
    extra: str | None
    """The extra that brings it; None comes with every installation."""
    here: bool
    """Whether it is for this Python and this platform at all."""


@dataclass(frozen=True)
class Wanted:
    """All that this package asks for: of Python, and of other packages in the order of the project file."""

    python: SpecifierSet
    packages: tuple[Asked, ...]

    def extras(self) -> dict[str, list[Asked]]:
        """Packages by extra; an extra that only names other extras is left out."""
        found: dict[str, list[Asked]] = {}
        for one in self.packages:
            if one.extra is not None:
                found.setdefault(one.extra, []).append(one)
        return found

    def core(self) -> list[Asked]:
        return [one for one in self.packages if one.extra is None]


def version(project: str) -> str | None:
    """The installed version, with its build (``2.11.0+cu128``); None where it is not installed."""
    try:
        return metadata.version(project)
    except metadata.PackageNotFoundError:
        return None


def needs(project: str, other: str) -> SpecifierSet | None:
    """The versions of `other` that an installed project says it takes; None where it says nothing."""
    try:
        lines = metadata.requires(project) or []
    except metadata.PackageNotFoundError:
        return None
    for line in map(Requirement, lines):
        if line.name == other and (line.marker is None or line.marker.evaluate({"extra": ""})):
            return line.specifier
    return None


def wanted() -> Wanted:
    """What a checkout's ``pyproject.toml`` asks for, else what the installed package's metadata do."""
    python, lines = _project_file() or _metadata()
    return Wanted(SpecifierSet(python), tuple(one for extra, line in lines for one in _asked(extra, line)))


def extra_of(project: str) -> str | None:
    """The first extra that brings a package; None where it comes with every installation or not at all."""
    return next((one.extra for one in wanted().packages if one.project == project), None)


def fits_here(project: str) -> bool:
    """Whether a package that this one asks for can be had for this Python and platform, by its marker."""
    asked = [one.here for one in wanted().packages if one.project == project]
    return any(asked) or not asked


def _asked(extra: str | None, line: str) -> Iterator[Asked]:
    need = Requirement(line)
    if need.name != PROJECT:
        here = need.marker is None or need.marker.evaluate({"extra": extra or ""})
        yield Asked(need.name, need.specifier, extra, here)


def checkout() -> Path | None:
    """The folder of the project where this package runs out of one, None where it was installed without."""
    folder = Path(next(iter(importlib.import_module(PACKAGE).__path__))).parent
    path = folder / "pyproject.toml"
    if not path.is_file() or _project(path).get("name") != PROJECT:
        return None
    return folder


def locked() -> dict[str, str] | None:
    """The versions that a checkout's lock has for this Python and platform, by project; None where there is none."""
    root = checkout()
    if root is None or not (root / LOCK).is_file():
        return None
    lines = (root / LOCK).read_text(encoding="utf-8").splitlines()
    needs = [Requirement(line) for line in lines if re.match(r"[A-Za-z0-9]", line)]
    here = [need for need in needs if need.marker is None or need.marker.evaluate()]
    return {need.name: one.version for need in here for one in need.specifier if one.operator == "=="}


def _project(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    return found


def _project_file() -> tuple[str, list[tuple[str | None, str]]] | None:
    root = checkout()
    if root is None:
        return None
    project = _project(root / "pyproject.toml")
    lines: list[tuple[str | None, str]] = [(None, line) for line in project["dependencies"]]
    lines += [(extra, line) for extra, those in project["optional-dependencies"].items() for line in those]
    return project["requires-python"], lines


def _metadata() -> tuple[str, list[tuple[str | None, str]]]:
    try:
        found = metadata.metadata(PROJECT)
    except metadata.PackageNotFoundError:
        return "", []
    lines: list[tuple[str | None, str]] = []
    for line in metadata.requires(PROJECT) or []:
        extra = re.search(r"extra == ['\"]([\w.-]+)['\"]", line)
        lines.append((extra[1] if extra else None, line))
    return str(found.json.get("requires_python", "")), lines


__all__ = [
    "LOCK",
    "PROJECT",
    "Asked",
    "Wanted",
    "checkout",
    "extra_of",
    "fits_here",
    "locked",
    "needs",
    "version",
    "wanted",
]
