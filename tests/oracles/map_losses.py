"""Features on a grid: row i is cell `cell[i]` of the items x prod(grid) cells of the batch, row-major.

A kernel of one cell needs no neighbours: `grid` may be None. An item's own extent is, on each axis, one more than the
greatest index of its valid cells: what padding adds to the batch's grid is no part of an item.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .layers import Params, conv, index_of, leaky_relu, linear, norm_of, relu, sigmoid, under
from .maths import Array, Ints, log_softmax, mean_square, unit

Grid = Sequence[int] | None


def ft(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    cell: Ints,
    grid: Grid,
    *,
    state: Params,
    k: float = 0.5,
    kernel: int = 3,
    factor: str = "paper",
    pretrain: float | None = None,
    reconstruction: float = 1.0,
    progress: float = 0.0,
) -> Array:
    """Mean |n(F_s) - n(F_t)|, F_t of the paraphraser, F_s of the translator (Kim et al., 2018).

    n(F) is F / ||F||_2 over an item's positions and channels, or, `attention` (the form of RepDistiller), the mean over
    channels of F^2 at each position over its norm. Each stack is three convolutions, leaky ReLU 0.1 after each.
    The reconstruction, the mean over rows and channels of (decoder(F_t) - f_t)^2, is added without `pretrain`; with it
    the value is the reconstruction alone in that first share of the training and the factors' distance after.
    """
    f_t, f_s = teacher, student
    for i in range(3):
        f_t = leaky_relu(conv(f_t, under(state, f"paraphraser.{i}"), cell, grid), 0.1)
        f_s = leaky_relu(conv(f_s, under(state, f"translator.{i}"), cell, grid), 0.1)
    rebuilt = f_t
    for i in range(3):
        rebuilt = leaky_relu(conv(rebuilt, under(state, f"decoder.{i}"), cell, grid), 0.1)
    values = np.zeros(items)
    learning = pretrain is not None and progress < pretrain
    for b in range(items):
        rows = _rows_of(b, item)
        if not rows:
            continue
        if not learning:
            values[b] += np.mean(np.abs(_factor(f_s[rows], factor) - _factor(f_t[rows], factor)))
        if learning or pretrain is None:
            values[b] += reconstruction * mean_square(rebuilt[rows].ravel(), teacher[rows].ravel())
    return values


def simkd(
    student: Array,
    teacher: Array,
    items: int,
    cell: Ints,
    grid: Grid,
    *,
    state: Params,
    kernel: int = 3,
    norm: str = "batch",
) -> Array:
    """Mean over channels of (P(f_s) - f_t)^2, P three times convolution, norm, ReLU (Chen et al., 2022)."""
    x = student
    for i in range(3):
        x = relu(norm_of(conv(x, under(state, f"conv.{i}"), cell, grid), under(state, f"norm.{i}"), norm))
    return np.array([mean_square(p, t) for p, t in zip(x, teacher, strict=True)])


def mgd(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    cell: Ints,
    grid: Grid,
    *,
    state: Params,
    keep: Array,
    drop: float = 0.65,
    mask: str = "spatial",
    kernel: int = 3,
    reduce: str = "sum",
) -> Array:
    """Sum (mean) over an item's rows and channels of (G(f_s M) - f_t)^2, G = conv, ReLU, conv (Yang et al., 2022).

    `keep` is M as drawn with share `drop` of zeros: (n, 1), one a row (spatial), or (items, c), a channel of an item.
    """
    m = keep if mask == "spatial" else keep[item]
    return _squares(_generate(student * m, cell, grid, under(state, "generator")), teacher, item, items, reduce)


def dmkd(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    cell: Ints,
    grid: Grid,
    *,
    state: Params,
    drop: float = 0.5,
    kernel: int = 3,
    reduce: str = "sum",
) -> Array:
    """Sum (mean) of (w_1 G_sp(f_s M_sp) + w_2 G_ch(f_s M_ch) - f_t)^2 with w the softmax of `mix` (Yang et al., 2024).

    The spatial mask drops an item's floor(drop rows) rows of largest mean_c |f_t|, that of channels the floor(drop c)
    channels of largest mean over the rows of |f_t|. A softmax of these (with tau) would drop the same.
    """
    spatial, channel = student.copy(), student.copy()
    for b in range(items):
        rows = _rows_of(b, item)
        for i in sorted(rows, key=lambda i: -np.mean(np.abs(teacher[i])))[: int(drop * len(rows))]:
            spatial[i] = 0.0
        if rows:
            size = [np.mean(np.abs(teacher[rows, c])) for c in range(teacher.shape[1])]
            for c in sorted(range(len(size)), key=lambda c: -size[c])[: int(drop * len(size))]:
                channel[rows, c] = 0.0
    w = np.exp(log_softmax(state["mix"]))
    made = w[0] * _generate(spatial, cell, grid, under(state, "spatial"))
    made = made + w[1] * _generate(channel, cell, grid, under(state, "channel"))
    return _squares(made, teacher, item, items, reduce)


def fgfi(
    student: Array,
    teacher: Array,
    regions: Array,
    items: int,
    cell: Ints,
    grid: Grid,
    *,
    state: Params,
    kernel: int = 3,
    relu: bool = True,
) -> Array:
    """1/2 sum_c (P(f_s) - f_t)^2 where `regions`, else 0; the mean over N_p is the caller's (Wang et al., 2019)."""
    p = conv(student, under(state, "adapt"), cell, grid)
    p = np.where(p > 0, p, 0.0) if relu else p
    return np.array([0.5 * np.sum((p[i] - teacher[i]) ** 2) if regions[i] else 0.0 for i in range(len(p))])


