"""Oracles of features: values by hand, and the layers in them against torch's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles.by_hand import Case, check, layer
from oracles.layers import conv, norm_of
from oracles.learned_losses import delta_weights, relu_margins
from oracles.map_losses import _pool
from torch import Tensor
from torch.nn import functional as F

LOG, ROOT = math.log, math.sqrt
EYE = [[1.0, 0.0], [0.0, 1.0]]
FACTORS = {
    **layer(*[f"{part}.{i}" for part in ("paraphraser", "translator") for i in range(3)]),
    **layer("decoder.0", "decoder.1"),
    **layer("decoder.2", bias=[1.0]),
}
FLAT = {"cell": [0, 1], "grid": None, "item": [0, 0], "items": 1}
FEATURES: list[Case] = [
    # (3, -4000) through three leaky ReLUs is (3, -4): (0.6, -0.8) against (1, 0); rebuilt with a 1 too many
    ("ft", {"student": [[3.0], [-4000.0]], "teacher": [[1.0], [0.0]], **FLAT, "state": FACTORS}, [(0.4 + 0.8) / 2 + 1]),
    # squares 3 and 4
    (
        "ft",
        {
            "student": [[ROOT(3)], [2.0]],
            "teacher": [[5.0], [0.0]],
            **FLAT,
            "state": FACTORS,
            "factor": "attention",
            "reconstruction": 3.0,
        },
        [(0.4 + 0.8) / 2 + 3],
    ),
    (
        "ft",
        {
            "student": [[3.0], [4.0]],
            "teacher": [[1.0], [0.0]],
            **FLAT,
            "state": FACTORS,
            "pretrain": 0.5,
            "progress": 0.5,
        },
        [(0.4 + 0.8) / 2],
    ),
    (
        "ft",
        {
            "student": [[3.0], [4.0]],
            "teacher": [[1.0], [0.0]],
            **FLAT,
            "state": FACTORS,
            "pretrain": 0.5,
            "progress": 0.4,
        },
        [1.0],
    ),
    # relu keeps (1, 0) of (1, -2)
    (
        "simkd",
        {
            "student": [[1.0, -2.0]],
            "teacher": [[2.0, 2.0]],
            "items": 1,
            "cell": [0],
            "grid": None,
            "norm": "none",
            "state": layer("conv.0", "conv.1", "conv.2", weight=EYE, bias=[0.0, 0.0]),
        },
        [2.5],
    ),
    # cells 0 and 2 of item 0, 0 and 1 of item 1; taps 1, 2, 3: 2 1, 2 2 and 2 + 3, 1 + 2
    (
        "mgd",
        {
            "student": [[1.0], [2.0], [1.0], [1.0]],
            "teacher": [[0.0]] * 4,
            "item": [0, 0, 1, 1],
            "items": 2,
            "cell": [0, 2, 3, 4],
            "grid": (3,),
            "keep": [[1.0]] * 4,
            "state": {
                **layer("generator.0", weight=[[[1.0, 2.0, 3.0]]]),
                **layer("generator.1", weight=[[[0.0, 1.0, 0.0]]]),
            },
        },
        [4.0 + 16, 25.0 + 9],
    ),
    # row 0 masked; relu(-x) leaves nothing of positive rows but the bias
    (
        "mgd",
        {
            "student": [[5.0], [2.0]],
            "teacher": [[1.0], [0.0]],
            **FLAT,
            "keep": [[0.0], [1.0]],
            "reduce": "mean",
            "state": {**layer("generator.0", weight=[[-1.0]], bias=[1.0]), **layer("generator.1", weight=[[3.0]])},
        },
        [(2.0**2 + 0) / 2],
    ),
    (
        "mgd",
        {
            "student": [[5.0, 1.0], [2.0, 3.0]],
            "teacher": [[0.0, 0.0], [0.0, 0.0]],
            **FLAT,
            "keep": [[0.0, 1.0]],
            "mask": "channel",
            "state": layer("generator.0", "generator.1", weight=EYE, bias=[0.0, 0.0]),
        },
        [1.0 + 9],
    ),
    # dropped: row 0, channel 0; weights (0.8, 0.2): (0, 0.4) and (2.4, 4)
    (
        "dmkd",
        {
            "student": [[1.0, 2.0], [3.0, 4.0]],
            "teacher": [[4.0, 0.0], [0.0, 0.5]],
            **FLAT,
            "state": {
                "mix": [LOG(4), 0.0],
                **layer("spatial.0", "spatial.1", "channel.0", "channel.1", weight=EYE, bias=[0.0, 0.0]),
            },
        },
        [4**2 + 0.4**2 + 2.4**2 + 3.5**2],
    ),
    (
        "fgfi",
        {
            "student": [[-1.0, 2.0], [3.0, 3.0]],
            "teacher": [[1.0, 1.0], [1.0, 1.0]],
            "regions": [1, 0],
            "items": 1,
            "cell": [0, 1],
            "grid": None,
            "state": layer("adapt", weight=EYE, bias=[0.0, 0.0]),
        },
        [0.5 * 2, 0.0],
    ),
    # halves of three cells share the middle one: 2, 4; the fourth cell is padding
    (
        "catkd",
        {
            "student": [[1.0], [3.0], [5.0]],
            "teacher": [[0.0]] * 3,
            "item": [0, 0, 0],
            "items": 1,
            "cell": [0, 1, 2],
            "grid": (4,),
            "normalise": False,
        },
        [(4 + 16) / 2],
    ),
    # of four quarters two hold a cell each
    (
        "catkd",
        {
            "student": [[1.0], [3.0]],
            "teacher": [[0.0], [0.0]],
            "item": [0, 0],
            "items": 1,
            "cell": [0, 3],
            "grid": (2, 2),
            "normalise": False,
        },
        [(1 + 9) / 2],
    ),
    # 3, 4 against 0, 0
    (
        "catkd",
        {
            "student": [[2.0], [4.0], [4.0]],
            "teacher": [[1.0], [-1.0], [1.0]],
            "item": [0, 0, 0],
            "items": 1,
            "cell": [0, 1, 2],
            "grid": (3,),
        },
        [0.5],
    ),
    # gates 1/2 and 3/4: (7, 8) against (7, 6), their means 7.5 and 6.5; the deep level: 16 against 15
    (
        "reviewkd",
        {
            "student": [[[2.0], [4.0]], [[8.0]]],
            "teacher": [[[7.0], [6.0]], [[15.0]]],
            "item": [[0, 0], [0]],
            "items": 1,
            "cell": [[0, 1], [0]],
            "grid": [(2,), (1,)],
            "norm": "none",
            "state": {
                "reduce.0.weight": [[1.0]],
                "reduce.1.weight": [[1.0]],
                "out.0.weight": [[1.0]],
                "out.1.weight": [[2.0]],
                **layer("attend.0", weight=[[0.0, 0.0], [0.0, 0.0]], bias=[0.0, LOG(3)]),
            },
        },
        [(2 + 0.5 * 1) / 1.5 + 1],
    ),
    # item 0: (0.5 + 1)^2 and (-0.5 - 1)^2
    (
        "ab",
        {
            "student": [[0.5, -2.0], [-0.5, 3.0]],
            "teacher": [[-1.0, 0.0], [1.0, 2.0]],
            "item": [0, 0],
            "items": 2,
            "norm": "none",
            "state": {"connector.weight": EYE},
        },
        [4.5, 0.0],
    ),
    # m = -2: t' = -1, -2, 2
    (
        "ofd",
        {
            "student": [[-5.0], [-1.0], [1.0]],
            "teacher": [[-1.0], [-3.0], [2.0]],
            "item": [0, 0, 0],
            "items": 1,
            "norm": "none",
            "state": {"connector.weight": [[1.0]]},
        },
        [0.0 + 1 + 1],
    ),
    (
        "ofd",
        {
            "student": [[0.0, 0.0]],
            "teacher": [[-9.0, -9.0]],
            "item": [0],
            "items": 1,
            "norm": "none",
            "margins": [-0.5, -3.0],
            "state": {"connector.weight": EYE},
        },
        [0.25 + 9],
    ),
    # softplus(log(e - 1)) = 1 and eps 1: variance 2
    (
        "vid",
        {
            "student": [[1.0]],
            "teacher": [[3.0]],
            "eps": 1.0,
            "state": {**{f"regressor.{i}.weight": [[1.0]] for i in (0, 2, 4)}, "raw": [LOG(math.e - 1)]},
        },
        [0.5 * (4 / 2 + LOG(2))],
    ),
    # means (3, 0) after relu and (2, 0); squares 9 and 4
    (
        "srrl",
        {
            "student": [[2.0, -1.0], [4.0, -3.0]],
            "teacher": [[1.0, 0.0], [3.0, 0.0]],
            "item": [0, 0],
            "items": 1,
            "head": lambda rows: np.sum(rows**2, axis=1, keepdims=True),
            "weight": 2.0,
            "norm": "none",
            "state": {"connector.weight": EYE},
        },
        [0.5 + 2 * 25],
    ),
    # rows: 4 - 1 and 16 - 9
    (
        "srrl",
        {
            "student": [[2.0, -1.0], [4.0, -3.0]],
            "teacher": [[1.0, 0.0], [3.0, 0.0]],
            "item": [0, 0],
            "items": 1,
            "head": lambda rows: np.sum(rows**2, axis=1, keepdims=True),
            "norm": "none",
            "pool": False,
            "state": {"connector.weight": EYE},
        },
        [0.5 + (9 + 49) / 2],
    ),
    ("norm", {"student": [[1.0, 2.0, 3.0, 4.0]], "teacher": [[1.0, 1.0]], "segments": 2}, [(1 + 4 + 9) / 4]),
    (
        "delta",
        {"student": [[1.0, 2.0], [3.0, 4.0]], "teacher": [[0.0, 0.0]] * 2, "item": [0, 0], "items": 1},
        [0.5 * (1 + 4 + 9 + 16) / 2],
    ),
    (
        "delta",
        {
            "student": [[1.0, 2.0], [3.0, 4.0]],
            "teacher": [[0.0, 0.0]] * 2,
            "item": [0, 0],
            "items": 1,
            "channel_weights": [0.25, 0.75],
        },
        [0.5 * 2 * (0.25 * 10 + 0.75 * 20) / 2],
    ),
    ("jacobian", {"student": [[3.0, 4.0]], "teacher": [[2.0, 0.0]]}, [0.8]),
]


@pytest.mark.parametrize(("name", "given", "expected"), FEATURES)
def test_loss_oracle_by_hand(name: str, given: dict[str, Any], expected: Any) -> None:
    check(name, given, expected)


def test_margins_by_hand() -> None:
    """Half a normal of deviation 2 has mean -2 sqrt(2 / pi); what is hardly ever negative has -3 |gamma|."""
    margins = relu_margins(np.array([-2.0, -1.5, 0.0]), np.array([0.0, 6.0, -1.0]))
    np.testing.assert_allclose(margins, [-2 * ROOT(2 / math.pi), -4.5, -1.0])


def test_channel_weights_by_hand() -> None:
    above = 1 / (1 + math.exp(-0.4))
    np.testing.assert_allclose(delta_weights(np.array([1.0, 3.0])), [1 - above, above])


def _maps(grid: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Any, Any, Any]:
    """Two items' maps (b, c, *grid), and the same as rows with their items and cells."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, *grid, dtype=torch.float64, generator=generator)
    rows = maps.flatten(2).mT.flatten(0, 1).numpy()
    cell = np.arange(len(rows))
    return maps, rows, cell // math.prod(grid), cell


