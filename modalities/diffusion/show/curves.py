"""Quality against network evaluations: the picture that a claim about few steps stands on."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from xmodal_kd.runtime.checkpoint import write_bytes

#: Points of a curve: role (``teacher``, ``student``, ...), nfe, solver, metrics.
Point = Mapping[str, Any]


def draw_curve(
    path: Path, points: Sequence[Point], metric: str = "fd_clf", *, floor: float | None = None, title: str = ""
) -> Path:
    """A PNG of `metric` over function evaluations, both logarithmic where all values are positive.

    Args:
        points: ``{"role", "nfe", "solver", "metrics"}`` each; points without a finite `metric` are left out. A role
            and solver that occur at one nfe several times (seeds) are drawn as their mean with the range.
        floor: what real samples reach, as a dashed line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    found = lines(points, metric)
    for (role, solver), line in found.items():
        x, mean, low, high = zip(*line, strict=True)
        spread = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
        style = "o--" if role.startswith("teacher") else "s-"
        axes.errorbar(x, mean, yerr=spread, fmt=style, capsize=2, markersize=4, label=f"{role}, {solver}")
    if floor is not None:
        axes.axhline(floor, color="0.4", linestyle="--", linewidth=1, label="floor: real samples")
    axes.set_xscale("log", base=2)
    counts = sorted({x for line in found.values() for x, *_ in line})
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes.set_xticks([], minor=True)
    if all(low > 0 for line in found.values() for _, _, low, _ in line) and (floor is None or floor > 0):
        axes.set_yscale("log")
    axes.set(xlabel="network evaluations a sample", ylabel=metric, title=title)
    axes.grid(alpha=0.3)
    if found or floor is not None:
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
    return path


def lines(points: Sequence[Point], metric: str) -> dict[tuple[str, str], list[tuple[int, float, float, float]]]:
    """(nfe, mean, least, greatest) along each (role, solver), in order of nfe."""
    kept = [
        (str(p["role"]), str(p["solver"]), int(p["nfe"]), float(p["metrics"][metric]))
        for p in points
        if math.isfinite(float(p["metrics"].get(metric, math.nan)))
    ]
    found: dict[tuple[str, str], list[tuple[int, float, float, float]]] = {}
    for (role, solver, nfe), group in groupby(sorted(kept), key=lambda point: point[:3]):
        values = [point[3] for point in group]
        line = found.setdefault((role, solver), [])
        line.append((nfe, sum(values) / len(values), min(values), max(values)))
    return found


__all__ = ["draw_curve", "lines"]
