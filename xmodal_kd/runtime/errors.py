"""The two ways a command ends badly. Both print one line; neither shows a traceback unless ``--debug``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: names the key, file or sample and what to do. Exit status 2."""


class RunError(Exception):
    """A run or a check failed although its input was well formed. Exit status 1."""


#: Names that an error lists at most.
SHOWN = 40


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """`` (nearest: a, b)`` for a misspelt `name`, or what is known when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f" (nearest: {', '.join(close)})"
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f" (known: {', '.join(known[:SHOWN])}{more})" if known else ""
