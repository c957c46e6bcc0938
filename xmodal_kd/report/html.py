"""``report.html``: one file that shows a run without network, library or server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..adapter import panels
from ..runtime.bounded_files import inside, read_bytes
from .draw import aligned, draw
from .learning import dev_of, folded, learning, log_of
from .markdown import markdown
from .plots import ROLES, Line, interval_plot, line_plot
from .prose import sections
from .received import picture

#: What a browser may load: nothing from anywhere. Pictures and sound are inside the page; of script and style those
#: that are ours, by their hashes, and none that a run's files bring.
POLICY = (
    "default-src 'none'; style-src {style}; script-src {script}; img-src data:; media-src data:; base-uri 'none'; "
    "form-action 'none'; connect-src {connect}"
)
#: Utterances of the table of errors.
EXAMPLES = 8
#: Bytes of a recipe that a page shows.
MOST_RECIPE = 1 << 20
Section = tuple[str, str, str]


def html(content: Mapping[str, Any], folder: Path) -> str:
    """The page of the run in `folder`, of what is there: its logs, pictures, panels and recipe."""
    name, said = short(str(content["recipe"])), sections(markdown(content))
    parts = [part for part in _sections(content, folder, said) if part[2]]
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in parts)
    body = "".join(f'<section id="{key}"><h2>{escape(title)}</h2>{inside}</section>' for key, title, inside in parts)
    head = (
        f'<p class="eyebrow">{escape(content["modality"])} · {escape(content["method"])} · '
        f"seed {escape(str(content['seed']))}</p>"
        f"<h1>{escape(name)}</h1>{''.join(said[''][:1])}"
    )
    return page(f"{name} · {content['modality']}", f"<header class='top'>{head}</header><nav>{links}</nav>{body}")


def page(title: str, body: str, script: str = "", connect: str = "'none'") -> str:
    """A whole document.

    Args:
        script: what runs behind the page's own.
        connect: what that may ask, as a content security policy names it.
    """
    style, script = _asset("page.css"), _asset("page.js") + script
    policy = POLICY.format(style=_hash(style), script=_hash(script), connect=connect)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><link rel="icon" href="data:,"><style>{style}</style></head><body>'
        f'<button id="theme" aria-label="light or dark">◐</button><main>{body}</main>'
        f"<script>{script}</script></body></html>\n"
    )


def short(recipe: str) -> str:
    """``speech/fsdd`` of a recipe's path."""
    path = Path(recipe)
    return f"{path.parent.name}/{path.stem}" if path.parent.name not in ("", ".", "recipes") else path.stem


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (files("xmodal_kd.report") / name).read_text(encoding="utf-8")


# ---------------------------------------------------------------- sections


def _sections(content: Mapping[str, Any], folder: Path, said: Mapping[str, list[str]]) -> Iterator[Section]:
    """Key, title and HTML of each part; of a part that has nothing to show, no HTML."""
    shown = panels.read(folder)
    yield "result", "Result", result(content) + "".join(said.get("Result", ()))
    for i, panel in enumerate(shown):
        yield f"panel-{i}", panel.title, draw(panel)
    yield "errors", "Where the student errs most", _errors(content["roles"])
    yield "budgets", "At every budget", _budgets(content) + folded("All numbers", said.get("At every budget", ()))
    yield "learning", "Learning", _learning(content, folder)
    yield "cost", "Cost", "".join(said.get("Cost", ()))
    hidden = {caption for panel in shown for caption in panel.replaces}
    yield "pictures", "Pictures", _pictures({k: v for k, v in content["pictures"].items() if k not in hidden}, folder)
    told = (("judge", "What measured it"), ("export", "Export"), ("left-out", "Left out"))
    for key, title in (*told, ("changes", "Changed on the way")):
        yield key, title, "".join(said.get(title, ()))
    yield "recipe", "Recipe", "".join(said[""][1:]) + recipe(folder)
    yield "versions", "Versions", "".join(said.get("Versions", ()))


def result(content: Mapping[str, Any]) -> str:
    """The main metric of every role with its interval, and what the student is beside its teacher."""
    plot = role_plot(content)
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in _tiles(content))
    return f'<div class="hero">{plot}<div class="tiles">{tiles}</div></div>'


def role_plot(content: Mapping[str, Any]) -> str:
    """The main metric of every role of a run on test, with its interval where there is one."""
    name, lower = content["metric"]["name"], content["metric"]["lower_is_better"]
    rows = [
        (role, role, float(entry["metrics"][name]), entry["metrics"].get(f"{name}_interval"))
        for role, entry in content["roles"].items()
        if entry["metrics"][name] is not None
    ]
    return interval_plot(rows, x=f"{name} on test, {'less' if lower else 'more'} is better")


