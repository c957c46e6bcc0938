"""Layers that learned losses are made of, on rows (n, c), from their definitions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .maths import Array, Ints

Params = Mapping[str, Array]


def under(params: Params, prefix: str) -> Params:
    """The parameters of a submodule, by their names inside it."""
    return {key[len(prefix) + 1 :]: value for key, value in params.items() if key.startswith(prefix + ".")}


def linear(x: Array, params: Params) -> Array:
    """W x + b of the last axis."""
    y = x @ params["weight"].T
    return y + params["bias"] if "bias" in params else y


def conv(rows: Array, params: Params, cell: Ints, grid: Sequence[int] | None) -> Array:
    """Cross-correlation with (c_out, c, *kernel) over each item's grid; outside it and where no row is there are zeros.

    Row i is cell `cell[i]` of the items x prod(grid) cells of the batch, row-major. A kernel of one cell, or a weight
    (c_out, c), is `linear` of each row and needs no grid.
    """
    kernel = params["weight"].shape[2:]
    if grid is None or math.prod(kernel) == 1:
        return linear(rows, {**params, "weight": params["weight"].reshape(len(params["weight"]), -1)})
    y = np.zeros((len(rows), len(params["weight"])))
    place = [(int(at) // math.prod(grid), *index_of(at, grid)) for at in cell]
    row_at = {place[i]: i for i in range(len(rows))}
    for i in range(len(rows)):
        item, *index = place[i]
        for tap in np.ndindex(*kernel):
            near = [a + t - k // 2 for a, t, k in zip(index, tap, kernel, strict=True)]
            source = row_at.get((item, *near))
            if source is not None:
                y[i] += params["weight"][(slice(None), slice(None), *tap)] @ rows[source]
    return y + params["bias"] if "bias" in params else y


def index_of(cell: int, grid: Sequence[int]) -> tuple[int, ...]:
    """Where a cell of the batch lies in its own item's grid."""
    return tuple(int(a) for a in np.unravel_index(cell % math.prod(grid), tuple(grid)))


def norm_of(rows: Array, params: Params, kind: str, eps: float = 1e-5) -> Array:
    """gamma (x - m) / sqrt(v + eps) + beta with the biased variance v, or, `none`, the rows themselves.

    `batch`: mean and variance of each channel over the rows (training). `layer`: of each row over its channels.
    """
    if kind == "none" or not len(rows):
        return rows
    axis = {"batch": 0, "layer": 1}[kind]
    m, v = rows.mean(axis, keepdims=True), rows.var(axis, keepdims=True)
    return params["weight"] * (rows - m) / np.sqrt(v + eps) + params["bias"]


def relu(x: Array) -> Array:
    return np.where(x > 0, x, 0.0)


def leaky_relu(x: Array, slope: float) -> Array:
    return np.where(x > 0, x, slope * x)


def gelu(x: Array) -> Array:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel()]).reshape(x.shape)


def sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)
