"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

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
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert failed == 0


def test_there_are_examples() -> None:
    """Else the test above would pass for a finder that finds nothing."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test.name for name in ("", ".signals", ".capture", ".streams", ".objective", ".stats")
             for test in finder.find(importlib.import_module(f"xmodal_kd{name}")) if test.examples]  # fmt: skip
    assert len(found) >= 6 and len(MODULES) > 20
