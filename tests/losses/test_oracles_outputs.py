"""Oracles of several temperatures, bounds, subclasses and transformers: values by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from oracles.by_hand import Case, check, layer
from oracles.target_losses import lelp_statistics
from oracles.transformer_losses import layer_pairs

LOG, ROOT = math.log, math.sqrt
#: KL((0.2, 0.8) || (0.5, 0.5)).
AGAINST_EVEN = 0.2 * LOG(0.4) + 0.8 * LOG(1.6)
EYE = [[1.0, 0.0], [0.0, 1.0]]
OUTPUTS: list[Case] = [
    # T = 2; p_t (0.2, 0.8), p_s even; p p^T: 0.68 and 0.5
    (
        "mlkd",
        {"student": [[0.0, 0.0]], "teacher": [[0.0, 2 * LOG(4)]], "temperatures": (2.0,)},
        4 * AGAINST_EVEN + 0.18**2 + (0.21**2 + 2 * 0.09**2 + 0.39**2) / 2,
    ),
    # the even row is below the median and agrees; class 0 (0.7 of 2) is: its row is (0.29, 0.41) against (0.5, 0.5)
    (
        "mlkd",
        {
            "student": [[0.0, 0.0], [0.0, 0.0]],
            "teacher": [[0.0, LOG(4)], [0.0, 0.0]],
            "temperatures": (1.0,),
            "confident": "half",
        },
        (0.21**2 + 0.09**2) / 2,
    ),
    # half of the whole terms
    (
        "mlkd",
        {
            "student": [[0.0, 0.0], [0.0, 0.0]],
            "teacher": [[0.0, LOG(4)], [0.0, 0.0]],
            "temperatures": (1.0,),
            "confident": "release",
            "instance": 3.0,
            "batch": 5.0,
        },
        0.5 * (3 * AGAINST_EVEN / 2 + 5 * 0.18**2 / 2 + (0.21**2 + 2 * 0.09**2 + 0.39**2) / 2),
    ),
    # sigmoid(0) = 1/2: T = 1 + 2 / 2
    (
        "ctkd",
        {"student": [[0.0, 0.0]], "teacher": [[0.0, 2 * LOG(4)]], "span": 2.0, "state": {"theta": 0.0}},
        [4 * AGAINST_EVEN],
    ),
    # theta = relu(3) / 2 - 1.5 = 0 of the first row; relu(3 - 9) = 0 and sigmoid(-1.5) of the second
    (
        "ctkd",
        {
            "student": [[0.0, 0.0], [9.0, 9.0]],
            "teacher": [[0.0, 2 * LOG(4)], [1.0, 1.0]],
            "span": 2.0,
            "mode": "instance",
            "state": {
                **layer("mlp.0", weight=[[-1.0, 0.0, 0.0, 0.0]], bias=[3.0]),
                **layer("mlp.2", weight=[[0.5]], bias=[-1.5]),
            },
        },
        [4 * AGAINST_EVEN, 0.0],
    ),
    (
        "bounded_reg",
        {
            "student": [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]],
            "teacher": [[1.0, 0.0], [1.0, 1.0], [3.0, 0.0]],
            "labels": [[0.0, 0.0]] * 3,
            "margin": 1.0,
        },
        [2.0, 0.0, 0.0],
    ),
    # P h = (3, 0); class 0: (2, 0) / (2, 1), softmax at tau of (1, 0) is (0.8, 0.2); class 1 is even
    (
        "lelp",
        {
            "student": [[[2 * LOG(2), 0.0, 0.0, 0.0]]],
            "teacher": [[[0.0, 2 * LOG(4)]], [[3.0, 9.0]]],
            "temperature": 2.0,
            "tau": 1 / LOG(4),
            "state": {
                "null": [[1.0, 0.0], [0.0, 0.0]],
                "mean": [[1.0, 0.0], [0.0, 0.0]],
                "directions": [EYE, [[1.0, 1.0], [0.0, 0.0]]],
                "scale": [[2.0, 1.0], [1.0, 1.0]],
            },
        },
        [4 * (0.2 * 0.8 * LOG(2.5) + (1 - 0.2 * 0.8) * LOG(5))],
    ),
]
ROWS = {"item": [0, 0], "items": 2}
EVEN = [[0.0], [0.0]]
TRANSFORMERS: list[Case] = [
    # one head of four channels halves the scores; first queries see (0.2, 0.8), second ones an even pair
    (
        "minilm",
        {
            "student": [EVEN] * 3,
            "teacher": [
                [[2 * LOG(4), 0.0, 0.0, 0.0], [0.0] * 4],
                [[0.0] * 4, [1.0, 0.0, 0.0, 0.0]],
                [[0.0] * 4, [0.0] * 4],
            ],
            "heads": 1,
            **ROWS,
        },
        [AGAINST_EVEN / 2, 0.0],
    ),
    # values: scores (0, 0) and (0, log 4)
    (
        "minilm",
        {"student": [EVEN] * 3, "teacher": [EVEN, EVEN, [[0.0], [ROOT(LOG(4))]]], "heads": 1, **ROWS},
        [AGAINST_EVEN / 2, 0.0],
    ),
    # the same in one head of two, of queries and of keys
    (
        "minilmv2",
        {
            "student": [[[0.0] * 4] * 2] * 3,
            "teacher": [[[0.0, 0.0], [0.0, ROOT(LOG(4))]]] * 2 + [[[0.0, 0.0]] * 2],
            "heads": 2,
            **ROWS,
        },
        [2 * AGAINST_EVEN / 4, 0.0],
    ),
    # embeddings 3 * 2 + 1 against 5, then two pairs: hidden 1 and 4, scores (6 - 4)^2 and 0
    (
        "tinybert",
        {
            "student": [[[2.0]], [[1.0]], [[1.0]], [[2.0]], [[2.0]], [[3.0]], [[3.0]]],
            "teacher": [[[5.0]], [[2.0]], [[3.0]], [[1.0]], [[3.0]], [[4.0]], [[2.0]]],
            "item": [0],
            "items": 1,
            "heads": 1,
            "state": {**layer("embed", weight=[[3.0]], bias=[1.0]), **layer("hidden")},
        },
        [4.0 + (1 + 4) + (4 + 0)],
    ),
    (
        "mobilebert",
        {
            "student": [EVEN, EVEN, EVEN],
            "teacher": [[[1.0], [2.0]], [[LOG(4)], [0.0]], [[0.0], [1.0]]],
            "heads": 1,
            **ROWS,
        },
        [2.5 + AGAINST_EVEN / 2, 0.0],
    ),
    ("distilbert", {"student": [[3.0, 4.0], [0.0, 0.0]], "teacher": [[2.0, 0.0], [1.0, 0.0]]}, [0.4, 1.0]),
    # the head gives (gelu(0), gelu(0)) + b = (3, 4) of any row: 5 from (0, 0), that has no direction, and 0 from itself
    (
        "distilhubert",
        {
            "student": [[[7.0], [-1.0]]],
            "teacher": [[[0.0, 0.0], [3.0, 4.0]], [[4.0, -3.0], [-3.0, -4.0]]],
            "cosine": 2.0,
            "state": {
                **layer("heads.0.0", "heads.1.0", weight=[[0.0], [0.0]], bias=[0.0, 0.0]),
                **layer("heads.0.2", "heads.1.2", weight=EYE, bias=[3.0, 4.0]),
            },
        },
        [
            (3.5 + 2 * LOG(2) + (1 + 7) / 2 + 2 * LOG(2)) / 2,
            (2 * LOG(1 + math.exp(-1)) + (6 + 8) / 2 + 2 * LOG(1 + math.e)) / 2,
        ],
    ),
    # the second of two layers beside the third of three, and the first beside the second
    (
        "pkd",
        {
            "student": [[[0.0, 5.0], [0.0, 0.0]], [[3.0, 4.0], [0.0, 0.0]]],
            "teacher": [[[9.0, 9.0], [9.0, 9.0]], [[0.0, 1.0], [0.0, 0.0]], [[2.0, 0.0], [1.0, 0.0]]],
            "layers": "last",
        },
        [0.8, 1.0],
    ),
    # one layer has no last to leave out
    ("pkd", {"student": [[[3.0, 4.0]]], "teacher": [[[0.0, 1.0]], [[2.0, 0.0]]]}, [0.8]),
]


@pytest.mark.parametrize(("name", "given", "expected"), OUTPUTS + TRANSFORMERS)
def test_loss_oracle_by_hand(name: str, given: dict[str, Any], expected: Any) -> None:
    check(name, given, expected)


def test_statistics_of_subclasses_by_hand() -> None:
    """The classifier sees channel 0 only; class 0 spreads by 2 along channel 1 and by 1 along channel 2."""
    around = [[7.0, 5.0, 1.0], [0.0, 9.0, 1.0], [3.0, 7.0, 2.0], [1.0, 7.0, 0.0]]
    found = lelp_statistics(np.array(around), np.zeros(4), np.array([[3.0, 0.0, 0.0]]), subclasses=2)
    np.testing.assert_allclose(found["null"], np.diag([0.0, 1.0, 1.0]), atol=1e-12)
    np.testing.assert_allclose(found["mean"], [[0.0, 7.0, 1.0]], atol=1e-12)
    np.testing.assert_allclose(np.abs(found["directions"]), [[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], atol=1e-12)
    np.testing.assert_allclose(found["scale"], [[ROOT(2), ROOT(0.5)]])


def test_layer_pairs_by_hand() -> None:
    assert layer_pairs("last", 2, 5) == [(1, 4), (2, 5)]
    assert layer_pairs("uniform", 4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert layer_pairs("uniform", 2, 5) == [(1, 3), (2, 5)]
    assert layer_pairs("skip", 6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
