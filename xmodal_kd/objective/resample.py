"""The teacher's rows brought to the student's, where both say something of the same items on different grids.

The student's rows stay: its labels, weights and regions stand beside them, and the teacher's rows carry no gradient.
A cell is taken to cover its share of the item, whatever the number of cells: cell i of m covers i/m to (i+1)/m.

=========  ==========================================================================================================
average    the teacher's cells under a student's, weighed by how much of each lies under it; for a finer teacher. Of
           several axes, one along which the teacher is not finer is taken linearly
linear     between the two nearest centres of cells along each axis, the outermost beyond them; for a coarser teacher
nearest    the one cell that the centre of a student's lies in; of points that are known by coordinates, the nearest
knn        the three nearest points, weighed by one over the squared distance (Qi et al., PointNet++, 2017, eq. 2)
=========  ==========================================================================================================

Rows of one axis (frames, tokens, padded or ragged) are stretched by item: the valid rows of one side, up to the last,
lie over those of the other, so that padding changes nothing. Grids of several axes lie over one another whole. Rows
that are not valid have no part in a mean; where none of those that it would need is, the student's row has no teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..losses import blocks
from ..losses.base import full_precision
from ..runtime.errors import UserError
from ..signals.signals import Layout, Signal, Signals

Way = Literal["none", "average", "linear", "nearest", "knn"]
#: In the order of their numbers in a checkpoint.
WAYS: tuple[Way, ...] = ("none", "average", "linear", "nearest", "knn")
NEIGHBOURS = 3
#: A signal of this name, or of one that begins so and goes on with a colon, holds coordinates ``(n, d)`` of its rows.
COORDINATES = "xyz"


# docs/decisions/006-resampling.md
class Pair(NamedTuple):
    """Two signals of a term, and coordinates of their rows where both sides know them."""

    mine: Signal
    theirs: Signal
    points: tuple[Tensor, Tensor] | None


def pair(mine: Signal, theirs: Signal, student: Signals, teacher: Signals) -> Pair:
    here, there = coordinates(student, mine.layout), coordinates(teacher, theirs.layout)
    known = here is not None and there is not None and here.shape[1] == there.shape[1]
    return Pair(mine, theirs, (here, there) if known else None)  # type: ignore[arg-type]


def coordinates(signals: Signals, layout: Layout) -> Tensor | None:
    """``(n, d)`` of the rows of `layout`, from the signal ``xyz`` or ``xyz:<name>`` of this layout or of its rows."""
    found = [signals[name] for name in signals if name.partition(":")[0] == COORDINATES]
    exact = [signal for signal in found if signal.layout is layout]
    alike = [signal for signal in found if signal.layout.same_rows(layout)]
    rows = [signal.rows for signal in (*exact, *alike) if signal.rows.ndim == 2]
    return rows[0] if rows else None


def choose(one: Pair) -> Way:
    """What `auto` means for a pair; ``none`` where rows are aligned, or where nothing is known to align them by."""
    mine, theirs = one.mine.layout, one.theirs.layout
    if mine.same_rows(theirs) or mine.items != theirs.items:
        return "none"
    if mine.kind == theirs.kind and _axes(mine) == _axes(theirs) > 0:
        if _axes(mine) == 1:
            finer = bool(theirs.mask.sum() > mine.mask.sum())
        else:
            finer = any(t > s for s, t in zip(mine.grid or (), theirs.grid or (), strict=True))
        return "average" if finer else "linear"
    return "knn" if one.points is not None else "none"


def resample_rows(name: str, way: Way, one: Pair) -> Signal:
    """The teacher's rows as `way` says, on the student's layout. Raises `UserError` where that cannot be.

    Args:
        name: of the term, for messages.
    """
    if way == "none":
        return one.theirs
    (_, mine), (rows, theirs) = one.mine, one.theirs
    _possible(name, way, one)
    rows = full_precision(rows.detach())
    rows = rows if theirs.full else rows.masked_fill(~theirs.mask[:, None], 0.0)
    if not (len(mine) and len(theirs)):
        return Signal(
            rows.new_zeros(len(mine), rows.shape[1]), replace(mine, mask=torch.zeros_like(mine.mask), full=False)
        )
    if _by_points(way, one):
        assert one.points is not None
        index, weight = _neighbours(mine, theirs, *one.points, NEIGHBOURS if way == "knn" else 1)
    else:
        index, weight = _cells(mine, theirs, way)
    weight = weight.to(rows.dtype) * theirs.mask[index]
    out = rows.new_zeros(len(mine), rows.shape[1])
    for k in range(index.shape[1]):
        out += weight[:, k, None] * rows[index[:, k]]
    whole = weight.sum(dim=1)
    reached = whole > 0
    out /= torch.where(reached, whole, 1.0)[:, None]
    full = mine.full and theirs.full and mine.grid is not None and theirs.grid is not None and not _by_points(way, one)
    return Signal(out, mine if full else replace(mine, mask=mine.mask & reached, full=False))


def _axes(layout: Layout) -> int:
    """Of the grid; frames and tokens are a sequence even where they form none; 0 for a set."""
    return len(layout.grid) if layout.grid else int(layout.kind in ("frame", "token"))


def _by_points(way: Way, one: Pair) -> bool:
    grids = _axes(one.mine.layout) == _axes(one.theirs.layout) > 0
    return way == "knn" or (way == "nearest" and one.points is not None and not grids)


def _possible(name: str, way: Way, one: Pair) -> None:
    (_, mine), (rows, theirs) = one.mine, one.theirs
    start = f"term {name!r}: resample: {way}"
    if mine.items != theirs.items:
        raise UserError(f"{start}: the student has {mine.items} items and the teacher {theirs.items}: they must be one")
    if rows.ndim != 2:
        raise UserError(f"{start}: the teacher's rows are of shape {tuple(rows.shape)}, and (n, c) is needed")
    if way == "knn" and one.points is None:
        raise UserError(
            f"{start}: coordinates are not known on both sides: give each a signal {COORDINATES!r} (n, d) on its rows"
        )
    if not _by_points(way, one) and not _axes(mine) == _axes(theirs) > 0:
        raise UserError(
            f"{start}: the student's {mine.kind} rows of {_axes(mine)} axes and the teacher's {theirs.kind} rows of "
            f"{_axes(theirs)} do not lie over one another: only grids of as many axes and sequences do"
        )


# ---------------------------------------------------------------- grids and sequences


class _Laid(NamedTuple):
    """Where the rows of a layout lie.

    Attributes:
        cell: ``(n, axes)`` of each row within its item.
        size: ``(b, axes)`` cells of each item.
        shape: of all items' grids, for flat numbers of cells.
        first: ``(b,)`` where an item's rows begin in `order`.
        order: ``(n,)`` rows by item and cell.
    """

    cell: Tensor
    size: Tensor
    shape: Sequence[int]
    first: Tensor
    order: Tensor


def _laid(layout: Layout) -> _Laid:
    item, items, number = layout.item, layout.items, torch.arange(len(layout), device=layout.item.device)
    if layout.grid:
        each, order = prod(layout.grid), number
        first = torch.arange(items, device=item.device) * each
        cell = torch.stack(torch.unravel_index(number % each, layout.grid), dim=1)
        if len(layout.grid) > 1:
            size = torch.tensor(layout.grid, device=item.device).expand(items, -1)
            return _Laid(cell, size, layout.grid, first, order)
    else:
        order = item.argsort(stable=True)
        counts = torch.bincount(item, minlength=items)
        first = counts.cumsum(dim=0) - counts
        cell = torch.empty_like(number).index_copy(0, order, number - first[item[order]])[:, None]
    reach = torch.where(layout.mask, cell[:, 0] + 1, 0)  # up to the last valid row
    size = torch.zeros_like(first).scatter_reduce(0, item, reach, "amax")[:, None]
    return _Laid(cell, size, (0,), first, order)


def _cells(mine: Layout, theirs: Layout, way: Way) -> tuple[Tensor, Tensor]:
    """The teacher's rows ``(n, k)`` that make up each of the student's, and their weights, 0 for those that do not."""
    a, b = _laid(mine), _laid(theirs)
    index = torch.zeros(len(mine), 1, dtype=torch.int64, device=mine.item.device)
    weight = torch.ones(len(mine), 1, device=mine.item.device)
    for axis, of in enumerate(b.shape):
        along = "linear" if way == "average" and len(b.shape) > 1 and of <= a.shape[axis] else way
        found, share = _along(a.cell[:, axis], a.size[mine.item, axis], b.size[mine.item, axis], along)
        index = (index[:, :, None] * of + found[:, None]).flatten(1)
        weight = (weight[:, :, None] * share[:, None]).flatten(1)
    return b.order[(b.first[mine.item][:, None] + index).clamp(max=len(theirs) - 1)], weight


def _along(cell: Tensor, own: Tensor, other: Tensor, way: Way) -> tuple[Tensor, Tensor]:
    """Along one axis: cells ``(n, k)`` of the teacher's `other` that `cell` of the student's `own` is made of.

    In whole numbers as long as can be, so that a cell's edge is an edge: a student's cell covers ``cell * other`` to
    ``(cell + 1) * other`` where one of the teacher's is `own` long.
    """
    inside = (cell < own) & (other > 0)
    own, other = own.clamp(min=1), other.clamp(min=1)
    if way == "nearest":
        found = ((2 * cell + 1) * other // (2 * own))[:, None]
        share = torch.ones_like(found, dtype=torch.float32)
    elif way == "linear":
        place = torch.minimum(((2 * cell + 1) * other - own).clamp(min=0), 2 * own * (other - 1))
        low = place // (2 * own)
        above = (place % (2 * own)) / (2 * own)
        found, share = torch.stack([low, low + 1], dim=1), torch.stack([1 - above, above], dim=1)
    else:
        low, high = cell * other, (cell + 1) * other
        most = int(torch.where(inside, (high + own - 1) // own - low // own, 1).max())
        found = (low // own)[:, None] + torch.arange(most, device=cell.device)
        under = torch.minimum(high[:, None], (found + 1) * own[:, None]) - torch.maximum(
            low[:, None], found * own[:, None]
        )
        share = under.clamp(min=0) / other[:, None]
    there = inside[:, None] & (found < other[:, None])
    return torch.where(there, found, 0), share * there


# ---------------------------------------------------------------- points


def _neighbours(mine: Layout, theirs: Layout, here: Tensor, there: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest `count` of the teacher's points of the same item, and one over their squared distance.

    Points without finite coordinates have and are no neighbours.
    """
    index = torch.zeros(len(mine), count, dtype=torch.int64, device=here.device)
    weight = torch.zeros(len(mine), count, device=here.device)
    here, there = full_precision(here.detach()), full_precision(there.detach())
    wanted, usable = mine.mask & here.isfinite().all(dim=1), theirs.mask & there.isfinite().all(dim=1)
    for item in range(mine.items):
        targets = (wanted & (mine.item == item)).nonzero().squeeze(1)
        sources = (usable & (theirs.item == item)).nonzero().squeeze(1)
        if not (len(targets) and len(sources)):
            continue
        k = min(count, len(sources))
        for some in targets.split(max(1, blocks.BLOCK // len(sources))):
            far = torch.cdist(here[some], there[sources], compute_mode="donot_use_mm_for_euclid_dist")
            near, which = far.topk(k, dim=1, largest=False)
            index[some, :k] = sources[which]
            weight[some, :k] = (1 / (near.square() + 1e-8)).to(weight.dtype)
    return index, weight
