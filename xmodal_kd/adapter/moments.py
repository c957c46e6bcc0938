"""What a role makes of the same few samples at one evaluation after another, kept in the run folder while it learns.

A modality gives panels of its dev samples (`Adapter.glimpse`); here they are kept, thinned out and laid over each
other, so that a page shows how a role came to say what it says, and control and student side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.bounded_files import inside
from ..runtime.errors import UserError
from ..runtime.run_status import write
from ..runtime.whole_files import read_json
from .panel_schema import checked
from .panels import Panel

FOLDER = "watch"
#: Evaluations that are kept of a role.
MOST = 8

Content = Mapping[str, Any]
#: What one role showed of one title: role, step, content.
Seen = tuple[str, int, Content]


@dataclass(frozen=True)
class Moment:
    """The panels of one evaluation."""

    step: int
    panels: Sequence[Panel]


class Moments:
    """Those of one role in the run in `folder`; what was kept after step `start`, from which it goes on, is dropped."""

    def __init__(self, folder: Path, role: str, start: int = 0) -> None:
        self.path = folder / FOLDER / f"{role}.json"
        self.kept = [one for one in read(folder, role) if one.step <= start]

    def add(self, step: int, panels: Sequence[Panel]) -> None:
        """Sound and pictures that are the same at every evaluation stay with the newest one."""
        before = [Moment(one.step, [slim(panel) for panel in one.panels]) for one in self.kept if one.step < step]
        self.kept = thinned([*before, Moment(step, panels)])
        moments = [{"step": one.step, "panels": [asdict(panel) for panel in one.panels]} for one in self.kept]
        write(self.path, {"moments": moments})


def read(folder: Path, role: str) -> list[Moment]:
    """The moments of a role, oldest first; none where there are none that a page can show."""
    path = inside(folder, f"{FOLDER}/{role}.json")
    if path is None:
        return []
    try:
        found = [Moment(int(one["step"]), [Panel(**p) for p in checked(one)]) for one in read_json(path)["moments"]]
    except (UserError, ValueError, KeyError, TypeError, OverflowError):
        return []
    return sorted(found, key=lambda one: one.step)[-MOST:]


def slim(panel: Panel) -> Panel:
    """Without what every evaluation shows alike."""
    content = dict(panel.content)
    if panel.kind == "sequences":
        content["items"] = [{**item, "sound": None, "heat": None} for item in content["items"]]
    elif panel.kind == "clouds":
        content["xyz"] = ""
    return Panel(panel.kind, panel.title, content, panel.note, panel.replaces)


def thinned(moments: list[Moment]) -> list[Moment]:
    """At most `MOST`, first and last among them, about evenly spaced."""
    while len(moments) > MOST:
        inner = range(1, len(moments) - 1)
        moments.pop(min(inner, key=lambda i: moments[i + 1].step - moments[i - 1].step))
    return moments


def laid_over(kept: Mapping[str, Sequence[Moment]]) -> list[Panel]:
    """The moments of all roles as panels: several of the last of them, which learns, and the newest of the others.

    Args:
        kept: by role, in the order in which they were trained.
    """
    newest = [panel for moments in reversed([*kept.values()]) for panel in moments[-1].panels]
    seen: dict[tuple[str, str], list[Seen]] = {(panel.kind, panel.title): [] for panel in newest}
    notes: dict[tuple[str, str], str] = {}
    learns = list(kept)[-1] if kept else None
    for role, moments in kept.items():
        few = _few(moments) if role == learns else moments[-1:]
        for moment in moments:
            for panel in moment.panels:
                if panel.kind == "gallery" or moment in few:  # all rows of small pictures have room
                    seen.setdefault((panel.kind, panel.title), []).append((role, moment.step, panel.content))
                    notes[panel.kind, panel.title] = panel.note
    return [
        Panel(kind, title, MERGED[kind](found), notes[kind, title]) for (kind, title), found in seen.items() if found
    ]


def _few(moments: Sequence[Moment]) -> Sequence[Moment]:
    """The first, the one nearest to the middle and the last."""
    if len(moments) <= 3:
        return moments
    first, *inner, last = moments
    return [first, min(inner, key=lambda one: abs(2 * one.step - first.step - last.step)), last]


def _named(role: str, step: int) -> str:
    return f"{role} {step}"


def _sequences(seen: Sequence[Seen]) -> dict[str, Any]:
    """What is said at each evaluation stands in rows below one reference; sound and picture are the newest's."""
    items: dict[str, dict[str, Any]] = {}
    for role, step, content in seen:
        for item in content["items"]:
            one = items.setdefault(item["key"], {**item, "said": {}, "traces": {}})
            for key in ("sound", "heat"):
                one[key] = one[key] or item[key]
            one["said"][_named(role, step)] = item["said"].get(role, "")
            if role in item["traces"]:
                one["traces"][_named(role, step)] = item["traces"][role]
    return {"items": list(items.values())}


def _clouds(seen: Sequence[Seen]) -> dict[str, Any]:
    """One cloud labelled at each evaluation, of the roles that are shown the same points as the last one."""
    base = next((content for _, _, content in reversed(seen) if content["xyz"]), seen[-1][2])
    views = [view for view in base["views"] if view["name"] == base["reference"]]
    for role, step, content in seen:
        if content["points"] == base["points"] and content["xyz"] in ("", base["xyz"]):
            views += [{**v, "name": _named(role, step)} for v in content["views"] if v["name"] == role]
    return {**base, "views": views}


def _gallery(seen: Sequence[Seen]) -> dict[str, Any]:
    """A row for each evaluation, a column for each role."""
    columns = list(dict.fromkeys(column for _, _, content in seen for column in content["columns"]))
    rows: dict[int, dict[str, Any]] = {}
    for _, step, content in seen:
        for row in content["rows"]:
            rows.setdefault(step, {}).update(row["cells"])
    return {"columns": columns, "rows": [{"name": f"step {step}", "cells": rows[step]} for step in sorted(rows)]}


MERGED: Mapping[str, Callable[[Sequence[Seen]], dict[str, Any]]] = {
    "sequences": _sequences, "clouds": _clouds, "gallery": _gallery,
}  # fmt: skip

__all__ = ["Moment", "Moments", "laid_over", "read", "slim", "thinned"]
