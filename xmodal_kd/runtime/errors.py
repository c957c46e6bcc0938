"""The two ways a command ends badly. Both print one line; neither shows a traceback unless ``--debug``."""

from __future__ import annotations

import difflib
import sys
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


def page_of(error: BaseException) -> str | None:
    """The page of the docs, with its anchor, that tells more of what was refused.

    A package says which in ``PAGE``; the innermost one counts that `error` was raised in.
    """
    trace, names = error.__traceback__, list[str]()
    while trace is not None:
        names.append(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    for name in reversed(names):
        parts = name.split(".")
        for n in range(len(parts), 0, -1):
            page: str | None = getattr(sys.modules.get(".".join(parts[:n])), "PAGE", None)
            if page is not None:
                return page
    return None


def with_page(error: BaseException) -> str:
    """What `error` says on one line, and behind it the page that tells more, unless it names one itself."""
    text, page = " ".join(str(error).split()), page_of(error)
    return text if page is None or ".md" in text else f"{text} (see {page})"
