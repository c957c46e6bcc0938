"""Processes of Python that this one starts: of the same packages, and none of the folder that it was called in."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def python(*arguments: str) -> list[str]:
    """A command. ``-P``: a ``diffusers.py`` that happens to lie in the current folder is not imported."""
    return [sys.executable, "-P", *arguments]


def with_package(environment: dict[str, str] | None = None) -> dict[str, str]:
    """The environment, ours if none is given, in which this very package is found whether it is installed or not."""
    found = dict(os.environ if environment is None else environment)
    root = str(Path(__file__).resolve().parents[2])
    found["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [found.get("PYTHONPATH")])])
    return found


__all__ = ["python", "with_package"]
