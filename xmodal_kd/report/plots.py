"""Plots as SVG inside a page: no library, no script needed to see them; colours come from the page's style."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

#: Units of a plot and of its margins; a page shows a unit as about a pixel, on a phone as a little less.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 250, 50, 14, 12, 40
#: Above this ratio of largest to smallest a positive axis is logarithmic.
DECADES = 40.0
#: Dashes of the lines of one role, in order.
DASHES = ("", "6 3", "2 3", "9 3 2 3")
ROLES = ("teacher", "control", "self_training", "student")


@dataclass(frozen=True)
class Line:
    """Points in order of x. `role` decides the colour; `raw` lines are pale, without a legend or a reading.

    The point whose x is `best` has a ring around it.
    """

    name: str
    role: str
    points: Sequence[tuple[float, float]]
    dash: int = 0
    raw: bool = False
    dots: bool = False
    best: float | None = None


@dataclass(frozen=True)
class Axis:
    """From data to units: linear or logarithmic, with its ticks."""

    low: float
    high: float
    log: bool
    start: float
    stop: float

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (value - low) / (high - low or 1.0)


def colour(role: str) -> str:
    """The class of a role's marks; a name may say more behind its role: ``student, ddim``, ``control 200``."""
    role = role.partition(",")[0].partition(" ")[0]
    return f"of-{role}" if role in ROLES else "of-other"


