"""Cells of a comparison that run in the test's own process."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any

from xmodal_kd.cli.main import call
from xmodal_kd.compare import Pool, Settings

#: A recipe of toy rows, cut short.
SHORT = ("train.steps=3", "teacher.train.steps=3", "trackers=[]")


class Inside:
    """A cell run in this process, to its end; what it prints goes into its log."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []

    def __call__(self, arguments: Sequence[str], log: IO[bytes], env: dict[str, str], lock: int) -> Any:
        self.commands.append(list(arguments))
        self.environments.append(env)
        text = io.StringIO()
        with redirect_stdout(text), redirect_stderr(text):
            status = call(list(arguments))
        log.write(text.getvalue().encode())
        return Ended(status)


class Ended:
    def __init__(self, status: int | None) -> None:
        self.status = status

    def poll(self) -> int | None:
        return self.status

    def send_signal(self, number: int) -> None:
        self.status = -number


def pool(out: Path, launch: Any) -> Pool:
    return Pool(Settings(out, imports=("toy",), quiet=True), launch)
