"""What a student of some size or speed reaches: every run as a dot, and the front of those that no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .plots import BOTTOM, DECADES, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, colour, number, ticks


@dataclass(frozen=True)
class Dot:
    """A model: what it costs, what it reaches."""

    name: str
    role: str
    cost: float
    value: float


def front(dots: Sequence[Dot], lower: bool) -> list[Dot]:
    """Those of which none costs less or the same and reaches more, by cost (Pareto). `lower`: less is better.

    >>> [dot.name for dot in front([Dot("a", "", 1, 5), Dot("b", "", 2, 6), Dot("c", "", 3, 4)], lower=True)]
    ['a', 'c']
    """
    found: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.cost, dot.value if lower else -dot.value)):
        if not found or (dot.value < found[-1].value if lower else dot.value > found[-1].value):
            found.append(dot)
    return found


def front_plot(dots: Sequence[Dot], *, x: str, y: str, lower: bool) -> str:
    """The dots, with the front of the students through them; nothing where there are fewer than two students."""
    dots = [dot for dot in dots if dot.cost > 0]
    students = [dot for dot in dots if dot.role == "student"]
    if len(students) < 2:
        return ""
    across, up = _across([dot.cost for dot in dots]), _up([dot.value for dot in dots])
    best = front(students, lower)
    said = ", ".join(f"{dot.name} {number(dot.value)} at {number(dot.cost)}" for dot in best)
    places = [(across.at(dot.cost), up.at(dot.value)) for dot in best]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(f"H{a:.1f}V{b:.1f}" for a, b in places[1:])
    marks = "".join(_dot(dot, across, up) for dot in sorted(dots, key=lambda dot: dot.role == "student"))
    about = f"{y} against {x}; the front: {said}"
    edge = f'<path class="line of-student edge" d="{path}H{WIDTH - RIGHT}"/>'
    return (
        f'<figure class="plotted"><figcaption>{escape(y)}</figcaption><svg class="plot front" role="img" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" data-lower="{str(lower).lower()}" aria-label="{escape(about)}">'
        f'{_frame(across, up, x)}{edge}{marks}</svg><div class="legend">{_legend(dots)}</div></figure>'
    )


def _dot(dot: Dot, across: Axis, up: Axis) -> str:
    size = 5 if dot.role == "student" else 3.5
    return (
        f'<circle class="dot {colour(dot.role)}" data-run="{escape(dot.name)}" data-role="{escape(dot.role)}" '
        f'cx="{across.at(dot.cost):.1f}" cy="{up.at(dot.value):.1f}" r="{size}"><title>{escape(dot.name)}, '
        f"{escape(dot.role)}: {number(dot.value)} at {number(dot.cost)}</title></circle>"
    )


def _across(costs: Sequence[float]) -> Axis:
    low, high = min(costs), max(costs)
    if high / low > DECADES / 4:
        return Axis(low / 1.3, high * 1.3, True, LEFT + 6, WIDTH - RIGHT)
    pad = 0.06 * (high - low or high)
    return Axis(max(0.0, low - pad), high + pad, False, LEFT + 6, WIDTH - RIGHT)


def _up(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if low > 0 and high / low > DECADES:
        return Axis(low / 1.2, high * 1.2, True, HEIGHT - BOTTOM, TOP)
    pad = 0.08 * (high - low or abs(high) or 1.0)
    return Axis(low - pad, high + pad, False, HEIGHT - BOTTOM, TOP)


def _frame(across: Axis, up: Axis, x: str) -> str:
    rows = "".join(
        f'<path class="grid" d="M{LEFT} {up.at(v):.1f}H{WIDTH - RIGHT}"/><text class="tick" x="{LEFT - 6}" '
        f'y="{up.at(v) + 4:.1f}" text-anchor="end">{number(v)}</text>'
        for v in ticks(up)
    )
    below = "".join(
        f'<text class="tick" x="{across.at(v):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(v)}</text>'
        for v in ticks(across)
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'{rows}{below}<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>'


def _legend(dots: Sequence[Dot]) -> str:
    roles = dict.fromkeys(dot.role for dot in dots)
    keys = "".join(
        f'<span class="key"><svg width="12" height="12"><circle class="dot {colour(role)}" cx="6" cy="6" r="5"/></svg>'
        f"{escape(role)}</span>"
        for role in roles
    )
    return (
        keys + '<span class="key"><svg width="22" height="10"><path class="line of-student" d="M1 8H11V2H21"/></svg>'
        "the front of the students</span>"
    )


__all__ = ["Dot", "front", "front_plot"]