def _tiles(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    roles, gap = content["roles"], content["gap_closed"]
    if gap is not None:
        yield f"{100 * gap:.0f} %", "of the gap from control to teacher closed"
    if "teacher" in roles:
        for key, what in (("parameters", "fewer parameters than the teacher"), ("flops_per_sample", "fewer FLOPs")):
            ratio = roles["teacher"][key] / max(roles["student"][key], 1)
            if ratio > 1.05:
                yield f"{ratio:.3g}×", what
        times = [roles[role].get("latency", {}).get("median_ms") for role in ("teacher", "student")]
        if all(times) and times[0] > 1.05 * times[1]:
            yield f"{times[0] / times[1]:.3g}×", "faster on one sample"
    yield f"{roles['student']['parameters']:,}", "parameters"


def _errors(roles: Mapping[str, Any]) -> str:
    """The student's worst items aligned with their references, where items are texts."""
    examples = [e for e in roles["student"].get("examples", ()) if "hypothesis" in e and "reference" in e][:EXAMPLES]
    others = {
        role: {e["key"]: e["hypothesis"] for e in entry.get("examples", ()) if "hypothesis" in e}
        for role, entry in roles.items() if role != "student"
    }  # fmt: skip
    shown = "".join(
        f'<article class="item"><header><h3>{escape(e["key"])}</h3></header>'
        + aligned(e["reference"], {
            **{role: found[e["key"]] for role, found in others.items() if e["key"] in found},
            "student": e["hypothesis"],
        }) + "</article>"
        for e in examples
    )  # fmt: skip
    return f'<div class="pairs">{shown}</div>' if shown else ""


def _budgets(content: Mapping[str, Any]) -> str:
    """The main metric of every role against its budget; what else a point is told apart by makes a line of its own.

    A point's budget is its first number: function evaluations, beams, milliseconds.
    """
    name, plots = content["metric"]["name"], dict[str, list[Mapping[str, Any]]]()
    for point in content["curve"]:
        budget = next((key for key, value in point.items() if isinstance(value, int | float)), None)
        if budget is not None:
            plots.setdefault(budget, []).append(point)
    floor = content["facts"].get("floor", {})
    level = floor.get(name) if isinstance(floor, Mapping) else None
    return "".join(_budget(budget, points, name, level) for budget, points in plots.items())


def _budget(budget: str, curve: Sequence[Mapping[str, Any]], name: str, level: float | None) -> str:
    lines: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for point in curve:
        kind = (str(point["role"]), *(v for k, v in point.items() if isinstance(v, str) and k != "role"))
        if isinstance(value := point["metrics"].get(name), int | float):
            lines.setdefault(kind, []).append((float(point[budget]), float(value)))
    seen: dict[str, int] = {}
    drawn = []
    for kind, points in lines.items():
        seen[kind[0]] = seen.get(kind[0], -1) + 1
        drawn.append(Line(" ".join(kind), kind[0], sorted(points), dash=seen[kind[0]], dots=True))
    whole = all(isinstance(point[budget], int) for point in curve)
    return f'<div class="wide">{line_plot(drawn, x=budget, y=f"{name} on test", powers=whole, floor=level)}</div>'


def _learning(content: Mapping[str, Any], folder: Path) -> str:
    """Of every role that was trained."""
    name = content["metric"]["name"]
    trained = {role: cost for role, cost in content["cost"].items() if isinstance(cost, Mapping) and cost.get("dev")}
    dev = {role: dev_of(cost, name) for role, cost in trained.items()}
    return learning(name, dev, {role: log_of(folder, role) for role in ROLES})


def _pictures(pictures: Mapping[str, str], folder: Path) -> str:
    """Those that lie in the folder and that a browser shows; a click shows one at its own size."""
    there = {caption: picture(folder, path) for caption, path in pictures.items()}
    return "".join(
        f'<figure class="picture"><figcaption>{escape(caption)}</figcaption><div class="scroll"><img decoding="async" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}" alt="{escape(caption)}"></div>'
        "</figure>"
        for caption, data in there.items() if data is not None
    )  # fmt: skip


def recipe(folder: Path) -> str:
    """The resolved recipe of a run, folded away."""
    path = inside(folder, "recipe.yaml")
    text = "" if path is None else read_bytes(path, MOST_RECIPE).decode("utf-8", errors="replace")
    return folded("The resolved recipe", [f"<pre>{escape(text)}</pre>"]) if text else ""


__all__ = ["html", "page", "recipe", "result", "role_plot", "short"]
