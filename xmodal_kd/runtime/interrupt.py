"""Stopping early: Ctrl-C, SIGTERM, a closed terminal or the time that was given, noticed at the next step boundary."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic


class Interrupted(Exception):
    """Training stopped early at a step boundary, with a checkpoint there."""

    def __init__(self, step: int, steps: int, reason: str) -> None:
        super().__init__(f"{reason} at step {step} of {steps}")
        self.reason = reason


class Stop:
    """Whether to stop, and why. The clock starts when it is made."""

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = monotonic() + max_seconds if max_seconds is not None else float("inf")
        self._signalled = False

    @property
    def reason(self) -> str | None:
        if self._signalled:
            return "interrupted"
        return "the time given by --max-minutes is up" if monotonic() > self._deadline else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch Ctrl-C, SIGTERM and, but under nohup, SIGHUP inside the block; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: object) -> None:
            if self._signalled:
                raise KeyboardInterrupt
            self._signalled = True

        caught = [signal.SIGINT, signal.SIGTERM]
        hung_up = getattr(signal, "SIGHUP", None)  # not on every system
        if hung_up is not None and signal.getsignal(hung_up) is not signal.SIG_IGN:
            caught.append(hung_up)
        before = {number: signal.signal(number, stop) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
