"""The runs below a folder as rows of a table: what each reaches, gains over its control, costs, and what it is in."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError
from ..runtime.run_status import Status, condition, is_run, read_progress, read_status
from .html import short
from .received import shown
from .where import Row, where

#: Columns of a table on a terminal: key and head.
SHOWN = {
    "run": "run", "state": "state", "value": "student", "control": "control", "gain": "gain", "gap_closed": "gap",
    "parameters": "size", "latency_ms": "ms", "minutes": "min",
}  # fmt: skip
#: What every row has, whatever its run has come to; further keys are the metrics of the student on test.
KEYS = (
    "run", "state", "why", "modality", "recipe", "method", "scheme", "seed", "metric", "value", "dev", "teacher",
    "control", "gain", "gap_closed", "parameters", "flops", "latency_ms", "minutes", "steps",
)  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    """A row for each run below `folder`, by its path. Raises `UserError` where there is none."""
    found = [row(place, folder) for place in places(folder)]
    if not found:
        raise UserError(f"{folder}: holds no run (a folder with status.json, or recipe.yaml and state.json)")
    return found


def places(folder: Path) -> Iterator[Path]:
    """The run folders at and below `folder`; what lies in a run is its own."""
    for place, folders, _ in os.walk(folder):
        folders.sort()
        if is_run(Path(place)):
            folders.clear()
            yield Path(place)


def row(place: Path, folder: Path) -> dict[str, Any]:
    """One run. What a finished one says that cannot be read is its ``why``."""
    from . import load

    state, why = condition(place)
    found: dict[str, Any] = dict.fromkeys(KEYS)
    found |= {"run": place.relative_to(folder).as_posix(), "state": state, "why": why}
    if (status := read_status(place)) is not None:
        found |= _begun(place, status)
    if (place / "report.json").is_file():
        try:
            with shown(place):
                found |= of_report(load(place))
        except UserError as error:
            found["why"] = str(error)
    return found


def _begun(place: Path, status: Status) -> dict[str, Any]:
    """Of a run that may not have come far."""
    progress = read_progress(place, "student")
    best = progress and next((one.value for one in progress.dev if one.step == progress.best_at), None)
    trained = [one for role in status.plan if (one := read_progress(place, role.role)) is not None]
    return {
        "modality": status.modality, "recipe": status.recipe, "method": status.method, "seed": status.seed,
        "metric": status.metric, "dev": best, "steps": progress.step if progress else None,
        "minutes": sum(one.seconds for one in trained) / 60 if trained else None,
    }  # fmt: skip


def of_report(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the report of a finished run has for its row."""
    name, roles, gain = content["metric"]["name"], content["roles"], content["gain"]
    student, scheme = roles["student"], content.get("scheme")
    costs = [cost for cost in content["cost"].values() if isinstance(cost, Mapping)]
    latency = student.get("latency")
    named = {key: value for key, value in student["metrics"].items() if key.isidentifier()}
    return {key: value for key, value in named.items() if _number(value) is not None} | {
        "modality": content["modality"], "recipe": short(str(content["recipe"])), "method": content["method"],
        "scheme": scheme.get("name") if isinstance(scheme, Mapping) else None, "seed": content["seed"], "metric": name,
        "value": _number(student["metrics"][name]), "dev": _number(student["dev_metrics"][name]),
        **{role: _number(roles[role]["metrics"][name]) if role in roles else None for role in ("teacher", "control")},
        "gain": gain["difference"] if gain else None, "gap_closed": content["gap_closed"],
        "parameters": student["parameters"], "flops": student["flops_per_sample"],
        "latency_ms": _number(latency.get("median_ms")) if isinstance(latency, Mapping) else None,
        "minutes": sum(_number(cost.get("seconds")) or 0 for cost in costs) / 60,
        "steps": _number(next((c.get("steps") for r, c in content["cost"].items() if r == "student" and c), None)),
    }  # fmt: skip


def _number(value: Any) -> float | None:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if sound else None


def chosen(found: Sequence[Row], meant: str | None, key: str | None, *, backwards: bool = False) -> list[Row]:
    """Those that `meant` means, sorted by `key`; rows that have no such key come last.

    Raises:
        UserError: a key that no row has, or a sentence that is none.
    """
    known = list(dict.fromkeys(name for one in found for name in one))
    if meant is not None:
        test = where(meant, known)
        found = [one for one in found if test(one)]
    if key is None:
        return list(found)
    if key not in known:
        raise UserError(f"--sort: unknown key {key!r}; known: {', '.join(sorted(known))}")
    there = [one for one in found if one.get(key) is not None]
    ordered = sorted(there, key=lambda one: (isinstance(one[key], str), one[key]), reverse=backwards)
    return [*ordered, *(one for one in found if one.get(key) is None)]


def as_csv(found: Sequence[Row]) -> str:
    """A comma-separated table; text that a spreadsheet would compute gets an apostrophe before it."""
    keys = list(dict.fromkeys([*KEYS, *(key for one in found for key in one)]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(keys)
    writer.writerows([_safe(one.get(key)) for key in keys] for one in found)
    return out.getvalue()


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def show(found: Sequence[Row]) -> None:
    """Print them as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for key, head in SHOWN.items():
        first = key in ("run", "state")
        table.add_column(head, justify="left" if first else "right", overflow="fold", no_wrap=key != "run")
    for one in found:
        table.add_row(*(escape(printable(_cell(key, one))) for key in SHOWN))
    Console().print(table)
    for one in found:
        if one["why"] and (one["state"] != "finished" or one["value"] is None):
            print(f"{printable(one['run'])} {one['state']}: {printable(one['why'])}")


def _cell(key: str, one: Row) -> str:
    value = one.get(key)
    if key == "value" and value is None and one.get("dev") is not None:
        return f"dev {one['metric']} {one['dev']:.3f}"
    if value is None:
        return "–"
    if key == "gap_closed":
        return f"{100 * value:.0f} %"
    if key == "value":
        return f"{one['metric']} {value:.3f}"
    if key in ("gain", "control"):
        return f"{value:+.3f}" if key == "gain" else f"{value:.3f}"
    if key == "parameters":
        return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


__all__ = ["KEYS", "as_csv", "chosen", "of_report", "printable", "row", "rows", "show"]
