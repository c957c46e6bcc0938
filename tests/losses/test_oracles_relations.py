"""Oracles of relations, contrast and critics: values by hand, and a strided convolution against torch's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles.adversarial_losses import _conv
from oracles.by_hand import Case, check, layer
from oracles.contrastive_losses import crd_update
from oracles.graph_losses import _right
from oracles.structure_losses import _moments
from torch.nn import functional as F

E, LOG, ROOT = math.exp, math.log, math.sqrt
EYE = [[1.0, 0.0], [0.0, 1.0]]
ONE = {"item": [[0], [0]], "items": 1}
LINE_S, LINE_T = [[0.0], [2.0], [1.0]], [[0.0], [1.0], [3.0]]


def two(log_odds_p: float, log_odds_q: float) -> float:
    """KL of two pairs of chances, given by the log odds of the first."""
    p, q = 1 / (1 + E(-log_odds_p)), 1 / (1 + E(-log_odds_q))
    return p * LOG(p / q) + (1 - p) * LOG((1 - p) / (1 - q))


GRAPHS: list[Case] = [
    # means of the outer products: (3, 6) and (1, 0)
    (
        "fsp",
        {
            "student": [[[1.0, 2.0], [1.0, 0.0]], [[3.0], [1.0]]],
            "teacher": [[[0.0, 0.0], [0.0, 0.0]], [[9.0], [9.0]]],
            "item": [[0, 0], [0, 0]],
            "items": 2,
        },
        [(4 + 9) / 2, 0.0],
    ),
    # squared distances 1, 9, 4 over 9 and 1, 4, 1 over 4
    (
        "irg",
        {
            "student": [[[0.0], [1.0], [3.0]], [[1.0, 3.0], [0.0, 0.0], [0.0, 0.0]]],
            "teacher": [[[0.0], [1.0], [2.0]], [[0.0, 0.0]] * 3],
            "transform": 0.0,
        },
        0.1 * 10 / 6 + 5 * 2 * (5**2 + 7**2) / 36**2 / 9,
    ),
    # means of two channels: moved by 0, 1, 2 and 1, 0, 0; squared over the largest 0, 1/4, 1 and 1, 0, 0
    (
        "irg",
        {
            "student": [[[0.0], [1.0], [3.0]], [[0.0, 0.0], [1.0, 3.0], [3.0, 7.0]], [[0.0]] * 3],
            "teacher": [[[0.0], [1.0], [2.0]], [[1.0], [1.0], [2.0]], [[0.0]] * 3],
            "edge": 0.0,
        },
        5 * (1 + 1 / 16 + 1) / 3,
    ),
    # directions (-0.6, 0.8) and (0, 1), then 1 and 1
    (
        "kdsvd",
        {"student": [[[3.0, -4.0]], [[2.0]]], "teacher": [[[0.0, 5.0]], [[-3.0]]], **ONE},
        [(E(-(1.6**2) / 8) - E(-1 / 8)) ** 2 + (E(-(0.2**2) / 8) - 1) ** 2],
    ),
    # times 5, then times 3: (-3, 4) and (0, 5), then 3 and 3
    (
        "kdsvd",
        {"student": [[[3.0, -4.0]], [[2.0]]], "teacher": [[[0.0, 5.0]], [[-3.0]]], **ONE, "relative": False},
        [(E(-36 / 8) - E(-9 / 8)) ** 2 + (E(-1 / 8) - E(-4 / 8)) ** 2],
    ),
    # student nodes all alike: norm makes 0 of them; teacher's +-1/2 on both channels over sqrt(1/4 + 1e-5)
    (
        "mhgd",
        {
            "student": [[[6.0, 8.0], [3.0, 4.0]]] * 2,
            "teacher": [[[2.0, 0.0], [0.0, -7.0]]] * 2,
            "item": [[0, 1], [0, 1]],
            "items": 2,
            "heads": 1,
            "state": {
                **{"keys.0.weight": EYE, "queries.0.weight": EYE},
                **layer("key_norms.0", "query_norms.0", weight=[0.5, 0.5], bias=[0.0, 0.0]),
            },
        },
        two(0.0, 2 * math.tanh(2 * 0.25 * 0.25 / (0.25 + 1e-5))),
    ),
]
STRUCTURES: list[Case] = [
    # cosines 0 and 1 apart from the diagonal: 1 and 1 + 0.8 + 0.32, times exp(-0.8)
    ("cc", {"student": [[1.0, 0.0], [0.0, 2.0]], "teacher": [[1.0], [3.0]]}, 2 * (1.12 * E(-0.8)) ** 2 / 4),
    # neighbours by the teacher (1, 2), (0, 2), (1, 0); student's distances to them (2, 1), (2, 1), (1, 1)
    (
        "darkrank",
        {"student": LINE_S, "teacher": LINE_T, "alpha": 1.0, "beta": 1.0, "nearest": 2, "normalise": False},
        (2 * LOG(1 + E(1)) + LOG(2)) / 3,
    ),
    (
        "darkrank",
        {"student": LINE_S, "teacher": LINE_T, "alpha": 0.5, "beta": 2.0, "nearest": 2, "normalise": False},
        (2 * LOG(1 + E(1.5)) + LOG(2)) / 3,
    ),
    # the teacher's distances (1, 3), (1, 2), (2, 3)
    (
        "darkrank_soft",
        {"student": LINE_S, "teacher": LINE_T, "alpha": 1.0, "beta": 1.0, "normalise": False},
        (two(2, -1) + two(1, -1) + two(1, 0)) / 3,
    ),
    # directions: rows 0 and 1 coincide at the teacher and are opposite at the student; a third is across
    (
        "darkrank",
        {"student": [[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]], "teacher": [[1.0], [2.0], [-1.0]], "nearest": 1},
        0.0,
    ),
    ("rcka", {"student": [[1.0], [0.0]], "teacher": [[1.0], [1.0]]}, 1 - (0.5 + 1) / 2),
    # across and alike
    (
        "ickd",
        {"student": [[1.0, 0.0], [0.0, 2.0]], "teacher": [[3.0, 2.0], [0.0, 0.0]], "item": [0, 0], "items": 1},
        [0.5],
    ),
    (
        "ickd",
        {
            "student": [[1.0, 0.0], [0.0, 2.0]],
            "teacher": [[1.0, 1.0], [0.0, 0.0]],
            "item": [0, 0],
            "items": 1,
            "normalise": False,
        },
        [(0 + 9 + 1 + 1) / 4],
    ),
    # windows of two and of one cell: (1, 1) and (1, 0) against (1, 0) and (0, 1); item 1 has one node
    (
        "skd_pair",
        {
            "student": [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [5.0, 6.0]],
            "teacher": [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [7.0, 8.0]],
            "cell": [0, 1, 2, 4],
            "items": 2,
            "grid": (3,),
            "pool": 0.7,
        },
        [2 * 0.5 / 4, 0.0],
    ),
    # means (1, 0) and (1/2, 1/2): 45 degrees; maxima (3, 0) and (1, 0) would be parallel
    (
        "skd_pair",
        {
            "student": [[3.0, 0.0], [-1.0, 0.0], [0.5, 0.5]],
            "teacher": [[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]],
            "cell": [0, 1, 2],
            "items": 1,
            "grid": (3,),
            "pool": 0.7,
            "pooling": "mean",
        },
        [2 * (1 - ROOT(0.5)) ** 2 / 4],
    ),
    # a prototype between two rows; a region, and an item, of a single row
    (
        "ifvd",
        {
            "student": [[1.0, 0.0], [0.0, 1.0], [7.0, 7.0], [5.0, 0.0]],
            "teacher": [[1.0, 0.0], [1.0, 0.0], [1.0, 2.0], [0.0, 1.0]],
            "item": [0, 0, 0, 1],
            "items": 2,
            "regions": [4, 4, 0, 4],
        },
        [(1 - ROOT(0.5)) ** 2, (1 - ROOT(0.5)) ** 2, 0.0, 0.0],
    ),
    # single rows have no spread: only the means count; item 1 has no region that is large enough
    (
        "intra_kd",
        {
            "student": [[1.0, 0.0], [0.0, 1.0]],
            "teacher": [[1.0, 0.0], [2.0, 0.0]],
            "item": [0, 0],
            "items": 2,
            "regions": [0, 1],
        },
        [2 / 4 / 3, 0.0],
    ),
    (
        "intra_kd",
        {
            "student": [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]],
            "teacher": [[1.0, 0.0], [2.0, 0.0], [9.0, 8.0]],
            "item": [0, 0, 1],
            "items": 2,
            "regions": [0, 1, 1],
            "least": 2,
        },
        [0.0, 0.0],
    ),
    # neighbours of rows 0, 1, 2 at the teacher: (1, 2), (0, 2), (1, 0)
    (
        "lsp",
        {"student": [[0.0], [1.0], [1.0]], "teacher": LINE_T, "item": [0, 0, 0], "items": 1},
        [two(0, E(-0.5) - E(-4.5)), two(E(-0.5) - 1, E(-0.5) - E(-2)), two(1 - E(-0.5), E(-2) - E(-4.5))],
    ),
    # a single neighbour has all of the weight
    (
        "lsp",
        {"student": [[0.0], [1.0], [1.0]], "teacher": LINE_T, "item": [0, 0, 0], "items": 1, "neighbours": 1},
        [0.0, 0.0, 0.0],
    ),
]
BANKS = {
    "bank_s": [[0.0, 0.0]] * 4,
    "bank_t": [[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]],
    "z_s": 1.0,
    "z_t": 2.0,
    **layer("embed_s", "embed_t", weight=EYE, bias=[0.0, 0.0]),
}
PAIR = {"student": [[3.0, 0.0]], "teacher": [[0.0, 2.0]], "item": [0], "ids": [1], "samples": 4, "temperature": 1.0}
CONTRASTS: list[Case] = [
    # student: v = e and 1 with N / M = 1/4; teacher: both 1/2
    (
        "crd",
        {**PAIR, "drawn": [2], "state": BANKS},
        -LOG(E(1) / (E(1) + 0.25)) - LOG(0.25 / 1.25) - LOG(0.5 / 0.75) - LOG(0.25 / 0.75),
    ),
    # Z = (e + 1) / 2 * 4 and 4; the row's own id counts in Z and N, not in the sum
    (
        "crd",
        {**PAIR, "drawn": [2], "state": {**BANKS, "z_s": -1.0, "z_t": -1.0}},
        -LOG(E(1) / (E(1) + (E(1) + 1) / 2)) - LOG((E(1) + 1) / 2 / (1 + (E(1) + 1) / 2)) - LOG(0.5) - LOG(0.5),
    ),
    (
        "crd",
        {**PAIR, "drawn": [2, 1], "state": BANKS},
        -LOG(E(1) / (E(1) + 0.5)) - LOG(0.5 / 1.5) - LOG(0.5) - LOG(0.5),
    ),
    # id 2 is of the row's class, id 3 unknown
    (
        "crd_exact",
        {**PAIR, "labels": [7], "drawn": [2, 3], "state": {**BANKS, "known": [-1, -1, 7, -1]}},
        -LOG(E(1) / (E(1) + 0.5)) - LOG(0.5 / 1.5) - LOG(0.5) - LOG(0.5),
    ),
    # log odds of the student's rows 0 and 0; of the teacher's log 4 and -log 4
    (
        "infonce",
        {"student": [[2.0, 0.0], [0.0, 1.0]], "teacher": [[1.0, 0.0], [5.0, 0.0]], "temperature": 1 / LOG(4)},
        (LOG(2) + (LOG(1.25) + LOG(5)) / 2) / 2,
    ),
    (
        "infonce",
        {
            "student": [[2.0, 0.0], [0.0, 1.0]],
            "teacher": [[1.0, 0.0], [5.0, 0.0]],
            "temperature": 1 / LOG(4),
            "symmetric": False,
        },
        LOG(2),
    ),
    # rows 0 and 2 are one region: (2, 0) and (1, 0)
    (
        "infonce_regions",
        {
            "student": [[1.0, 5.0], [0.0, 1.0], [3.0, -5.0]],
            "teacher": [[1.0, 1.0], [5.0, 0.0], [1.0, -1.0]],
            "item": [0, 1, 0],
            "regions": [3, 3, 3],
            "temperature": 1 / LOG(4),
        },
        (LOG(2) + (LOG(1.25) + LOG(5)) / 2) / 2,
    ),
]
# 1 - 3, 0.2 of it times 2 (times 1 if spectral), 0.2 of it plus 1
CRITIC = {
    **layer("critic.layers.0", bias=[-3.0]),
    **layer("critic.layers.1", weight=[[2.0]]),
    **layer("critic.layers.2", bias=[1.0]),
}
ATTENTION = {
    f"critic.attention.{j}.{part}.{kind}": [[[1.0]]] if kind == "weight" else [0.0]
    for j in (0, 1)
    for part in ("query", "key", "value")
    for kind in ("weight", "bias")
}
CRITICS: list[Case] = [
    ("adv_feature", {"student": [[1.0]], "teacher": [[9.0]], "state": CRITIC, "spectral": False}, [-0.84]),
    ("adv_feature", {"student": [[1.0]], "teacher": [[9.0]], "state": CRITIC}, [-0.92]),
    ("adv_logit", {"student": [[1.0]], "teacher": [[9.0]], "state": CRITIC, "game": "bce"}, [LOG(1 + E(-0.92))]),
    # one class has probability 1, its condition is 2: 1 + 2 - 5 = -2, leaky, doubled three times, attended once by 1/2
    (
        "skd_adv",
        {
            "student": [[[4.0]], [[2.0]]],
            "teacher": [[[9.0]], [[9.0]]],
            "cell": [[0], [0]],
            "items": 2,
            "grid": [(1,), (1,)],
            "state": {
                **layer("critic.convs.0", weight=[[[9.0, 1.0, 9.0], [9.0, 1.0, 9.0]]], bias=[-5.0]),
                **layer("critic.convs.1", "critic.convs.2", "critic.convs.3", weight=[[[9.0, -2.0, 9.0]]]),
                **ATTENTION,
                "critic.attention.0.gamma": 0.5,
                "critic.attention.1.gamma": 0.0,
                **layer("critic.score", weight=[[[3.0]]], bias=[1.0]),
            },
        },
        [-(3 * 0.24 + 1), 0.0],
    ),
]


@pytest.mark.parametrize(("name", "given", "expected"), GRAPHS + STRUCTURES + CONTRASTS + CRITICS)
def test_loss_oracle_by_hand(name: str, given: dict[str, Any], expected: Any) -> None:
    check(name, given, expected)


def test_banks_after_a_call_by_hand() -> None:
    state = {key: np.array(value) for key, value in BANKS.items()}
    rows = np.array([[0.0, 5.0]])
    bank_s, bank_t = crd_update(rows, rows, np.array([0]), np.array([1]), state=state, momentum=0.75)
    np.testing.assert_allclose(bank_s, [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(bank_t[1], np.array([3.0, 1.0]) / ROOT(10))
    np.testing.assert_allclose(bank_t[[0, 2, 3]], np.array(BANKS["bank_t"])[[0, 2, 3]])


def test_moments_by_hand() -> None:
    """0, 0, 3: mean 1, variance 2, cubes of -1/2, -1/2 and 1."""
    np.testing.assert_allclose(np.ravel(_moments(np.array([[0.0], [0.0], [3.0]]))), [1.0, 2.0, 0.25], rtol=1e-5)


def test_singular_vectors_by_hand() -> None:
    """The direction of (3, -4) twice; of two orthogonal rows the longer comes first."""
    sigma, v = _right(np.array([[3.0, -4.0], [-3.0, 4.0]]), 1)
    np.testing.assert_allclose(sigma, [5 * ROOT(2)])
    np.testing.assert_allclose(v, [[-0.6], [0.8]])
    sigma, v = _right(np.array([[0.0, 2.0, 0.0], [-5.0, 0.0, 0.0]]), 4)
    np.testing.assert_allclose(sigma, [5.0, 2.0])
    np.testing.assert_allclose(v, [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], atol=1e-12)


@pytest.mark.parametrize("grid", [(5,), (4, 3), (2, 3, 4)])
def test_strided_convolution_agrees_with_torch(grid: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *grid, dtype=torch.float64, generator=generator)
    weight = torch.randn(4, 3, *[3] * len(grid), dtype=torch.float64, generator=generator)
    bias = torch.arange(4.0, dtype=torch.float64)
    expected = (F.conv1d, F.conv2d, F.conv3d)[len(grid) - 1](x[None], weight, bias, stride=2, padding=1)[0]
    got = _conv(x.numpy(), {"weight": weight.numpy(), "bias": bias.numpy()})
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-12)
