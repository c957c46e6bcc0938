"""An extension of griffe, which reads docstrings for the site: doctests stand in fences, so that they read as code."""

from __future__ import annotations

from typing import Any

import griffe
from docs_site import fenced  # type: ignore[import-not-found]  # its folder is on the path there


class FencedDoctests(griffe.Extension):  # type: ignore[misc]  # griffe is of the site's own environment
    """Fences the doctests of every object that has a docstring."""

    def on_object(self, *, obj: Any, **more: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