@pytest.mark.parametrize("grid", [(5,), (4, 3), (2, 3, 4)])
def test_convolution_agrees_with_torch(grid: tuple[int, ...]) -> None:
    maps, rows, _, cell = _maps(grid)
    weight = torch.randn(4, 3, *[3] * len(grid), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias = torch.arange(4.0, dtype=torch.float64)
    expected = (F.conv1d, F.conv2d, F.conv3d)[len(grid) - 1](maps, weight, bias, padding=1)
    got = conv(rows, {"weight": weight.numpy(), "bias": bias.numpy()}, cell, grid)
    np.testing.assert_allclose(got, expected.flatten(2).mT.flatten(0, 1).numpy(), atol=1e-12)


def test_norms_agree_with_torch() -> None:
    _, rows, _, _ = _maps((5,))
    params = {"weight": np.array([2.0, 3.0, -1.0]), "bias": np.array([0.0, 1.0, 2.0])}
    x, weight, bias = torch.from_numpy(rows), torch.from_numpy(params["weight"]), torch.from_numpy(params["bias"])
    over_rows = F.batch_norm(x, None, None, weight, bias, training=True)
    np.testing.assert_allclose(norm_of(rows, params, "batch"), over_rows.numpy(), atol=1e-12)
    np.testing.assert_allclose(norm_of(rows, params, "layer"), F.layer_norm(x, (3,), weight, bias).numpy(), atol=1e-12)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("grid", [(5,), (4, 3), (2, 3, 4)])
def test_pooling_agrees_with_torch(grid: tuple[int, ...], side: int) -> None:
    maps, rows, item, cell = _maps(grid)
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(grid) - 1]
    expected = pool(maps, (side,) * len(grid))[1].flatten(1).mT
    np.testing.assert_allclose(_pool(rows[item == 1], cell[item == 1], grid, side), expected.numpy(), atol=1e-12)
