"""``index.html``: the runs below a folder side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from ..runtime.errors import UserError
from ..runtime.whole_files import read_json, write_bytes
from .html import html, page, role_plot, short
from .learning import grid
from .pareto import Dot, front_plot
from .plots import ROLES, interval_plot, number
from .received import shown
from .runs import of_report

NAME = "index.html"
Run = tuple[Path, dict[str, Any]]
#: Why a run cannot be shown, by its folder.
Broken = Mapping[Path, str]


def find_runs(folder: Path) -> list[Run]:
    """The finished runs below `folder`, with their reports. Raises `UserError` where there is none."""
    runs, broken = survey(folder)
    if not runs:
        raise UserError(next(iter(broken.values()), f"{folder}: holds no finished run (no report.json below it)"))
    return runs


def survey(folder: Path) -> tuple[list[Run], dict[Path, str]]:
    """The finished runs below `folder` that can be shown, and why others cannot."""
    from . import load

    runs: list[Run] = []
    broken: dict[Path, str] = {}
    for path in sorted(folder.rglob("report.json")):
        if path.is_dir():
            continue
        try:
            if not _is_run(path):
                continue
            run = path.parent, load(path.parent)
            with shown(path.parent):  # what a page of all runs says of it
                _group(_kind(run), [run], folder)
        except UserError as error:
            broken[path.parent] = str(error)
        else:
            runs.append(run)
    return runs, broken


def write_index(folder: Path) -> Path:
    """Write ``index.html`` in `folder`, and the page of each run that has none newer than its report.

    A run that cannot be shown is a line that says why.

    Raises:
        UserError: there is no finished run.
    """
    runs, broken = survey(folder)
    for run in list(runs):
        place, content = run
        made = place / "report.html"
        if not made.is_file() or made.stat().st_mtime < (place / "report.json").stat().st_mtime:
            try:
                with shown(place):
                    page_ = html(content, place)
            except UserError as error:
                broken[place] = str(error)
                runs.remove(run)
                continue
            write_bytes(made, page_.encode())
    if not runs and not broken:
        raise UserError(f"{folder}: holds no finished run (no report.json below it)")
    write_bytes(folder / NAME, index(runs, folder, broken).encode())
    return folder / NAME


def index(runs: Sequence[Run], folder: Path, broken: Broken = MappingProxyType({})) -> str:
    """The page: for each modality and metric a plot and a table of its runs, then those that cannot be shown."""
    ordered = sorted(runs, key=lambda run: (*_kind(run), str(run[0])))
    parts = [_group(kind, list(found), folder) for kind, found in groupby(ordered, key=_kind)]
    parts += [_unshown(broken, folder)] if broken else []
    head = f'<header class="top"><p class="eyebrow">runs</p><h1>{escape(folder.resolve().name)}</h1><p>{len(runs)} '
    return page(f"{folder.resolve().name}: runs", f"{head}finished runs.</p></header>{_filter(runs)}{''.join(parts)}")


def _filter(runs: Sequence[Run]) -> str:
    """A line in which a reader says which runs are meant, as ``xmodal-kd runs --where`` takes it."""
    if len(runs) < 2:
        return ""
    name = str(runs[0][1]["metric"]["name"])
    return (
        f'<div class="filter"><input type="search" id="filter" aria-label="which runs" spellcheck="false" '
        f'placeholder="{escape(name)}&lt;0.1 and seed=1, or a part of a name"><output for="filter"></output></div>'
    )


def _unshown(broken: Broken, folder: Path) -> str:
    rows = "".join(
        f"<tr><td>{escape(place.relative_to(folder).as_posix())}</td><td>{escape(why)}</td></tr>"
        for place, why in broken.items()
    )
    head = "<thead><tr><th>run</th><th>why</th></tr></thead>"
    return f"<section><h2>Not shown</h2><div class='scroll'><table>{head}<tbody>{rows}</tbody></table></div></section>"


def _is_run(path: Path) -> bool:
    content = read_json(path)
    return isinstance(content, Mapping) and "metric" in content and "roles" in content and "modality" in content


def _kind(run: Run) -> tuple[str, str, bool]:
    metric = run[1]["metric"]
    return str(run[1]["modality"]), str(metric["name"]), bool(metric["lower_is_better"])


def _group(kind: tuple[str, str, bool], runs: Sequence[Run], folder: Path) -> str:
    modality, name, lower = kind
    roles = [role for role in ROLES if any(role in content["roles"] for _, content in runs)]
    head = ["run", "recipe", "method", "seed", *(f"{role}" for role in roles), "gain over control", "gap closed",
            "parameters", "ms a sample", "minutes"]  # fmt: skip
    cells = "".join(f'<th class="sortable{" figure" if i > 2 else ""}">{escape(h)}</th>' for i, h in enumerate(head))
    rows = "".join(
        f'<tr data-run="{escape(json.dumps(_facts(place, content, folder)))}">'
        f"{''.join(_row(place, content, name, roles, folder))}</tr>"
        for place, content in runs
    )
    marks = [mark for run in runs for mark in _marks(run, name, folder)]
    plot = interval_plot(marks, x=f"student of each run: {name} on test") if len(runs) > 1 else role_plot(runs[0][1])
    return (
        f"<section><h2>{escape(modality)}</h2><p class='note'>{escape(name)} on test, {'less' if lower else 'more'} is "
        "better. A click on a heading sorts.</p><div class='scroll'><table>"
        f"<thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"<div class='fronts'>{_fronts(runs, name, lower, folder)}</div><div class='wide'>{plot}</div></section>"
    )


def _fronts(runs: Sequence[Run], name: str, lower: bool, folder: Path) -> str:
    """The metric of every run against the size and the latency of its models."""
    axes: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
        "parameters": lambda e: e["parameters"],
        "ms a sample": lambda e: e.get("latency", {}).get("median_ms"),
    }
    plots = []
    for x, cost in axes.items():
        dots = [
            Dot(place.relative_to(folder).as_posix(), role, float(cost(entry)), float(entry["metrics"][name]))
            for place, content in runs for role, entry in content["roles"].items()
            if role in ("teacher", "control", "student") and cost(entry) and entry["metrics"][name] is not None
        ]  # fmt: skip
        plots.append(front_plot(dots, x=x, y=f"{name} on test", lower=lower))
    return grid(plots)


def _facts(place: Path, content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a filter finds a run by."""
    found = {"run": place.relative_to(folder).as_posix(), **of_report(content)}
    return {key: value for key, value in found.items() if value is not None}