def catkd(
    student: Array,
    teacher: Array,
    item: Ints,
    items: int,
    cell: Ints,
    grid: Sequence[int],
    *,
    cells: int = 2,
    normalise: bool = True,
) -> Array:
    """Mean over classes and cells of (A_s - A_t)^2, A the class maps pooled to `cells` an axis (Guo et al., 2023).

    Each class's map of pooled cells is divided by its L2 norm if `normalise`.
    """
    values = np.zeros(items)
    for b in range(items):
        rows = _rows_of(b, item)
        if rows:
            a_s, a_t = (_pool(a[rows], cell[rows], grid, cells) for a in (student, teacher))
            if normalise:
                a_s, a_t = (np.array([unit(a[:, c]) for c in range(a.shape[1])]) for a in (a_s, a_t))
            values[b] = mean_square(a_s.ravel(), a_t.ravel())
    return values


def reviewkd(
    student: Sequence[Array],
    teacher: Sequence[Array],
    item: Sequence[Ints],
    items: int,
    cell: Sequence[Ints],
    grid: Sequence[Grid],
    *,
    state: Params,
    mid: int = 512,
    kernel: int = 3,
    norm: str = "batch",
) -> Array:
    """Sum over levels, shallow to deep, of HCL(out_l, f_t) (Chen et al., 2021).

    x_l = norm(1x1(f_s)); but at the deepest x_l <- a_0 x_l + a_1 r, a = sigmoid(1x1[x_l; r]), r the deeper level's x at
    the nearest cell; out_l = norm(3x3(x_l)).
    """
    values = np.zeros(items)
    deeper: Array | None = None
    for level in reversed(range(len(student))):
        x = norm_of(linear(student[level], under(state, f"reduce.{level}")), under(state, f"reduce_norm.{level}"), norm)
        place = item[level], cell[level], grid[level]
        if deeper is not None:
            r = _nearest(deeper, (item[level + 1], cell[level + 1], grid[level + 1]), place, items)
            a = sigmoid(linear(np.concatenate([x, r], axis=1), under(state, f"attend.{level}")))
            x = a[:, :1] * x + a[:, 1:] * r
        deeper = x
        out = norm_of(
            conv(x, under(state, f"out.{level}"), cell[level], grid[level]), under(state, f"out_norm.{level}"), norm
        )
        for b in range(items):
            rows = _rows_of(b, item[level])
            if rows:
                values[b] += _hcl(out[rows], teacher[level][rows], cell[level][rows], grid[level])
    return values


