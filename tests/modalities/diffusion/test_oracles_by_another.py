"""The oracles of few-step methods against others, written from the papers by somebody who had read neither."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import few_step, few_step_by_another, scheme_online

DRAW = np.random.default_rng(3)
A, S = 0.6, 0.8


def mean_velocity(y: np.ndarray, s: float, r: float) -> np.ndarray:
    """A smooth function of all three."""
    s, r = float(np.asarray(s)), float(np.asarray(r))
    return np.sin(y + 0.3 * y.sum() * s) + np.cos(2 * s - r) * y


def real(z: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    return np.tanh(0.7 * z + 0.2 * z.sum(-1, keepdims=True))


def fake(z: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    return np.sin(0.9 * z) - 0.1 * z.mean(-1, keepdims=True)


def test_mean_velocities() -> None:
    y, v = DRAW.standard_normal((2, 5))
    both = [oracle.meanflow_target(mean_velocity, v, y, 0.8, 0.3) for oracle in (few_step, few_step_by_another)]
    np.testing.assert_allclose(*both, rtol=1e-8)
    both = [oracle.shortcut_target(mean_velocity, y, 0.9, 0.5, 0.2) for oracle in (few_step, few_step_by_another)]
    np.testing.assert_allclose(*both, rtol=1e-12)
    for power in (0.0, 0.5, 1.0):
        assert few_step.meanflow_loss(y, v, power, 0.01) == pytest.approx(
            few_step_by_another.meanflow_loss(y, v, power, 0.01), rel=1e-12
        )


def test_lines_between_pairs() -> None:
    noise, x = DRAW.standard_normal((2, 6))
    velocity = lambda y, s: np.sin(y) * (1 + float(np.asarray(s)))  # noqa: E731
    found = [oracle.reflow_loss(velocity, noise, x, 0.35) for oracle in (few_step, few_step_by_another)]
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_score_identity(alpha: float) -> None:
    x, noise = DRAW.standard_normal((2, 4))
    args = (A, S, real, fake, alpha)
    assert few_step.sid_loss(x, noise, *args) == pytest.approx(
        few_step_by_another.sid_loss(x[None], noise[None], *args), rel=1e-12
    )
    one = few_step.sid_gradient(x, noise, *args)
    other = few_step_by_another.sid_gradient(x[None], noise[None], *args)[0]
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_moments() -> None:
    made, z = DRAW.standard_normal((2, 7))
    (loss, pull), (other, its_pull) = (
        oracle.moment_losses(made, z, A, S, real, fake) for oracle in (few_step, few_step_by_another)
    )
    assert loss == pytest.approx(other, rel=1e-12)
    np.testing.assert_allclose(pull, its_pull, rtol=1e-12)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jensen_shannon", "hellinger"])
def test_divergences(name: str) -> None:
    ratios = np.exp(DRAW.standard_normal(9))
    both = [oracle.divergence_weights(name, ratios) for oracle in (few_step, few_step_by_another)]
    np.testing.assert_allclose(*both, rtol=1e-6)


def test_improved_consistency_training() -> None:
    for k in range(0, 400, 7):
        assert few_step.ict_count(k, 400, 10, 1280) == few_step_by_another.ict_count(k, 400, 10, 1280)
    levels = few_step_by_another.ict_levels(12, 0.002, 80.0, 7.0)
    np.testing.assert_allclose(few_step.ict_levels(12, 0.002, 80.0, 7.0), levels, rtol=1e-12)
    np.testing.assert_allclose(
        few_step.ict_shares(levels, -1.1, 2.0), few_step_by_another.ict_shares(levels, -1.1, 2.0), rtol=1e-9
    )
    x, noise = DRAW.standard_normal((2, 6))
    f = lambda z, sigma: np.tanh(z) * (1 + sigma)  # noqa: E731
    for low in (0.0, 0.4):
        found = [oracle.ict_loss(f, x, noise, low, 0.9) for oracle in (few_step, few_step_by_another)]
        assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize("how", ["naive", "min_logit"])
def test_targets_of_peers(how: str) -> None:
    logits, labels = list(DRAW.standard_normal((3, 8, 4))), DRAW.integers(0, 4, 8)
    np.testing.assert_allclose(
        scheme_online.kdcl_target(logits, labels, how=how), few_step_by_another.kdcl_target(logits, labels, how=how)
    )
