"""Runs below a folder as one table: what each role reaches, with intervals, and what the teacher added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .index import survey
from .received import shown

HEAD = ("run", "teacher", "control", "student", "gain", "gap\nclosed")
ROLES = ("teacher", "control", "student")


def show_runs(folder: Path, page: Path) -> None:
    """Print the table of the runs below `folder`, and where the `page` lies that compares them."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*HEAD, box=SIMPLE_HEAD, padding=(0, 1, 1, 0), pad_edge=False)
    runs, broken = survey(folder)
    for row in summary(runs, folder):
        table.add_row(*map(escape, row))
    Console().print(table)
    for why in broken.values():
        print(f"Not shown: {why}")
    print("On test, with 95 % intervals over test items (other seeds would add to them).")
    print("Gain: of the student over its control, a mean over test items.")
    print(f"All runs side by side: {page}")


def summary(runs: Sequence[tuple[Path, Mapping[str, Any]]], folder: Path) -> list[tuple[str, ...]]:
    """A row a run, of the columns `HEAD`: values on test, their 95 % intervals below; the arrow points to the better.

    Args:
        runs: folder and ``report.json`` of each.
    """
    rows = []
    for place, content in runs:
        with shown(place):
            rows.append(_row(place.relative_to(folder).as_posix(), content))
    return rows


def _row(where: str, content: Mapping[str, Any]) -> tuple[str, ...]:
    name, gain, gap = content["metric"]["name"], content["gain"], content["gap_closed"]
    better = "↓" if content["metric"]["lower_is_better"] else "↑"
    roles = (_value(content["roles"].get(role, {}).get("metrics", {}), name) for role in ROLES)
    return (
        f"{where}\n{name} {better}", *roles,
        _gain(gain), "–" if gap is None else f"{100 * gap:.0f} %",
    )  # fmt: skip


def _value(metrics: Mapping[str, Any], name: str) -> str:
    if name not in metrics:
        return "–"
    interval = metrics.get(f"{name}_interval")
    return f"{metrics[name]:.3f}" + (f"\n{interval[0]:.3f} – {interval[1]:.3f}" if interval else "")


def _gain(gain: Mapping[str, Any] | None) -> str:
    """Items are scored by their errors, so that a gain is positive whatever the metric."""
    if gain is None:
        return "–"
    interval = gain["interval"]
    return f"{gain['difference']:+.3f}" + (f"\n{interval[0]:+.3f} – {interval[1]:+.3f}" if interval else "")


__all__ = ["HEAD", "show_runs", "summary"]