def _row(place: Path, content: Mapping[str, Any], name: str, roles: Sequence[str], folder: Path) -> Iterator[str]:
    where, entries = place.relative_to(folder).as_posix(), content["roles"]
    link = "report.html" if where == "." else f"{quote(where)}/report.html"  # no folder's name is an address
    yield f'<td><a href="{escape(link)}">{escape(where)}</a></td>'
    yield f"<td>{escape(short(str(content['recipe'])))}</td><td>{escape(str(content['method']))}</td>"
    yield _figure(content["seed"])
    for role in roles:
        yield _figure(entries.get(role, {}).get("metrics", {}).get(name))
    gain, gap = content["gain"], content["gap_closed"]
    interval = f" ({gain['interval'][0]:+.3f} to {gain['interval'][1]:+.3f})" if gain and gain["interval"] else ""
    yield _figure(gain and gain["difference"], f"{gain['difference']:+.3f}{interval}" if gain else "")
    yield _figure(gap, "" if gap is None else f"{100 * gap:.0f} %")
    student, cost = entries["student"], content["cost"].get("student") or {}
    yield _figure(student["parameters"], f"{student['parameters']:,}")
    yield _figure(student.get("latency", {}).get("median_ms"))
    yield _figure(None if "seconds" not in cost else cost["seconds"] / 60)


def _figure(value: Any, shown: str = "") -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return '<td class="figure">–</td>'
    return f'<td class="figure" data-value="{escape(str(value))}">{escape(shown or number(value))}</td>'


def _marks(run: Run, name: str, folder: Path) -> Iterator[tuple[str, str, float, Any]]:
    place, content = run
    metrics = content["roles"]["student"]["metrics"]
    where = place.relative_to(folder).as_posix()
    yield where[-28:], "student", float(metrics[name]), metrics.get(f"{name}_interval")


__all__ = ["find_runs", "index", "survey", "write_index"]
