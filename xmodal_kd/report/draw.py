"""Panels as HTML: clouds, sequences, galleries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ..adapter.panels import Panel
from .align import columns
from .plots import colour

#: Units of a trace: width of a page, heights of the heat above and of each role's lane, and of the names at the left
#: the least room and that of a letter.
WIDE, HEAT, LANE, NAMES, LETTER = 760, 96, 46, 78, 7.2
#: Words of a text that are aligned: that takes the product of two lengths.
WORDS = 400


def draw(panel: Panel) -> str:
    note = f'<p class="note">{escape(panel.note)}</p>' if panel.note else ""
    return note + DRAWN[panel.kind](panel.content)


def aligned(reference: str, said: Mapping[str, str]) -> str:
    """Words in columns below their reference, which wrap as a text does; errors stand out."""
    texts = {role: text.split()[:WORDS] for role, text in said.items()}
    head = '<span class="col names"><b>reference</b>' + "".join(f'<i class="{colour(r)}">{escape(r)}</i>' for r in said)
    parts = [head + "</span>"]
    for wanted, words in columns(reference.split()[:WORDS], texts):
        cells = "".join(_word(wanted, words[role]) for role in said)
        parts.append(f'<span class="col"><b>{escape(wanted) if wanted is not None else "&nbsp;"}</b>{cells}</span>')
    return f'<div class="aligned">{"".join(parts)}</div>'


def _word(wanted: str | None, said: str | None) -> str:
    if said == wanted:
        return "<i>&nbsp;</i>" if said is None else f'<i class="right">{escape(said)}</i>'
    if said is None:
        return '<i class="wrong" title="left out">∅</i>'
    kind, title = ("extra", "put in") if wanted is None else ("wrong", f"instead of {wanted}")
    return f'<i class="{kind}" title="{escape(title)}">{escape(said)}</i>'


# ---------------------------------------------------------------- kinds


def _sequences(content: Mapping[str, Any]) -> str:
    return "".join(_sequence(item) for item in content["items"])


def _sequence(item: Mapping[str, Any]) -> str:
    about = " · ".join(part for part in (item["about"], _seconds(item["seconds"])) if part)
    sound = f'<audio controls preload="metadata" src="{escape(item["sound"])}"></audio>' if item["sound"] else ""
    return (
        f'<article class="item"><header><h3>{escape(item["key"])}</h3><span>{escape(about)}</span>{sound}</header>'
        f"{aligned(item['reference'], item['said'])}{_traces(item)}</article>"
    )


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


def _traces(item: Mapping[str, Any]) -> str:
    """Heat over time, and a lane for each role below it: the height at each frame, marks where it says something."""
    traces, seconds = item["traces"], item["seconds"]
    if not traces or not seconds:
        return ""
    left = max(NAMES, round(12 + LETTER * min(24, max(map(len, traces)))))
    unit = (WIDE - left) / seconds
    top = HEAT + 4 if item["heat"] else 4
    tall = top + LANE * len(traces) + 18
    parts = []
    if item["heat"]:
        parts.append(f'<image href="{escape(item["heat"])}" x="{left}" y="0" width="{WIDE - left}" height="{HEAT}" '
                     'preserveAspectRatio="none"/>')  # fmt: skip
    for i, (role, trace) in enumerate(traces.items()):
        parts.append(_lane(role, trace, top + i * LANE, unit, left))
    parts += [
        f'<text class="tick" x="{left + s * unit:.1f}" y="{tall - 4}" text-anchor="middle">{s} s</text>'
        for s in range(0, int(seconds) + 1, max(1, round(seconds / 8)))
    ]
    parts.append(f'<path class="cursor" d="M{left} 0V{tall - 16}" visibility="hidden"/>')
    names = ", ".join(traces)
    return (
        f'<div class="scroll"><svg class="traces" viewBox="0 0 {WIDE} {tall}" data-start="{left}" '
        f'data-unit="{unit:.3f}" role="img" aria-label="{escape(names)} over time">{"".join(parts)}</svg></div>'
    )


def _lane(role: str, trace: Mapping[str, Any], top: float, unit: float, left: int) -> str:
    base, room = top + LANE - 2, LANE - 16
    step, style = trace["frame"] * unit, colour(role)
    places = [(left + (k + 0.5) * step, base - room * h) for k, h in enumerate(trace["height"])]
    path = "".join(f"L{x:.1f} {y:.1f}" for x, y in places)
    last = places[-1][0] if places else left
    shape = f'<path class="area {style}" d="M{left} {base}{path}L{last:.1f} {base}Z"/>'
    marks, free = "", left
    for k, text in trace["marks"]:
        half = 3.2 * len(text)  # about half of what the text takes: marks close to each other stand side by side
        x = max(places[k][0], free + half)
        free = x + half + 4
        place = f'x="{x:.1f}" y="{base - room - 3:.1f}" text-anchor="middle"'
        marks += f'<text class="mark {style}" {place}>{escape(text)}</text>'
    name = f'<text class="row {style}" x="{left - 8}" y="{base - 6}" text-anchor="end">{escape(role)}</text>'
    return f'<path class="grid" d="M{left} {base}H{WIDE}"/>{shape}{marks}{name}'


def _clouds(content: Mapping[str, Any]) -> str:
    """Canvases that the page's script fills; captions with the errors need no script."""
    reference = content["reference"]
    figures = "".join(
        f'<figure><figcaption class="{colour(view["name"])}"><b>{escape(view["name"])}</b> {_share(view, reference)}'
        f'</figcaption><canvas tabindex="0" role="img" aria-label="points as {escape(view["name"])} labels them; arrow '
        f'keys turn them"></canvas></figure>'
        for view in content["views"]
    )
    key = "".join(
        f'<span class="key"><svg class="swatch" width="12" height="12"><rect width="12" height="12" rx="3" '
        f'fill="{escape("rgb({},{},{})".format(*map(int, rgb)))}"/></svg>{escape(name)}</span>'
        for name, rgb in zip(content["classes"], content["colours"], strict=False)
    )
    even = " even" if len(content["views"]) in (2, 4) else ""  # else three stand side by side
    errors = '<button data-mode="errors" aria-pressed="false">Errors</button>' if reference is not None else ""
    data = {key: content[key] for key in ("scale", "xyz", "colours", "reference")}
    data["views"] = [{"name": view["name"], "labels": view["labels"]} for view in content["views"]]
    thinned = (
        "" if content["points"] == content["of"] else f" {content['points']:,} of {content['of']:,} points are drawn."
    )
    return (
        '<div class="clouds"><div class="bar"><span class="group"><button data-mode="classes" aria-pressed="true">'
        f'Classes</button>{errors}</span><span class="group"><button data-view="sensor">Behind</button>'
        '<button data-view="side">Side</button><button data-view="above">Above</button>'
        '<button data-turn aria-pressed="false">Turning</button></span>'
        '<span class="hint">Drag to turn, wheel or pinch to come closer; all turn together.</span></div>'
        f'<div class="views{even}">{figures}</div><div class="legend classes">{key}</div>'
        '<div class="legend errors" hidden><span class="key"><i class="bad"></i>wrong</span><span class="key">'
        f'<i class="good"></i>right</span></div><p class="note">{thinned}</p>'
        f'<script type="application/json">{script_json(data)}</script></div>'
    )


def _share(view: Mapping[str, Any], reference: str | None) -> str:
    if view["errors"] is None:
        return ""
    wrong, of = view["errors"]
    return f"{100 * wrong / max(of, 1):.1f} % of the {of:,} points that all see differ from {escape(reference or '')}"


def _gallery(content: Mapping[str, Any]) -> str:
    names = content["columns"]
    head = "<th></th>" + "".join(f'<th class="{colour(name)}">{escape(name)}</th>' for name in names)
    rows = "".join(
        f"<tr><th>{escape(row['name'])}</th>{''.join(_cell(row['cells'].get(name)) for name in names)}</tr>"
        for row in content["rows"]
    )
    return (
        f'<div class="scroll"><table class="gallery"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cell(cell: Sequence[str] | None) -> str:
    if cell is None:
        return "<td></td>"
    address, caption = cell
    return f'<td><img src="{escape(address)}" alt="{escape(caption)}"><small>{escape(caption)}</small></td>'


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


DRAWN: dict[str, Callable[[Mapping[str, Any]], str]] = {"clouds": _clouds, "sequences": _sequences, "gallery": _gallery}

__all__ = ["aligned", "draw", "script_json"]
