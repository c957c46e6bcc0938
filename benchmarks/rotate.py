"""Teacher, control and student for every test speaker in turn, several seeds, at a short and a long budget.

    python benchmarks/rotate.py --data recordings --out runs/rotate --jobs 2

One speaker tests, the next develops, the others train. The teacher of a rotation is trained once and shared by its
seeds. Every cell is a run of the recipe through the command line, so a stopped benchmark goes on where it was. Writes
``benchmarks/results/fsdd.json`` with one entry a cell, and prints the tables of ``recipes/RESULTS.md``.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from cells import run, shown, t_interval

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "yweweler")
RECIPE = "speech/fsdd"
ROLES = ("teacher", "control", "student")


def splits(test: str) -> list[str]:
    """``--set`` arguments of the rotation in which `test` is the test speaker."""
    at = SPEAKERS.index(test)
    dev = SPEAKERS[(at + 1) % len(SPEAKERS)]
    train = [s for s in SPEAKERS if s not in (test, dev)]
    return [f"data.train_speakers=[{', '.join(train)}]", f"data.dev_speakers=[{dev}]", f"data.test_speakers=[{test}]"]


def teacher(args: argparse.Namespace, test: str) -> None:
    out = args.out / f"teacher-{test}"
    if not (out / "teacher" / "card.json").exists():
        run(RECIPE, [f"data.path={args.data}", *splits(test), *args.set], out, "--only", "teacher")


def cell(args: argparse.Namespace, test: str, seed: int, budget: str) -> dict[str, Any]:
    out = args.out / f"{test}-{budget}-{seed}"
    if not (out / "report.json").exists():
        path = args.out / f"teacher-{test}" / "teacher"
        own = [f"data.path={args.data}", f"seed={seed}", f"train.steps={args.budgets[budget]}"]
        run(RECIPE, [*own, *splits(test), *args.set, f"teacher={{path: {path}}}"], out)
    report = json.loads((out / "report.json").read_text())
    return {
        "test": test, "seed": seed, "budget": budget, "steps": args.budgets[budget],
        "gap_closed": report["gap_closed"], "reason": report["reason"],
        "wer": {role: report["roles"][role]["metrics"]["wer"] for role in ROLES},
        "ser": {role: report["roles"][role]["metrics"]["ser"] for role in ROLES},
        "dev_wer": {role: report["roles"][role]["dev_metrics"]["wer"] for role in ROLES},
        "export": {name: entry["metrics"]["wer"] for name, entry in report["export"].items() if "metrics" in entry},
        "bytes": {name: entry["bytes"] for name, entry in report["export"].items() if "bytes" in entry},
        "cost": {role: report["cost"][role] for role in ("control", "student")},
        "parameters": {role: report["roles"][role]["parameters"] for role in ROLES},
        "flops_per_sample": {role: report["roles"][role]["flops_per_sample"] for role in ROLES},
        "versions": report["versions"], "threads": report["threads"],
    }  # fmt: skip


def table(cells: list[dict[str, Any]], budget: str) -> str:
    """Word error rates in percent by test speaker (mean over seeds), and overall with a paired t-interval."""
    mine = [c for c in cells if c["budget"] == budget]
    lines = ["| test speaker | teacher | control | student | control - student |", "| --- | --- | --- | --- | --- |"]
    for speaker in SPEAKERS:
        rows = [c for c in mine if c["test"] == speaker]
        means = {role: 100 * float(np.mean([c["wer"][role] for c in rows])) for role in ROLES}
        difference = t_interval([100 * (c["wer"]["control"] - c["wer"]["student"]) for c in rows])
        row = " | ".join(f"{means[role]:.1f}" for role in ROLES)
        lines.append(f"| {speaker} | {row} | {shown(difference)} |")
    seeds = sorted({c["seed"] for c in mine})
    overall = {
        role: [100 * float(np.mean([c["wer"][role] for c in mine if c["seed"] == s])) for s in seeds] for role in ROLES
    }
    difference = t_interval([a - b for a, b in zip(overall["control"], overall["student"], strict=True)])
    row = " | ".join(
        f"{t_interval(overall[role])[0]:.1f}" if role == "teacher" else shown(t_interval(overall[role]))
        for role in ROLES
    )
    lines.append(f"| **all five** | {row} | {shown(difference)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with recordings/ of the digits")
    parser.add_argument("--out", type=Path, default=Path("runs/rotate"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--short", type=int, default=500)
    parser.add_argument("--long", type=int, default=2500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "fsdd.json")
    args = parser.parse_args()
    args.data, args.out = args.data.resolve(), args.out.resolve()
    args.budgets = {"short": args.short, "long": args.long}
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda speaker: teacher(args, speaker), SPEAKERS))
        keys = [(s, seed, budget) for budget in args.budgets for seed in args.seeds for s in SPEAKERS]
        cells = list(pool.map(lambda key: cell(args, *key), keys))
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps({"overrides": args.set, "cells": cells}, indent=1) + "\n")
    for budget, steps in args.budgets.items():
        print(f"\n{budget}: {steps} steps\n\n{table(cells, budget)}")


if __name__ == "__main__":
    main()
