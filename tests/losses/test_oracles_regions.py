"""Oracles of regions, of the teacher's statistics and of labels: values by hand, and the losses at their extremes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from harness import call
from oracles.by_hand import Case, check
from oracles.losses import ORACLES
from torch import Tensor

from xmodal_kd.losses import LOSSES

LOG, ROOT = math.log, math.sqrt
#: KL((0.2, 0.8) || (0.5, 0.5)).
AGAINST_EVEN = 0.2 * LOG(0.4) + 0.8 * LOG(1.6)
#: A connector that takes its input, where that is above 0, from 1; of one channel.
STATE: dict[str, Any] = {
    "map.weight": [[2.0]],
    "norm.running_mean": [7.0],
    "norm.running_var": [9.0],
    "mean": [2.0],
    "variance": [8 / 3],
    "seen": 99,
    "connector.0.weight": [[1.0]],
    "connector.0.bias": [0.0],
    "connector.2.weight": [[-1.0]],
    "connector.2.bias": [1.0],
}
BY_HAND: list[Case] = [
    ("ce", {"student": [[0.0, LOG(3)], [0.0, LOG(3)]], "labels": [0, 1]}, [LOG(4), LOG(4 / 3)]),
    ("ce", {"student": [[0.0, LOG(3)]], "labels": [0], "smoothing": 0.2}, [0.9 * LOG(4) + 0.1 * LOG(4 / 3)]),
    # of three classes, the target is (0.1, 0.8, 0.1)
    (
        "ce",
        {"student": [[0.0, 0.0, LOG(2)]], "labels": [1], "smoothing": 0.3},
        [0.9 * LOG(4) + 0.1 * LOG(2)],
    ),
    # a right angle against opposite directions: off by 1 in two of four pairs
    (
        "affinity",
        {
            "student": [[3.0, 0.0], [0.0, 5.0]],
            "teacher": [[1.0], [-2.0]],
            "item": [0, 0],
            "items": 2,
            "regions": [4, 4],
        },
        [0.5, 0.0],
    ),
    # item 1 has two regions, one of them with a row that is zero: off by 1 in three of four pairs; item 0 a single row
    (
        "affinity",
        {
            "student": [[3.0, 0.0], [0.0, 0.0], [0.0, 5.0], [1.0, 1.0], [2.0, 0.0]],
            "teacher": [[1.0], [1.0], [-2.0], [2.0], [5.0]],
            "item": [1, 1, 1, 1, 0],
            "items": 2,
            "regions": [0, 1, 0, 1, 0],
        },
        [0.0, 0.5 + 0.75],
    ),
    # three rows are too few for one region, and a zero row alone counts for the other
    (
        "affinity",
        {
            "student": [[0.0], [1.0], [0.0], [0.0]],
            "teacher": [[1.0], [1.0], [1.0], [2.0]],
            "item": [0, 1, 1, 1],
            "items": 2,
            "regions": [0, 0, 0, 0],
            "least": 1,
        },
        [1.0, 8 / 9],
    ),
    # means over the region: even, and (0.2, 0.8); equal numbers in two items are two regions
    (
        "region_kd",
        {
            "student": [[1.0, -1.0], [0.0, 0.0], [-1.0, 1.0]],
            "teacher": [[0.0, 2 * LOG(4)], [0.0, LOG(4)], [0.0, 0.0]],
            "item": [0, 1, 0],
            "items": 3,
            "regions": [2, 2, 2],
        },
        [AGAINST_EVEN, AGAINST_EVEN, 0.0],
    ),
    # two regions of one item are summed
    (
        "region_kd",
        {
            "student": [[3.0, 3.0], [2 * LOG(4), 0.0]],
            "teacher": [[0.0, 2 * LOG(4)], [0.0, 0.0]],
            "item": [0, 0],
            "items": 1,
            "regions": [0, 5],
            "temperature": 2.0,
        },
        [4 * (AGAINST_EVEN + 0.5 * LOG(0.5 / 0.8) + 0.5 * LOG(0.5 / 0.2))],
    ),
    # mapped to 2 and 6: -2/3 and 2/3 by a variance of 4 + 5; the teacher's moments are 4.5 and 4, with eps 9
    (
        "dn",
        {"student": [[1.0], [3.0]], "teacher": [[10.0], [14.0]], "state": STATE, "momentum": 0.25, "eps": 5.0},
        [(1 - 2.5 - 10) ** 2, (1 - 6.5 - 14) ** 2],
    ),
    # the fifth batch: a fifth, mean 4 and variance 0.8 / 2 + 1.6 = 2 more than eps = 1; students' 4 + 1
    (
        "dn",
        {
            "student": [[1.0], [3.0]],
            "teacher": [[10.0], [14.0]],
            "state": STATE | {"seen": 4, "variance": [0.5]},
            "eps": 1.0,
        },
        [(1 - (4 - 2 * ROOT(3 / 5)) - 10) ** 2, (1 - (4 + 2 * ROOT(3 / 5)) - 14) ** 2],
    ),
    # the first batch has all to say: deviation sqrt 8 about 12; about -12 nothing passes the connector
    (
        "dn",
        {"student": [[1.0], [3.0]], "teacher": [[10.0], [14.0]], "state": STATE | {"seen": 0}, "eps": 0.0},
        [(1 - (12 - ROOT(8)) - 10) ** 2, (1 - (12 + ROOT(8)) - 14) ** 2],
    ),
    (
        "dn",
        {"student": [[1.0], [3.0]], "teacher": [[-10.0], [-14.0]], "state": STATE | {"seen": 0}, "eps": 0.0},
        [11.0**2, 15.0**2],
    ),
]


@pytest.mark.parametrize(("name", "given", "expected"), BY_HAND)
def test_oracle_by_hand(name: str, given: dict[str, Any], expected: Any) -> None:
    check(name, given, expected)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regions_of(sizes: list[int], items: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Item and number of each row, mixed: regions of these sizes, by turns in the items; numbers recur in items."""
    which = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    which = which[torch.randperm(len(which), generator=torch.Generator().manual_seed(seed))]
    return which % items, 3 * (which // items)


def compare(
    name: str, student: Tensor, teacher: Tensor, item: Tensor, regions: Tensor, rtol: float, atol: float
) -> None:
    """The loss, and what the oracle says of the same numbers in float64; items are one more than have rows."""
    inputs = {"student": student, "teacher": teacher, "item": item, "items": int(item.max()) + 2, "regions": regions}
    arrays = {key: x.numpy() if isinstance(x, Tensor) else x for key, x in inputs.items()}
    arrays |= {side: x.double().numpy() for side, x in (("student", student), ("teacher", teacher))}
    got, expected = call(LOSSES[name], inputs), ORACLES[name](**arrays)
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["affinity", "region_kd"])
@pytest.mark.parametrize("seed", range(3))
def test_regions_of_all_sizes_in_any_order(name: str, seed: int) -> None:
    """Fewer rows than channels, and many more; some rows are zero, some far larger than others."""
    item, regions = regions_of([1, 2, 3, 5, 30, 4, 1, 17, 60, 9], 3, seed)
    student, teacher = randn(len(item), 4, seed=seed), randn(len(item), 6 if name == "affinity" else 4, seed=seed + 9)
    if name == "affinity":
        student[::7], teacher[::11] = 0.0, 0.0
        student[1::5] *= 1e3
        teacher[2::5] *= 1e-3
    compare(name, student, teacher, item, regions, rtol=1e-9, atol=1e-12)
    compare(name, student.float(), teacher.float(), item, regions, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [3, 80])
