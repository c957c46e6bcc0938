"""The command ``compare`` behind its options."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer
from rich.console import Console

from ..runtime.checkpoint import read_json
from ..runtime.errors import UserError
from ..runtime.progress import console
from . import Plan, Pool, Search, Settings, Stopped, cells_of, compare, look_ahead, table
from .plan import Cell
from .schedulers import KINDS, jobs_of, text

EQUAL, LAUNCHERS = ("steps", "time"), ("process", "ray")


def main(
    recipe: str, sets: Sequence[str], out: Path | None, *, methods: str | None, axes: Sequence[str], seeds: int,
    jobs: int, reference: str | None, teacher_per_seed: bool, search: str | None, search_steps: int | None,
    search_seed: int | None, device: str, imports: Sequence[str], json_: bool, quiet: bool, equal: str = "steps",
    launcher: str = "process", dry_run: str | None = None, export: bool = False,
) -> None:  # fmt: skip
    """Plan, run, show. Status 1 if a cell failed, 130 after Ctrl-C.

    Args:
        dry_run: print the cells instead, as this kind of jobs.
    """
    for option, value, known in (("--equal", equal, EQUAL), ("--launcher", launcher, LAUNCHERS)):
        if value not in known:
            raise UserError(f"{option} {value!r}: choose one of {', '.join(known)}")
    if dry_run is not None and dry_run not in KINDS:
        raise UserError(f"--dry-run {dry_run!r}: choose one of {', '.join(KINDS)}")
    wanted = _search(search, search_steps, search_seed)
    plan = Plan(recipe, sets, methods=methods, axes=axes, seeds=seeds, teacher_per_seed=teacher_per_seed)
    folder = out or Path("runs") / f"compare-{plan.base.source.stem}"
    pool = Pool(Settings(folder, jobs, device, tuple(imports), quiet, export))
    if dry_run is not None:
        if wanted is not None or equal == "time":
            raise UserError("--dry-run: with --search or --equal time cells follow from what the first ones measure")
        told = {"--methods": methods, "--seeds": str(seeds), "--out": str(folder), "--reference": reference}
        words = [word for option, value in told.items() if value is not None for word in (option, value)]
        for option, values in (("--axis", axes), ("--set", sets), ("--allow-import", imports)):
            words += [word for value in values for word in (option, value)]
        words += ["--teacher-per-seed"] if teacher_per_seed else []
        words += ["--export"] if export else []
        look_ahead(plan, device)
        again = shlex.join(["xmodal-kd", "compare", recipe, *words, "--device", device])
        print(text(dry_run, jobs_of(pool, cells_of(plan, plan.arms), again)), end="")
        return
    if launcher == "ray":
        from .cluster import Cluster

        pool.launch = Cluster(device)
    threads = jobs * plan.base.recipe.threads
    if not quiet and launcher == "process" and threads > (cores := os.cpu_count() or threads):
        _line(f"{jobs} jobs of {plan.base.recipe.threads} thread(s) share {cores} cores: seconds will not compare")
    if export and (left := _unexported(pool, cells_of(plan, plan.arms))):
        _line(f"{len(left)} finished cell(s) were not exported and are not now, as {left[0]}: call xmodal-kd export")
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


def _unexported(pool: Pool, cells: Iterable[Cell]) -> list[Path]:
    """Folders of cells that were finished when no export was asked for: what is finished is reused as it is."""
    done = dict.fromkeys(pool.folder(cell) for cell in cells if pool.finished(cell))
    return [folder for folder in done if not read_json(folder / "report.json")["export"]]


def _search(told: str | None, steps: int | None, seed: int | None) -> Search | None:
    if told is None:
        if steps is not None or seed is not None:
            raise UserError("--search-steps and --search-seed need --search weight=0.1,1.0")
        return None
    key, _, values = told.partition("=")
    try:
        weights = tuple(float(value) for value in values.split(","))
    except ValueError:
        weights = ()
    if key != "weight" or not weights or not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"--search {told!r}: write weight=0.1,0.3,1.0, each above 0")
    if len(set(weights)) < len(weights):
        raise UserError(f"--search {told!r}: a weight is given twice")
    return Search(weights, steps, seed)


def _line(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
