"""A run folder at one moment as the parts of a page, drawn as a report's are. All that a folder says is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from html import escape
from pathlib import Path

from ..adapter.moments import laid_over
from ..report.draw import draw
from ..report.html import page, recipe, result
from ..report.learning import learning
from ..report.plots import colour, number
from ..report.received import shown
from ..runtime.errors import UserError
from ..runtime.run_status import Progress
from .look import Look, Training, look

#: What stands beside each state.
SAID = {
    "running": "at work", "finished": "done", "failed": "ended by an error", "stopped": "stopped with a checkpoint",
    "killed": "gone",
}  # fmt: skip


def parts(folder: Path, number_: int) -> dict[str, str]:
    """The parts of one run by their id, in order. A run that cannot be shown is one part that says why."""
    key = f"run-{number_}"
    try:
        found = look(folder)
        with shown(folder):
            return {f"{key}-{name}": html for name, html in _parts(found) if html}
    except UserError as error:
        return {f"{key}-now": f"<header class='top'><h1>{escape(folder.name)}</h1></header>{_bad([str(error)])}"}


def whole(folders: Sequence[Path], found: Mapping[str, str], script: str = "") -> str:
    """The page of the parts of several runs; a `script` may ask where it comes from for what is new."""
    body = "".join(
        f'<div class="part" id="{key}" data-digest="{digest(html)}">{html}</div>' for key, html in found.items()
    )
    title = ", ".join(folder.resolve().name for folder in folders)
    return page(f"{title}: watched", f'<div id="parts">{body}</div>', script, "'self'" if script else "'none'")


def digest(html: str) -> str:
    """By which a page knows whether a part is new to it."""
    return blake2b(html.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _parts(found: Look) -> Iterator[tuple[str, str]]:
    yield "now", _head(found) + _bad(found.broken)
    if found.report is not None and found.state == "finished":
        yield "result", _section("Result, on test", result(found.report))
    yield "roles", _section("Trainings", _roles(found))
    trained = found.trainings.values()
    dev = {one.role: one.dev for one in trained if one.dev.points}
    yield "learning", _section("Learning", learning(found.metric, dev, {one.role: one.log for one in trained}))
    kept = {one.role: one.moments for one in trained if one.moments}
    for i, panel in enumerate(found.panels if found.state == "finished" else ()):
        yield f"panel-{i}", _section(panel.title, draw(panel))
    for i, panel in enumerate(laid_over(kept)):
        yield f"while-{i}", _section(panel.title, draw(panel))
    yield "recipe", recipe(found.folder)


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def _bad(lines: Sequence[str]) -> str:
    return "".join(f'<p class="failed">{escape(line)}</p>' for line in lines)


def _head(found: Look) -> str:
    status, report = found.status, found.report
    about = [status.modality, status.method, f"seed {status.seed}"] if status else (
        [report["modality"], report["method"], f"seed {report['seed']}"] if report else []
    )  # fmt: skip
    why = f'<p class="{found.state}">{escape(found.why)}</p>' if found.why else ""
    return (
        f'<header class="top"><p class="eyebrow">{escape(" · ".join(map(str, about)))}</p>'
        f"<h1>{escape(found.folder.resolve().name)}</h1><p><b class='badge {found.state}'>{found.state}</b> "
        f"{escape(_doing(found))}</p>{why}</header>{_tiles(found)}"
    )


def _doing(found: Look) -> str:
    now = found.learning
    if now is None or found.state == "finished":
        return SAID[found.state]
    at = f"{now.role}, step {now.step:,} of {now.steps:,}"
    if found.state == "running" and now.step >= now.steps:
        return f"the {now.role} has learned its {now.steps:,} steps and is measured"
    if found.state != "running":
        return f"{SAID[found.state]}: {at}"
    return at


def _tiles(found: Look) -> str:
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in _told(found))
    return f'<div class="tiles across">{tiles}</div>' if tiles else ""


def _told(found: Look) -> Iterator[tuple[str, str]]:
    now = found.learning
    if found.state == "running" and now is not None and now.progress is not None:
        left, whole = now.progress.seconds_left, found.seconds_left
        if left is not None:
            yield span(left), f"left for the {now.role}"
        if whole is not None and left is not None and whole > 1.05 * left:
            yield span(whole), "left for all trainings"
    last = now or next((one for one in reversed([*found.trainings.values()]) if one.dev.points), None)
    if last is not None and last.dev.points:
        best = next(((s, v) for s, v in last.dev.points if s == last.dev.best_at), None)
        step, value = best or last.dev.points[-1]
        which = "best" if best else "last"
        yield number(value), f"{which} {found.metric} of the {last.role} on dev, at step {step:,.0f}"
    trained = [one.progress for one in found.trainings.values() if one.progress is not None]
    if trained:
        progress = now.progress if now is not None and now.progress is not None else trained[-1]
        yield from _machine(progress)


def _machine(progress: Progress) -> Iterator[tuple[str, str]]:
    machine = progress.machine
    if progress.step_seconds:
        yield f"{1 / progress.step_seconds:.3g} steps/s", f"{_stages(progress.stage, progress.stages)}on {machine.name}"
    of = f" of {size(machine.capacity)}" if machine.capacity else ""
    if machine.memory is not None:
        yield size(machine.memory), f"of GPU memory{of}; at most {size(machine.peak)}"
    else:
        yield size(machine.peak), f"of memory at most{of}"
    if machine.utilisation is not None:
        yield f"{100 * machine.utilisation:.0f} %", "of the GPU in use"


def _stages(stage: int, stages: int) -> str:
    return f"stage {stage + 1} of {stages}, " if stages > 1 else ""


def _roles(found: Look) -> str:
    rows = "".join(_role(one, found) for one in found.trainings.values())
    return f'<ol class="roles">{rows}</ol>' if rows else ""


def _role(one: Training, found: Look) -> str:
    loaded = one.steps == 0
    state = "" if loaded else "done" if one.done else "waiting" if not one.step else found.state
    took = f", {span(one.seconds)}" if one.seconds else ""
    steps = "a model that is loaded" if loaded else f"{one.step:,} of {one.steps:,} steps{took}"
    bar = (
        f'<progress aria-label="{escape(one.role)}" max="{max(one.steps, 1)}" value="{one.step}"></progress>'
        if not loaded
        else "<span></span>"
    )
    return (
        f'<li class="{colour(one.role)}"><b>{escape(one.role)}</b>{bar}<span>{escape(steps)}</span>'
        f"<em>{escape(state)}</em></li>"
    )


def span(seconds: float) -> str:
    """A time as people say it: ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"


def size(count: int) -> str:
    """Bytes as people say them: ``512 MiB``, ``1.2 GiB``."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.3g} GiB"


__all__ = ["digest", "parts", "size", "span", "whole"]
