"""The three standard streams as a program may find them: closed, full, or of an encoding that lacks letters."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from ..runtime.errors import UserError


class NobodyReads(Exception):
    """Whoever read standard output has gone, as `head` does: there is no more to say, and nothing is wrong."""

    status = 141  # what a shell calls SIGPIPE


class Output:
    """Standard output that calls itself by name when it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError as error:
            lacking, encoding = error.object[error.start : error.start + 1], self._stream.encoding
            raise UserError(
                f"standard output: {encoding} has no {lacking.encode('unicode_escape').decode()!r}: set PYTHONUTF8=1"
            ) from error
        except OSError as error:
            raise _named(error) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise _named(error) from error


def open_closed() -> None:
    """Give streams that were closed a place that takes all and has nothing.

    Otherwise the next file that is opened has a stream's number, and what C code says to that goes into the file.
    """
    for name, mode, number in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _named(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)  # what is still buffered is written when Python ends
        os.dup2(nowhere, sys.__stdout__.fileno() if sys.__stdout__ else 1)
        os.close(nowhere)
        return NobodyReads()
    return OSError(error.errno, error.strerror, "standard output")


__all__ = ["NobodyReads", "Output", "open_closed"]
