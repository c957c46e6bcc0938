"""``xmodal-kd compare``: arms by seeds beside their control, at equal steps or time, with intervals and verdicts.

`plan` says which runs that takes, `budget` how many steps are equal time, `cells` runs them as processes, `cluster` on
Ray, `schedulers` writes them down for Slurm and Kubernetes; `statistics` judges, `result` and `report` tell; `run_diff`
sets two runs side by side. May import ``check`` and what it may. Public are the keys of ``compare.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..adapter.adapter import adapter_class
from ..run.options import Options
from ..run.runner import Run
from ..runtime.errors import UserError
from . import budget
from .cells import Pool, Settings, Stopped
from .plan import Arm, Cell, Plan
from .report import markdown, table, write
from .result import content, measured

PAGE = "README.md#what-is-in-the-box"


@dataclass(frozen=True)
class Search:
    """A weight for each loss, chosen on dev with one seed that is not among the measured ones."""

    weights: tuple[float, ...]
    steps: int | None = None
    seed: int | None = None


class _Preview(Run):
    """Everything that a run looks at before it trains, without its folder."""

    def _open(self) -> dict[str, Any]:
        return {}


def compare(
    plan: Plan, pool: Pool, *, reference: str | None = None, search: Search | None = None, equal: str = "steps"
) -> dict[str, Any]:
    """Run what the plan needs and return the content of ``compare.json``, which is written with its companions.

    Args:
        equal: what arms have in common with their control: ``steps``, or ``time``; a search keeps to its steps.
    Raises `UserError` before anything is trained for what cannot run, `Stopped` for Ctrl-C.
    """
    for arm in plan.arms:
        plan.reference(arm, reference)
    seed, steps = _search_budget(plan, search)
    if equal == "time":
        budget.check(plan)
    look_ahead(plan, pool.settings.device)
    arms, found = list(plan.arms), None
    if search is not None:
        arms, found = _searched(plan, pool, search.weights, steps, seed)
    if equal == "time":
        arms = budget.paced(plan, pool, arms)
    pool.run(cells_of(plan, arms))
    result = content(plan, pool, arms, reference, found, equal)
    write(pool.settings.out, result)
    return result


def cells_of(plan: Plan, arms: Sequence[Arm]) -> list[Cell]:
    """Of every seed each arm and its control."""
    return [c for s in plan.seeds for a in arms for c in (plan.control(a, s), plan.cell(a, s)) if c is not None]


def look_ahead(plan: Plan, device: str) -> None:
    """Build every arm's models and objective as its run will, so that what is wrong comes out before any training."""
    for arm in plan.arms:
        cell = plan.cell(arm, plan.seeds[0])
        try:
            _Preview(cell.loaded, Options(out=cell.loaded.source.parent, device=device, quiet=True))
        except UserError as error:
            raise UserError(f"{arm.name}: {error}") from None


def _search_budget(plan: Plan, search: Search | None) -> tuple[int, int]:
    if search is None:
        return 0, 0
    if not any(arm.term is not None for arm in plan.arms):
        raise UserError("--search: no arm is a loss of --methods, so there is no weight to search")
    seed = plan.seeds[0] + 1000 if search.seed is None else search.seed
    if seed in plan.seeds:
        raise UserError(f"--search-seed {seed} is one of the measured seeds {plan.seeds}: choose another")
    return seed, search.steps or plan.base.recipe.train.steps


def _searched(
    plan: Plan, pool: Pool, weights: Sequence[float], steps: int, seed: int
) -> tuple[list[Arm], dict[str, Any]]:
    """Each loss with the weight that was best on dev; a weight whose run failed is out."""
    metric, lower = adapter_class(plan.base.recipe.modality).metric_of(plan.base.recipe.data)
    cells: dict[tuple[str, float], Cell] = {
        (arm.name, weight): replace(
            plan.cell(arm.weighted(weight), seed, [f"train.steps={steps}"]), name=f"search {arm.name} {weight:g}"
        )
        for arm in plan.arms
        if arm.term is not None
        for weight in weights
    }
    pool.run([*cells.values()])
    arms, told = [], {}
    for arm in plan.arms:
        dev = {
            weight: found.dev
            for weight in weights
            if (cell := cells.get((arm.name, weight))) is not None
            and pool.finished(cell)
            and (found := measured(pool.folder(cell), "student", metric)) is not None
        }
        chosen = min(dev, key=lambda weight: dev[weight] if lower else -dev[weight]) if dev else None
        arms.append(arm if chosen is None else arm.weighted(chosen))
        if arm.term is not None:
            told[arm.name] = {"dev": {str(weight): value for weight, value in dev.items()}, "chosen": chosen}
    return arms, {"metric": metric, "seed": seed, "steps": steps, "weights": list(weights), "arms": told}


__all__ = [
    "Arm", "Cell", "Plan", "Pool", "Search", "Settings", "Stopped", "cells_of", "compare", "look_ahead", "markdown",
    "table", "write",
]  # fmt: skip