def line_plot(
    lines: Sequence[Line], *, x: str, y: str, powers: bool = False, floor: float | None = None,
    log_y: bool | None = None,
) -> str:  # fmt: skip
    """A figure with its legend.

    Args:
        x: name of the horizontal axis.
        y: of the vertical one.
        powers: x counts in powers of two: logarithmic, a tick at each value that occurs.
        floor: a level drawn across.
        log_y: None: where values differ by more than a factor of 40.
    """
    lines = [replace(one, points=_finite(one.points)) for one in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [p[0] for line in lines for p in line.points]
    ys = [p[1] for line in lines for p in line.points] + ([floor] if floor is not None else [])
    across = Axis(min(xs), max(xs), powers and min(xs) > 0, LEFT + 6, WIDTH - RIGHT)
    up = _vertical(ys, log_y)
    parts = [_grid(across, up, sorted(set(xs)) if powers else None)]
    if floor is not None:
        parts.append(f'<path class="floor" d="M{LEFT} {up.at(floor):.1f}H{WIDTH - RIGHT}"/>')
    parts += [_path(line, across, up) for line in sorted(lines, key=lambda line: not line.raw)]
    parts.append(f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
                 f"{escape(x)}</text>")  # fmt: skip
    read = [line for line in lines if not line.raw]
    data = {
        "x": x,
        "lines": [
            {"name": line.name, "class": colour(line.role), "p": [
                [round(across.at(a), 1), round(up.at(b), 1), number(a), number(b)] for a, b in line.points
            ]} for line in read
        ],
    }  # fmt: skip
    box = f"0 0 {WIDTH} {HEIGHT}"
    names = ", ".join(line.name for line in read)
    svg = (
        f'<svg class="plot" viewBox="{box}" role="img" aria-label="{escape(y)} against {escape(x)}: {escape(names)}" '
        f'data-plot="{escape(json.dumps(data))}">{"".join(parts)}</svg>'
    )
    below = legend(read) + (f"<span class='key'><i class='floor'></i>floor {number(floor)}</span>" if floor is not None
                            else "")  # fmt: skip
    return (
        f'<figure class="plotted"><figcaption>{escape(y)}</figcaption>{svg}<div class="legend">{below}</div></figure>'
    )


def legend(lines: Sequence[Line]) -> str:
    return "".join(
        f'<span class="key"><svg width="22" height="10"><path class="line {colour(line.role)}" d="M1 5H21" '
        f'stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"/></svg>{escape(line.name)}</span>'
        for line in lines
    )


def interval_plot(rows: Sequence[tuple[str, str, float, Sequence[float] | None]], *, x: str) -> str:
    """A dot with its interval for each row of (name, role, value, interval), on one axis."""
    values = [v for _, _, value, interval in rows for v in (value, *(interval or ()))]
    left, step = max(104.0, 24 + 7.0 * max(len(name) for name, *_ in rows)), 34
    wide = 416 + left
    low, high = min(values), max(values)
    pad = 0.1 * (high - low or abs(high) or 1.0)
    log = low > 0 and high / low > DECADES
    axis = (
        Axis(low / 1.3, high * 1.3, True, left, wide - 16)
        if log
        else Axis(low - pad, high + pad, False, left, wide - 16)
    )
    tall = step * len(rows) + 34
    parts = [
        f'<path class="grid" d="M{axis.at(t):.1f} 6V{tall - 28}"/>'
        f'<text class="tick" x="{axis.at(t):.1f}" y="{tall - 14}" text-anchor="middle">{number(t)}</text>'
        for t in ticks(axis, 6)
    ]
    for i, (name, role, value, interval) in enumerate(rows):
        y, style = 22 + i * step, colour(role)
        parts.append(f'<text class="row" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        if interval:
            a, b = (axis.at(edge) for edge in interval)
            parts.append(
                f'<path class="whisker {style}" d="M{a:.1f} {y}H{b:.1f}M{a:.1f} {y - 5}v10M{b:.1f} {y - 5}v10"/>'
            )
        parts.append(f'<circle class="dot {style}" cx="{axis.at(value):.1f}" cy="{y}" r="5.5"/>')
        at = min(max(axis.at(value), left + 14), wide - 30)
        parts.append(f'<text class="value" x="{at:.1f}" y="{y - 9}" text-anchor="middle">{number(value)}</text>')
    said = ", ".join(f"{name} {number(value)}" for name, _, value, _ in rows)
    return (
        f'<figure class="plotted"><figcaption>{escape(x)}</figcaption><svg class="plot rows" '
        f'viewBox="0 0 {wide} {tall}" role="img" aria-label="{escape(x)}: {escape(said)}">{"".join(parts)}</svg>'
        "</figure>"
    )


def number(value: float) -> str:
    """Few digits, as a reader wants them at a tick or a dot."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 and value == round(value):
        return f"{value / 1000:g}k"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def ticks(axis: Axis, wanted: int = 5) -> list[float]:
    """Round numbers inside the axis."""
    if axis.log:
        exponents = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        steps = (1, 2, 5) if len(exponents) <= 3 else (1,)
        found = [step * 10.0**e for e in exponents for step in steps]
        found = [value for value in found if axis.low <= value <= axis.high]
        return found if len(found) <= 7 else found[:: math.ceil(len(found) / 6)]
    span = axis.high - axis.low or 1.0
    raw = span / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= raw)
    first = math.ceil(axis.low / step - 1e-9)
    return [k * step for k in range(first, math.floor(axis.high / step + 1e-9) + 1)]


def _vertical(ys: Sequence[float], log: bool | None) -> Axis:
    low, high = min(ys), max(ys)
    if log if log is not None else low > 0 and high / low > DECADES:
        return Axis(low / 1.15, high * 1.15, True, HEIGHT - BOTTOM, TOP)
    pad = 0.05 * (high - low or abs(high) or 1.0)
    bottom = low - pad if low < 0 or low > 0.4 * high else 0.0
    return Axis(bottom, high + pad, False, HEIGHT - BOTTOM, TOP)


def _grid(across: Axis, up: Axis, places: Sequence[float] | None) -> str:
    parts = []
    for value in ticks(up):
        y = up.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in places if places is not None else ticks(across):
        left = f'x="{across.at(value):.1f}"'
        parts.append(
            f'<text class="tick" {left} y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(value)}</text>'
        )
    return "".join(parts)


def _path(line: Line, across: Axis, up: Axis) -> str:
    places = [(across.at(a), up.at(b)) for a, b in line.points]
    d = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    style = f'class="line {colour(line.role)}{" raw" if line.raw else ""}"'
    dashes = f' stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"' if line.dash else ""
    dots = "".join(f'<circle class="dot {colour(line.role)}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places)
    ring = "".join(
        f'<circle class="best {colour(line.role)}" cx="{across.at(a):.1f}" cy="{up.at(b):.1f}" r="7"/>'
        for a, b in line.points if a == line.best
    )  # fmt: skip
    return f'<path {style} d="{d}"{dashes}/>' + (dots if line.dots or len(places) == 1 else "") + ring


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in points if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)]


def series(
    entries: Sequence[Mapping[str, Any]], key: str, most: int = 240
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(thinned values, running means) of `key` along the steps of a log."""
    found = [(float(e["step"]), float(e[key])) for e in entries if e.get(key) is not None]
    width = max(1, len(found) // 40)
    smooth = [_mean(found[max(0, i - width) : i + width + 1], found[i][0]) for i in range(len(found))]
    return _every(found, most), _every(smooth, most)


def _mean(window: Sequence[tuple[float, float]], at: float) -> tuple[float, float]:
    return at, sum(value for _, value in window) / len(window)


def _every(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    step = math.ceil(len(points) / most) if points else 1
    kept = points[::step]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


__all__ = ["ROLES", "Axis", "Line", "colour", "interval_plot", "line_plot", "number", "series", "ticks"]