def _hcl(out: Array, target: Array, cell: Ints, grid: Grid) -> float:
    """(MSE + sum_j 2^-j MSE of pools to 4, 2, 1 cells an axis) / (1 + sum_j 2^-j).

    As in the release, pools that are no smaller than the map (on its first axis) are skipped and not counted by j.
    """
    total, weight, used = mean_square(out.ravel(), target.ravel()), 1.0, 1.0
    for side in (4, 2, 1):
        if side < _extent(cell, grid)[0]:
            weight /= 2
            used += weight
            pooled = (_pool(f, cell, grid, side).ravel() for f in (out, target))
            total += weight * mean_square(*pooled)
    return total / used


def _nearest(deep: Array, deep_place: tuple[Ints, Ints, Grid], place: tuple[Ints, Ints, Grid], items: int) -> Array:
    """For each row the deeper level's row of cell floor(i n_deep / n) on each axis, n the extents of its item."""
    (deep_item, deep_cell, deep_grid), (item, cell, grid) = deep_place, place
    r = np.zeros((len(item), deep.shape[1]))
    for b in range(items):
        rows, deep_rows = _rows_of(b, item), _rows_of(b, deep_item)
        if not rows or not deep_rows:
            continue
        n, n_deep = _extent(cell[rows], grid), _extent(deep_cell[deep_rows], deep_grid)
        row_at = {index_of(deep_cell[j], deep_grid): j for j in deep_rows}
        for i in rows:
            source = tuple(a * d // e for a, d, e in zip(index_of(cell[i], grid), n_deep, n, strict=True))
            if source in row_at:
                r[i] = deep[row_at[source]]
    return r


def _rows_of(b: int, item: Ints) -> list[int]:
    return [i for i in range(len(item)) if item[i] == b]


def _extent(cell: Ints, grid: Grid) -> tuple[int, ...]:
    return tuple(1 + max(axis) for axis in zip(*[index_of(c, grid) for c in cell], strict=True))


def _pool(f: Array, cell: Ints, grid: Grid, side: int) -> Array:
    """(up to side ** axes, c): means over cells floor(i n / side) to ceil((i + 1) n / side) of each axis, n the extent.

    Only over valid cells; where there is none, the pooled cell is left out like any other that is masked.
    """
    extent = _extent(cell, grid)
    row_at = {index_of(c, grid): i for i, c in enumerate(cell)}
    pooled = []
    for place in np.ndindex(*[side] * len(extent)):
        spans = [range(i * n // side, -(-(i + 1) * n // side)) for i, n in zip(place, extent, strict=True)]
        valid = [row_at[at] for at in itertools.product(*spans) if at in row_at]
        if valid:
            pooled.append(f[valid].mean(0))
    return np.array(pooled)


def _factor(f: Array, kind: str) -> Array:
    return unit(np.array([np.mean(row**2) for row in f])) if kind == "attention" else unit(f.ravel())


def _generate(x: Array, cell: Ints, grid: Grid, state: Params) -> Array:
    return conv(relu(conv(x, under(state, "0"), cell, grid)), under(state, "1"), cell, grid)


def _squares(made: Array, teacher: Array, item: Ints, items: int, reduce: str) -> Array:
    values = np.zeros(items)
    for b in range(items):
        rows = _rows_of(b, item)
        if rows:
            squares = (made[rows] - teacher[rows]) ** 2
            values[b] = np.sum(squares) if reduce == "sum" else np.mean(squares)
    return values
