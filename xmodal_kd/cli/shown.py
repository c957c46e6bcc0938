"""Tables on the terminal that several commands show."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # what it takes to run is imported by the commands that run
    from ..check import Finding

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


def stdout() -> Any:
    from rich.console import Console

    return Console()


def show_findings(findings: Iterable[Finding]) -> None:
    table = Table()
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")  # a path that is cut cannot be used
    for f in findings:
        table.add_row(f.check, f"[{COLOURS[f.status]}]{f.status}[/]", escape(f.found), escape(f.advice))
    stdout().print(table)


def show_report(report: dict[str, Any], folder: Path) -> None:
    from ..report.markdown import of_items

    name = report["metric"]["name"]
    table = Table("role", "parameters", f"{name} (test)", f"{name} (dev)")
    for role, entry in report["roles"].items():
        found = ("–" if (value := entry[at][name]) is None else f"{value:.4f}" for at in ("metrics", "dev_metrics"))
        table.add_row(role, f"{entry['parameters']:,}", *found)
    out = stdout()
    out.print(table)
    gap = report["gap_closed"]
    out.print(f"gap closed: {100 * gap:.0f} %" if gap is not None else f"gap closed: not stated: {report['reason']}")
    if said := of_items(report):
        out.print(said.strip(), soft_wrap=True)
    out.print(f"report: {folder / 'report.html'}   student: {folder / 'student'}", soft_wrap=True)
