"""The command ``compare`` behind its options."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from ..runtime.errors import UserError
from ..runtime.progress import console
from . import Plan, Pool, Search, Settings, Stopped, compare, table

EQUAL, LAUNCHERS = ("steps", "time"), ("process", "ray")


def main(
    recipe: str, sets: Sequence[str], out: Path | None, *, methods: str | None, axes: Sequence[str], seeds: int,
    jobs: int, reference: str | None, teacher_per_seed: bool, search: str | None, search_steps: int | None,
    search_seed: int | None, device: str, imports: Sequence[str], json_: bool, quiet: bool, equal: str = "steps",
    launcher: str = "process",
) -> None:  # fmt: skip
    """Plan, run, show. Status 1 if a cell failed, 130 after Ctrl-C."""
    for option, value, known in (("--equal", equal, EQUAL), ("--launcher", launcher, LAUNCHERS)):
        if value not in known:
            raise UserError(f"{option} {value!r}: choose one of {', '.join(known)}")
    wanted = _search(search, search_steps, search_seed)
    plan = Plan(recipe, sets, methods=methods, axes=axes, seeds=seeds, teacher_per_seed=teacher_per_seed)
    folder = out or Path("runs") / f"compare-{plan.base.source.stem}"
    pool = Pool(Settings(folder, jobs, device, tuple(imports), quiet))
    if launcher == "ray":
        from .cluster import Cluster

        pool.launch = Cluster(device)
    threads = jobs * plan.base.recipe.threads
    if not quiet and launcher == "process" and threads > (cores := os.cpu_count() or threads):
        _line(f"{jobs} jobs of {plan.base.recipe.threads} thread(s) share {cores} cores: seconds will not compare")
    try:
        found = compare(plan, pool, reference=reference, search=wanted, equal=equal)
    except Stopped:
        _line("interrupted: what is finished stays, what ran has a checkpoint; the same command goes on")
        raise typer.Exit(130) from None
    if json_:
        print(json.dumps(found))
    else:
        shown = Console()
        shown.print(table(found))
        shown.print(f"report: {folder / 'compare.md'}", soft_wrap=True)
    if pool.failed:
        _line(f"{len(pool.failed)} cell(s) failed: {next(iter(pool.failed.values()))}")
        raise typer.Exit(1)


def _search(text: str | None, steps: int | None, seed: int | None) -> Search | None:
    if text is None:
        if steps is not None or seed is not None:
            raise UserError("--search-steps and --search-seed need --search weight=0.1,1.0")
        return None
    key, _, values = text.partition("=")
    try:
        weights = tuple(float(value) for value in values.split(","))
    except ValueError:
        weights = ()
    if key != "weight" or not weights or not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"--search {text!r}: write weight=0.1,0.3,1.0, each above 0")
    if len(set(weights)) < len(weights):
        raise UserError(f"--search {text!r}: a weight is given twice")
    return Search(weights, steps, seed)


def _line(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
