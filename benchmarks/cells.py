"""What benchmarks of several runs share: a run as a process of its own, and the interval over seeds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from xmodal_kd.report.statistics import Interval, t_interval


def run(recipe: str, sets: Iterable[str], out: Path, *more: str) -> None:
    """One run of a recipe; one that is finished is not repeated, one that was stopped goes on."""
    command = [sys.executable, "-m", "xmodal_kd", "run", recipe, "--out", str(out), "--quiet", *more]
    if (out / "state.json").exists():
        command.append("--resume")
    for item in sets:
        command += ["--set", item]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    print("done", out, flush=True)


def shown(interval: Interval, digits: int = 1) -> str:
    mean, low, high = ("–" if value is None else f"{value:.{digits}f}" for value in interval)
    return f"{mean} [{low}, {high}]"


__all__ = ["run", "shown", "t_interval"]
