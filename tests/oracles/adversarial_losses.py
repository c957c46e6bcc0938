"""The student's part of games against a critic D."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from .layers import Params, leaky_relu, linear, softplus, under
from .maths import Array, Ints, log_softmax


def adv_feature(
    student: Array,
    teacher: Array,
    *,
    state: Params,
    hidden: int = 256,
    game: str = "hinge",
    spectral: bool = True,
) -> Array:
    """-D(f_s) (hinge) or -log sigmoid(D(f_s)) (bce), D a stack of linear layers with leaky ReLU 0.2 between.

    Each weight is divided by its largest singular value if `spectral`. The teacher only stands in the critic's part.
    """
    layers = sum(1 for key in state if key.startswith("critic.layers.") and key.endswith(".weight"))
    values = np.zeros(len(student))
    for i in range(len(student)):
        x = student[i]
        for layer in range(layers):
            w, b = state[f"critic.layers.{layer}.weight"], state[f"critic.layers.{layer}.bias"]
            x = (w / np.linalg.svd(w, compute_uv=False)[0] if spectral else w) @ x + b
            x = leaky_relu(x, 0.2) if layer < layers - 1 else x
        values[i] = student_part(x[0], game)
    return values


def student_part(score: float, game: str) -> float:
    """What the student minimises of what D says of it."""
    if game == "lsgan":
        return (score - 1) ** 2
    return -score if game == "hinge" else float(softplus(-score))


def adv_logit(student: Array, teacher: Array, *, state: Params, game: str = "hinge", spectral: bool = True) -> Array:
    """`adv_feature` on logits, with the layers that the state holds (Xu et al., 2018)."""
    return adv_feature(student, teacher, state=state, game=game, spectral=spectral)


def skd_adv(
    student: Sequence[Array],
    teacher: Sequence[Array],
    cell: Sequence[Ints],
    items: int,
    grid: Sequence[Sequence[int]],
    *,
    state: Params,
    hidden: int = 64,
    penalty: float = 10.0,
) -> Array:
    """-D([softmax(z_s); conditions]) of whole maps: the holistic term of structured KD (Liu et al., 2019).

    D is four strided convolutions with leaky ReLU 0.1, self-attention after the third and the fourth, a convolution of
    one cell to one channel, and the mean over positions. Cells without a valid row are 0. `penalty` is the critic's.
    """
    probabilities = np.array([np.exp(log_softmax(z)) for z in student[0]])
    critic = under(state, "critic")
    signals = [probabilities, *student[1:]]
    values = np.zeros(items)
    for b in range(items):
        x = np.concatenate([_map(f, c, g, b) for f, c, g in zip(signals, cell, grid, strict=True)])
        if not np.any(cell[0] // math.prod(grid[0]) == b):
            continue
        for layer in range(4):
            x = leaky_relu(_conv(x, under(critic, f"convs.{layer}")), 0.1)
            if layer >= 2:
                x = _attended(x, under(critic, f"attention.{layer - 2}"))
        score = linear(_flat(x).T, _of_one_cell(under(critic, "score")))
        values[b] = -score.mean()
    return values


def patch_gan(
    student: Sequence[Array],
    labels: Array,
    cell: Sequence[Ints],
    items: int,
    grid: Sequence[Sequence[int]],
    *,
    state: Params,
    hidden: int = 64,
    layers: int = 3,
    game: str = "hinge",
) -> Array:
    """Mean over patches of the student's part of the game, D seeing [what is made; conditions] (Isola et al., 2017).

    D is `layers` strided convolutions with leaky ReLU 0.2, all channels and cells of an image normalised together
    before it from the second on, and a linear map of each cell. The labels are the critic's.
    """
    critic = under(state, "critic")
    values = np.zeros(items)
    for b in range(items):
        if not np.any(cell[0] // math.prod(grid[0]) == b):
            continue
        x = np.concatenate([_map(f, c, g, b) for f, c, g in zip(student, cell, grid, strict=True)])
        for layer in range(layers):
            x = _conv(x, under(critic, f"convs.{layer}"))
            if layer:
                norm = under(critic, f"norms.{layer - 1}")
                x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
                x = np.stack([g * plane + a for g, a, plane in zip(norm["weight"], norm["bias"], x, strict=True)])
            x = leaky_relu(x, 0.2)
        scores = linear(_flat(x).T, _of_one_cell(under(critic, "score")))[:, 0]
        values[b] = sum(student_part(score, game) for score in scores) / len(scores)
    return values


def _map(rows: Array, cell: Ints, grid: Sequence[int], b: int) -> Array:
    """(c, *grid) of item b, 0 where no row is."""
    x = np.zeros((rows.shape[1], math.prod(grid)))
    for i in range(len(rows)):
        if cell[i] // math.prod(grid) == b:
            x[:, cell[i] % math.prod(grid)] = rows[i]
    return x.reshape(rows.shape[1], *grid)


def _conv(x: Array, params: Params) -> Array:
    """Kernel 3, stride 2, one cell of zeros around: ceil(n / 2) cells on an axis of n."""
    grid = [-(-n // 2) for n in x.shape[1:]]
    y = np.zeros((len(params["weight"]), *grid))
    for at in itertools.product(*[range(n) for n in grid]):
        total = params["bias"].copy()
        for tap in itertools.product(range(3), repeat=len(grid)):
            source = [2 * a + t - 1 for a, t in zip(at, tap, strict=True)]
            if all(0 <= s < n for s, n in zip(source, x.shape[1:], strict=True)):
                total += params["weight"][(slice(None), slice(None), *tap)] @ x[(slice(None), *source)]
        y[(slice(None), *at)] = total
    return y


def _attended(x: Array, params: Params) -> Array:
    """x + gamma v attn^T, attn = softmax over keys of q^T k (Zhang et al., 2019)."""
    q, k, v = (
        linear(_flat(x).T, _of_one_cell(under(params, name))) for name in ("query", "key", "value")
    )  # (positions, channels)
    out = np.zeros(v.shape)
    for i in range(len(q)):
        attention = np.exp(log_softmax(np.array([np.sum(q[i] * k[j]) for j in range(len(k))])))
        out[i] = sum(attention[j] * v[j] for j in range(len(v)))
    return x + params["gamma"] * out.T.reshape(x.shape)


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def _of_one_cell(params: Params) -> Params:
    return {**params, "weight": params["weight"].reshape(len(params["weight"]), -1)}
