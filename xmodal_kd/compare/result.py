"""From the folders of finished cells to the content of ``compare.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapter.adapter import Score, adapter_class
from ..run.run_folder import STATE
from ..runtime.checkpoint import read_json, read_object
from .cells import Pool
from .plan import Arm, Cell, Plan
from .statistics import ALPHA, FEWEST, BySeed, Comparison, Measured, family, summary

Groups = dict[str, dict[int, Measured]]


def content(
    plan: Plan, pool: Pool, arms: Sequence[Arm], reference: str | None, search: Any, equal: str = "steps"
) -> dict[str, Any]:
    """What was compared and found. `arms` are the plan's, with the weights that a search may have chosen."""
    metric, lower = adapter_class(plan.base.recipe.modality).metric_of(plan.base.recipe.data)
    inside = {a.name: plan.inside(a) for a in arms}
    cells = {(a.name, s): plan.cell(a, s) for a in arms for s in plan.seeds}
    students = {a.name: _measured(pool, {s: cells[a.name, s] for s in plan.seeds}, "student", metric) for a in arms}

    def control(arm: Arm, seed: int) -> Cell | None:
        return cells[arm.name, seed] if inside[arm.name] else plan.control(arm, seed)

    def control_role(arm: Arm) -> str:
        return "control" if inside[arm.name] else "student"

    control_name, controls = _grouped("control", plan, pool, arms, control, control_role, metric)
    # every cell measures the teacher that it loads; its training is in the folder of its own cell
    by_teacher = {a.name: (t.key if (t := cells[a.name, plan.seeds[0]].teacher) else "saved") for a in arms}
    teacher_name, teachers = _grouped(
        "teacher", plan, pool, arms, lambda a, s: cells[a.name, s], lambda _: "teacher", metric, by_teacher
    )
    references = {a.name: found.name if (found := plan.reference(a, reference)) else None for a in arms}
    against = [Comparison(a.name, r, students[a.name], students[r]) for a in arms if (r := references[a.name])]
    beside = [Comparison(a.name, c, students[a.name], controls[c]) for a in arms if (c := control_name[a.name])]
    return {
        "schema": 1,
        "recipe": str(plan.base.source),
        "overrides": dict(plan.base.overrides),
        "modality": plan.base.recipe.modality,
        "metric": {"name": metric, "lower_is_better": lower},
        "seeds": plan.seeds,
        "teacher_per_seed": plan.teacher_per_seed,
        "alpha": ALPHA,
        "fewest_seeds": FEWEST,
        "equal": equal,
        "arms": [
            {
                "name": a.name, "overrides": list(a.sets), "steps": cells[a.name, plan.seeds[0]].steps,
                "pace_ms": None if a.pace is None else list(a.pace), "reference": references[a.name],
                "control": control_name[a.name], "teacher": teacher_name[a.name],
                "no_control": getattr(plan.control_of(a), "reason", None), **summary(students[a.name]),
            }
            for a in arms
        ],
        "controls": [{"name": name, **summary(found)} for name, found in controls.items()],
        "teachers": [{"name": name, **summary(found)} for name, found in teachers.items() if found],
        "against_reference": family(against, lower),
        "against_control": family(beside, lower),
        "search": search,
        "cells": [_entry(pool, cell) for cell in _all_cells(plan, arms)],
        **_machine(pool, cells.values()),
    }  # fmt: skip


def _all_cells(plan: Plan, arms: Sequence[Arm]) -> list[Cell]:
    """Every run that the arms need, once each, teachers before what stands on them."""
    found: dict[str, Cell] = {}
    for arm in arms:
        for seed in plan.seeds:
            for cell in (plan.teacher(arm, seed), plan.control(arm, seed), plan.cell(arm, seed)):
                if cell is not None:
                    found.setdefault(cell.key, cell)
    return list(found.values())


def _measured(pool: Pool, cells: Mapping[int, Cell | None], role: str, metric: str) -> dict[int, Measured]:
    found = {}
    for seed, cell in cells.items():
        if cell is None or not pool.finished(cell):
            continue
        elsewhere = None
        if role == "teacher" and cell.teacher is not None:
            elsewhere = read_json(pool.folder(cell.teacher) / STATE)["roles"]["teacher"]["training"]
        if (one := measured(pool.folder(cell), role, metric, elsewhere)) is not None:
            found[seed] = one
    return found


def measured(folder: Path, role: str, metric: str, training: Mapping[str, Any] | None = None) -> Measured | None:
    """One role of a finished run; None where the run had no such role, or it answers nothing.

    `training`: where it was trained elsewhere.
    """
    report, state = read_object(folder / "report.json"), read_json(folder / STATE)
    if role not in report["roles"]:
        return None
    entry, cost = report["roles"][role], report["cost"].get(role) or training or {}
    if entry["metrics"][metric] is None:
        return None
    return Measured(
        float(entry["metrics"][metric]),
        float(entry["dev_metrics"][metric]),
        [Score(**score) for score in state["roles"][role]["scores"]],
        {
            "seconds": cost.get("seconds"),
            "flops_per_step": cost.get("flops_per_step"),
            "flops_per_sample": entry["flops_per_sample"],
            "parameters": entry["parameters"],
        },
    )


def _grouped(
    word: str, plan: Plan, pool: Pool, arms: Sequence[Arm], cell_of: Callable[[Arm, int], Cell | None],
    role_of: Callable[[Arm], str], metric: str, identity: Mapping[str, str] | None = None,
) -> tuple[dict[str, str | None], Groups]:  # fmt: skip
    """What several arms share: each arm's name of it, and what was measured. One alone is called by the bare word."""
    owner: dict[str, Arm] = {}
    key_of: dict[str, str | None] = {}
    for arm in arms:
        cell = cell_of(arm, plan.seeds[0])
        key_of[arm.name] = key = None if cell is None else (identity or {}).get(arm.name, cell.key)
        if key is not None:
            owner.setdefault(key, arm)
    called = {key: word if len(owner) == 1 else f"{word} of {arm.name}" for key, arm in owner.items()}
    groups: Groups = {
        called[key]: _measured(pool, {s: cell_of(arm, s) for s in plan.seeds}, role_of(arm), metric)
        for key, arm in owner.items()
    }
    return {name: called[key] if key is not None else None for name, key in key_of.items()}, groups


def _entry(pool: Pool, cell: Cell) -> dict[str, Any]:
    status = "done" if pool.finished(cell) else "failed"
    folder = pool.folder(cell).relative_to(pool.settings.out)
    return {"name": cell.name, "key": cell.key, "folder": str(folder), "status": status,
            "reason": pool.failed.get(cell.key)}  # fmt: skip


def _machine(pool: Pool, cells: Any) -> dict[str, Any]:
    """Where it was measured: a comparison over several machines or versions says so."""
    reports = [read_object(pool.folder(cell) / "report.json") for cell in cells if pool.finished(cell)]
    machines = sorted({f"{r['device']} ({r['device_name']}), {r['threads']} thread(s)" for r in reports})
    versions = {tuple(r["versions"].items()) for r in reports}
    return {"machines": machines, "versions": [dict(found) for found in sorted(versions)]}


__all__ = ["BySeed", "content", "measured"]
