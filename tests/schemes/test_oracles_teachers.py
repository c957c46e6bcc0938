"""The oracles of several teachers and of old tasks: values by hand, and a search of the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from oracles import scheme_teachers as oracle

LOG = math.log
EVEN, ONE_TO_FOUR, FOUR_TO_ONE = (np.array([row]) for row in ([0.0, 0.0], [0.0, LOG(4)], [LOG(4), 0.0]))


def test_mean_of_probabilities() -> None:
    # (0.2, 0.8) and (0.5, 0.5)
    mean = oracle.mean_probabilities([ONE_TO_FOUR, EVEN], temperature=1.0)
    np.testing.assert_allclose(mean, [[0.35, 0.65]])
    np.testing.assert_allclose(oracle.mean_probabilities([ONE_TO_FOUR], temperature=2.0), [[1 / 3, 2 / 3]])
    value = oracle.against_mean(EVEN, [ONE_TO_FOUR, FOUR_TO_ONE], temperature=1.0)
    np.testing.assert_allclose(value, [0.0], atol=1e-15)


def test_triplets_are_turned_by_the_majority() -> None:
    near = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    far = near[[0, 2, 1]]
    triplet = np.array([[0, 1, 2]])
    assert oracle.ordered([near, near, far], triplet) == [(0, 1, 2)]
    assert oracle.ordered([far, near, far], triplet) == [(0, 2, 1)]
    assert oracle.ordered([near, far], triplet) == []
    alike = np.ones((3, 5))
    assert oracle.ordered([alike, far], triplet) == [(0, 2, 1)]
    # the student has them the wrong way round: sqrt 2 against 0
    student = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    value = oracle.you_triplet(student, [near], triplet, margin=0.5)
    assert value == pytest.approx(math.sqrt(2) + 0.5)
    assert oracle.you_triplet(student, [far], triplet, margin=0.5) == 0.0
    assert oracle.you_triplet(student, [near, far], triplet) == 0.0


def test_confident_teachers_weigh_more() -> None:
    # CE of label 1: log 1.25, log 2, log 5, so that exp(CE) is 1.25, 2, 5
    weights = oracle.ca_mkd_weights([ONE_TO_FOUR, EVEN, FOUR_TO_ONE], np.array([1]))
    np.testing.assert_allclose(weights, [[(1 - x / 8.25) / 2 for x in (1.25, 2, 5)]])
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(oracle.ca_mkd_weights([EVEN], np.array([0])), [[1.0]])


def test_weights_of_least_norm() -> None:
    # opposite gradients of lengths 1 and 3: three quarters of the shorter one
    gradients = np.array([[1.0, 0.0], [-3.0, 0.0]])
    np.testing.assert_allclose(oracle.ae_kd_weights(gradients, cap=2.0), [0.75, 0.25])
    np.testing.assert_allclose(oracle.ae_kd_weights(gradients, cap=1.2), [0.6, 0.4])
    np.testing.assert_allclose(oracle.ae_kd_weights(gradients, cap=1.0), [0.5, 0.5])
    # the shorter of two that point the same way
    np.testing.assert_allclose(oracle.ae_kd_weights(np.array([[1.0, 0.0], [2.0, 0.0]]), cap=2.0), [1.0, 0.0])


@pytest.mark.parametrize("cap", [1.0, 1.3, 2.0, 4.0])
def test_no_other_weights_are_better(cap: float) -> None:
    draw = np.random.default_rng(3)
    for _ in range(5):
        gradients = draw.normal(size=(4, 6))
        best = oracle.ae_kd_value(gradients, oracle.ae_kd_weights(gradients, cap=cap))
        tried = draw.dirichlet(np.ones(4), size=3000)
        tried = tried[tried.max(axis=1) <= cap / 4 + 1e-12] if cap > 1 else np.full((1, 4), 0.25)
        assert all(oracle.ae_kd_value(gradients, weights) >= best - 1e-12 for weights in tried)


def test_gradients_of_kd() -> None:
    draw = np.random.default_rng(5)
    student, teacher = draw.normal(size=(3, 4)), draw.normal(size=(3, 4))
    [gradient] = oracle.kd_gradients(student, [teacher], temperature=3.0)
    step = 1e-6
    for place in range(12):
        moved = student.reshape(-1).copy()
        moved[place] += step
        change = oracle.against_mean(moved.reshape(3, 4), [teacher], temperature=3.0).mean()
        change -= oracle.against_mean(student, [teacher], temperature=3.0).mean()
        assert gradient[place] == pytest.approx(change / step, abs=1e-5)


def test_other_label_sets_and_old_tasks() -> None:
    student = np.array([[0.0, 7.0, LOG(4)]])  # of classes 0 and 2: (0.2, 0.8)
    np.testing.assert_allclose(oracle.uhc(student, ONE_TO_FOUR, np.array([0, 2])), [0.0], atol=1e-15)
    np.testing.assert_allclose(oracle.uhc(student, FOUR_TO_ONE, np.array([2, 0])), [0.0], atol=1e-15)
    value = 4 * (1 / 3 * LOG(2 / 3) + 2 / 3 * LOG(4 / 3))  # (1/3, 2/3) against even, at T = 2
    np.testing.assert_allclose(oracle.uhc(EVEN, ONE_TO_FOUR, np.array([0, 1]), temperature=2.0), [value])
    np.testing.assert_allclose(oracle.lwf(EVEN, ONE_TO_FOUR), [LOG(2)])
    np.testing.assert_allclose(oracle.lwf(ONE_TO_FOUR, ONE_TO_FOUR), [1 / 3 * LOG(3) + 2 / 3 * LOG(1.5)])
    total = oracle.pdr(EVEN, ONE_TO_FOUR, (EVEN, EVEN), (EVEN, ONE_TO_FOUR), retrospection=0.5)
    assert total == pytest.approx(1.5 * value)
