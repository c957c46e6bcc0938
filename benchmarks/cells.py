"""What benchmarks of several runs share: a run as a process of its own, and the interval over seeds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats


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


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval over seeds."""
    mean, n = float(np.mean(values)), len(values)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return mean, mean - half, mean + half


def shown(interval: tuple[float, float, float], digits: int = 1) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in interval)
    return f"{mean} [{low}, {high}]"
