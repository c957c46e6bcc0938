"""The command line in a process of its own, with a limit of time and memory: how it ended and what it said."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORKS: Any = multiprocessing.get_context("forkserver")
MODALITIES = [f"xmodal_kd.modalities.{name}.adapter" for name in ("speech", "points", "diffusion")]
PRELOADED = [
    "toy",
    "xmodal_kd.run.runner",
    "xmodal_kd.cli.main",
    "xmodal_kd.report",
    "xmodal_kd.run.rerun",
    "xmodal_kd.compare.run_diff",
    *MODALITIES,
    "torch.utils.tensorboard",
]
FORKS.set_forkserver_preload(PRELOADED)


def fork_here() -> None:
    """Import here what all commands need, and fork from this process, which must have no threads of its own."""
    global FORKS
    for name in PRELOADED:
        importlib.import_module(name)
    FORKS = multiprocessing.get_context("fork")


#: Bytes of address space a process may have; a command that asks for more must say so in one line.
MEMORY = 12 << 30
#: What a command may end with: done, failed, refused, interrupted.
PROMISED = (0, 1, 2, 130)


@dataclass(frozen=True)
class Said:
    """How a command ended: its status, minus the signal that killed it, None where it took too long."""

    status: int | None
    errors: str
    output: str

    def short(self) -> str | None:
        """What of it is not as promised: a status, an error of Python's, or more than one line of it."""
        if self.status is None:
            return "it did not end in time"
        if self.status not in PROMISED:
            return f"status {self.status}"
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        if "Traceback (most recent call last)" in self.errors:
            return "a traceback"
        if self.status in (1, 2) and (len(lines) > 1 or not self.errors.strip()):
            return f"status {self.status} with {len(lines)} lines of error"
        if any("(--debug shows where)" in line for line in lines):
            return f"a bare error: {lines[-1][:200]}"
        return None


def command(arguments: list[str], before: Callable[..., None] | None = None, *args: Any, seconds: float = 90.0) -> Said:
    """Run ``xmodal-kd`` with `arguments`; `before` is called in its process first."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_child, args=(theirs, arguments, before, args))
    process.start()
    theirs.close()
    errors = output = ""
    late = not ours.poll(seconds)
    if not late:
        with contextlib.suppress(EOFError):  # killed
            errors, output = ours.recv()
    if late:
        process.kill()
    process.join()
    return Said(None if late else process.exitcode, errors, output)


def _child(pipe: Any, arguments: list[str], before: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    import warnings

    from xmodal_kd.cli.main import call

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(os.environ.get("TORTURE_FOLDER", "."))
    sys.stderr, sys.stdout = io.StringIO(), io.StringIO()
    from xmodal_kd.runtime import progress

    progress.console.file = sys.stderr
    if before is not None:
        before(*args)
    try:
        status = call(arguments)
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc(file=sys.stderr)
        status = 1
    pipe.send((sys.stderr.getvalue()[-20_000:], sys.stdout.getvalue()[-20_000:]))
    pipe.close()
    os._exit(status)


def run_of(recipe: Path | str, out: Path, *more: str) -> list[str]:
    return ["run", str(recipe), "--out", str(out), "--allow-import", "toy", "--device", "cpu", "--quiet", *more]
