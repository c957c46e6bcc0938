"""Samples on a run's page: the same noise through teacher and student by number of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from xmodal_kd.adapter.panels import Panel, gallery, png

from ..models.denoiser import Denoiser
from .overview import Judged, points
from .pictures import grid

#: Samples in a grid.
SHOWN = 16


def show(adapter: Judged, models: Mapping[str, Denoiser], folder: Path) -> Sequence[Panel]:
    """A grid for each role and sampler (columns) at each number of evaluations (rows)."""
    rows: dict[int, dict[str, tuple[bytes, str]]] = {}
    columns: dict[str, None] = {}
    heat = adapter.config.sources == "arrays"
    for role, model in points(models, folder, adapter.config.curve):
        how = model.sampling
        name = f"{role}, {how.solver}"
        columns[name] = None
        samples = adapter.sample(model, 0, SHOWN).cpu()
        pixels = np.asarray(grid(samples, heat=heat))
        caption = f"{how.steps} steps" if how.steps != model.nfe else ""
        rows.setdefault(model.nfe, {})[name] = (png(pixels), caption)
    # the student beside what it is compared with: the teacher's own sampler, itself, then other samplers
    order = sorted(columns, key=lambda name: (not name.startswith("student"), list(columns).index(name)))
    labelled = [(f"{nfe} evaluation{'s' if nfe > 1 else ''}", rows[nfe]) for nfe in sorted(rows)]
    note = "The same noise in every grid: each place shows what a sampler makes of one draw."
    replaces = ["The same noise through every sampler", "Quality against network evaluations"]
    return [gallery("Samples by number of evaluations", order, labelled, note=note, replaces=replaces)]


def glimpse(adapter: Judged, role: str, model: Denoiser) -> Sequence[Panel]:
    """A grid of what one role makes now of the noise of the first draw."""
    pixels = np.asarray(grid(adapter.sample(model, 0, SHOWN).cpu(), heat=adapter.config.sources == "arrays"))
    nfe = model.nfe
    cell = (png(pixels), f"{nfe} evaluation{'s' if nfe > 1 else ''}")
    note = "The same noise at every evaluation, and in every role: each place shows what becomes of one draw."
    return [gallery("Samples while it learns", [role], [("now", {role: cell})], note=note)]


__all__ = ["glimpse", "show"]
