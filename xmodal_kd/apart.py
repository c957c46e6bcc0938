"""A question asked in a process of its own, so that a library which ends its process ends no more than the answer."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

#: Seconds that an answer may take: a first import from a slow disk takes half a minute.
LONGEST = 300.0
MARK = "answer: "


@dataclass(frozen=True)
class Ended:
    """A process that gave no answer."""

    status: int | None
    """Its exit status, below zero the signal that ended it; None: it took too long and was stopped."""
    said: str = ""
    """The last line that it wrote to stderr."""

    @property
    def signal(self) -> str | None:
        """``SIGSEGV`` where that ended it, None where it ended by itself."""
        if self.status is None or self.status >= 0:
            return None
        return signal.Signals(-self.status).name if -self.status in set(signal.Signals) else f"signal {-self.status}"

    def __str__(self) -> str:
        if self.status is None:
            return f"gave no answer within {LONGEST:.0f} s"
        if self.signal is not None:
            return f"was ended by {self.signal}"
        return f"ended its process with status {self.status}" + (f" ({self.said})" if self.said else "")


def ask(function: str, *arguments: str) -> Any | Ended:
    """What ``package.module:function`` answers to `arguments`, as JSON gives it back.

    The process looks for modules where this one does, and computes with one thread. It may print what it likes.
    """
    code = f"import json, sys; sys.path[:] = json.loads(sys.argv[1])\nfrom {__name__} import tell; tell(*sys.argv[2:])"
    command = [sys.executable, "-P", "-c", code, json.dumps(sys.path), function, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=LONGEST, stdin=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ended(None)
    told = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode == 0 and told:
        return json.loads(told[-1])
    said = [" ".join(line.split()) for line in done.stderr.splitlines() if line.strip()]
    return Ended(done.returncode, said[-1] if said else "")


def tell(function: str, *arguments: str) -> None:
    """In the process of its own: print the answer, on a line behind whatever packages have printed."""
    module, _, name = function.partition(":")
    print(f"\n{MARK}{json.dumps(getattr(importlib.import_module(module), name)(*arguments))}", flush=True)


__all__ = ["Ended", "ask", "tell"]
