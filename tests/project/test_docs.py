"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import xmodal_kd
import xmodal_kd.modalities

MODULES = sorted(
    {
        module.name
        for package in (xmodal_kd, xmodal_kd.modalities)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")
    }
    | {"xmodal_kd"}
)
ROOT = Path(__file__).parents[2]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert failed == 0


def test_there_are_examples() -> None:
    """Else the test above would pass for a finder that finds nothing."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    homes = ("", ".signals.signals", ".signals.capture", ".runtime.random_streams", ".objective.objective")
    found = [
        test.name
        for name in (*homes, ".report.statistics")
        for test in finder.find(importlib.import_module(f"xmodal_kd{name}"))
        if test.examples
    ]
    assert len(found) >= 6 and len(MODULES) > 20


#: Contracts that somebody else fills (docs/own_models.md and the modalities do), tables, and what takes a page to show.
WITHOUT = {"LOSSES", "METHODS", "Adapter", "Batch", "Context", "Distil", "Engine", "LossOut", "Method", "RunError",
           "Source", "UserError", "__version__", "loss", "make_accelerator"}  # fmt: skip


def test_public_names_show_how_they_are_used() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    shown = {name for name in xmodal_kd.__all__ if name not in WITHOUT and _examples(finder, name)}
    assert shown == set(xmodal_kd.__all__) - WITHOUT
    pages = "".join(page.read_text() for page in (ROOT / "docs/own_models.md", ROOT / "README.md"))
    assert {"Distil", "Engine", "make_accelerator"} <= {name for name in WITHOUT if f"{name}(" in pages}


def _examples(finder: doctest.DocTestFinder, name: str) -> int:
    return sum(len(test.examples) for test in finder.find(getattr(xmodal_kd, name), name))