@pytest.mark.parametrize("far", [1e-3, 1e-2])
def test_affinity_of_a_student_that_is_almost_there(rows: int, far: float) -> None:
    """Small differences of cosines near 1 keep their size in float32, by either form of the sum."""
    item = regions = torch.zeros(rows, dtype=torch.int64)
    teacher = randn(rows, 4) + 3
    student = teacher + far * randn(rows, 4, seed=1)
    compare("affinity", student, teacher, item, regions, rtol=1e-6, atol=1e-13)
    compare("affinity", student.float(), teacher.float(), item, regions, rtol=0, atol=2e-6)


def test_region_kd_of_certain_regions() -> None:
    """Logits of thousands: the mean is as exact as the rows."""
    item, regions = regions_of([4, 5, 6], 1)
    student, teacher = 1e3 * randn(15, 4), 1e3 * randn(15, 4, seed=1)
    compare("region_kd", student, teacher, item, regions, rtol=1e-9, atol=1e-9)
    compare("region_kd", student.float(), teacher.float(), item, regions, rtol=1e-5, atol=1e-3)


def test_ce_of_certain_and_hopeless_rows() -> None:
    """A loss of thousands, and of nothing, with labels smoothed and not."""
    student = torch.tensor([[4000.0, 0.0, -4000.0], [4000.0, 0.0, -4000.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 2, 1])
    for smoothing in (0.0, 0.25):
        expected = ORACLES["ce"](student.numpy(), labels.numpy(), smoothing=smoothing)
        for rows in (student, student.float()):
            got = call(LOSSES["ce"], {"student": rows, "labels": labels}, smoothing=smoothing)
            np.testing.assert_allclose(got.double().numpy(), expected, rtol=1e-6)
    assert expected[1] == pytest.approx((0.75 + 0.25 / 3) * 8000 + 0.25 / 3 * 4000)


@pytest.mark.parametrize("momentum", [0.1, 0.5])
def test_dn_goes_on_as_its_oracle_does(momentum: float) -> None:
    """Twelve batches of a teacher whose mean moves far: moments and values of each."""
    torch.manual_seed(0)
    module = LOSSES["dn"].make(4, 3, 0, momentum=momentum, eps=1e-3).double()
    for seed in range(12):
        student, teacher = randn(2 + seed, 4, seed=seed), 3 * randn(2 + seed, 3, seed=seed + 50) + 10 * seed
        state = {key: x.numpy().copy() for key, x in module.state_dict().items()}
        expected = ORACLES["dn"](student.numpy(), teacher.numpy(), state=state, momentum=momentum, eps=1e-3)
        got = module(student, teacher).detach()
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10)
