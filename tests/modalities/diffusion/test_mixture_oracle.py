"""The Gaussian mixture's oracle: against quadrature, numerical derivatives, transport on a line, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from oracles import gaussian_mixture as oracle
from oracles.ctc_sequence import gradient
from oracles.maths import Array
from scipy import stats

LINE = oracle.Mixture([0.3, 0.5, 0.2], [[-2.0], [0.5], [3.0]], [[[0.3]], [[0.05]], [[1.0]]], classes=[0, 1, 0])
PLANE = oracle.Mixture(
    [1.0, 2.0, 1.0],
    [[-1.0, 0.5], [1.5, 1.0], [0.0, -2.0]],
    [[[0.4, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.5]], [[0.3, -0.2], [-0.2, 0.3]]],
    classes=[0, 1, 1],
)
SPACE = oracle.Mixture([0.6, 0.4], np.arange(10.0).reshape(2, 5) / 5, np.stack([np.eye(5) * 0.1, np.eye(5)]))
#: Variance preserving, EDM, flow matching, only noise, hardly any.
LEVELS = [(0.8, 0.6), (1.0, 2.5), (0.7, 0.3), (0.0, 1.0), (1.0, 0.02)]


def points(mixture: oracle.Mixture, alpha: float, sigma: float, count: int = 3) -> Array:
    """Of the noisy distribution itself."""
    rng = np.random.default_rng(0)
    x = mixture.sample(count, rng)
    return alpha * x + sigma * rng.normal(size=x.shape)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
@pytest.mark.parametrize("mixture", [LINE, PLANE, SPACE])
def test_score_is_the_gradient_of_the_log_density(mixture: oracle.Mixture, alpha: float, sigma: float) -> None:
    for z in points(mixture, alpha, sigma):
        slopes = gradient(lambda point: mixture.log_density(point, alpha, sigma), z, step=1e-6)
        np.testing.assert_allclose(mixture.score(z, alpha, sigma), slopes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_density_and_denoiser_by_quadrature_on_a_line(alpha: float, sigma: float) -> None:
    """p(z) = integral of p(x) N(z; alpha x, sigma^2), E[x | z] with an x in it; p(x) written out, part by part."""
    x = np.linspace(-12, 14, 40_001)
    data = sum(
        w * stats.norm.pdf(x, m[0], math.sqrt(c[0, 0]))
        for w, m, c in zip(LINE.weights, LINE.means, LINE.covariances, strict=True)
    )
    for z in points(LINE, alpha, sigma):
        joint = data * stats.norm.pdf(z[0], alpha * x, sigma)
        mass = np.trapezoid(joint, x)
        assert LINE.log_density(z, alpha, sigma) == pytest.approx(math.log(mass), rel=1e-8)
        assert LINE.denoiser(z, alpha, sigma)[0] == pytest.approx(np.trapezoid(x * joint, x) / mass, rel=1e-7)


def test_denoiser_by_quadrature_in_the_plane() -> None:
    alpha, sigma = 0.8, 0.6
    axis = np.linspace(-6, 7, 401)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    data = sum(
        w * stats.multivariate_normal.pdf(grid, m, c)
        for w, m, c in zip(PLANE.weights, PLANE.means, PLANE.covariances, strict=True)
    )
    for z in points(PLANE, alpha, sigma):
        joint = data * np.exp(-((z - alpha * grid) ** 2).sum(1) / (2 * sigma**2))
        np.testing.assert_allclose(PLANE.denoiser(z, alpha, sigma), joint @ grid / joint.sum(), rtol=1e-8)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
@pytest.mark.parametrize("mixture", [LINE, PLANE, SPACE])
def test_what_networks_predict_is_one_thing(mixture: oracle.Mixture, alpha: float, sigma: float) -> None:
    """Tweedie: alpha E[x] = z + sigma^2 score; eps and v follow; only alpha / sigma matters to the denoiser."""
    for z in points(mixture, alpha, sigma):
        x, eps = mixture.denoiser(z, alpha, sigma), mixture.noise(z, alpha, sigma)
        np.testing.assert_allclose(alpha * x, z + sigma**2 * mixture.score(z, alpha, sigma), atol=1e-10)
        np.testing.assert_allclose(alpha * x + sigma * eps, z, atol=1e-10)
        np.testing.assert_allclose(mixture.v_prediction(z, alpha, sigma), alpha * eps - sigma * x)
        if alpha > 0:
            np.testing.assert_allclose(mixture.denoiser(z / alpha, 1.0, sigma / alpha), x, atol=1e-10)
        else:
            np.testing.assert_allclose(x, mixture.weights @ mixture.means)


def test_velocities_are_those_of_the_paths() -> None:
    z = np.array([0.3, -0.7])
    own = oracle.velocity(PLANE.denoiser, z, 0.4, oracle.flow)
    np.testing.assert_allclose(own, PLANE.flow_velocity(z, 0.4), atol=1e-12)
    v = oracle.velocity(PLANE.denoiser, z, 0.4, oracle.vp)
    np.testing.assert_allclose(v, PLANE.v_prediction(z, math.cos(0.4), math.sin(0.4)), atol=1e-12)
    edm = oracle.velocity(PLANE.denoiser, z, 0.4, oracle.edm)
    np.testing.assert_allclose(edm, -0.4 * PLANE.score(z, 1.0, 0.4), atol=1e-12)


@pytest.mark.parametrize("path", [oracle.vp, oracle.edm, oracle.flow])
def test_the_ode_on_a_line_keeps_the_share_below(path: oracle.Path) -> None:
    """Lines cannot cross on a line: a point keeps its quantile, from (alpha, sigma) to data and between two levels."""
    start, end = (0.9, 0.2)

    def below(z: Array, time: float) -> float:
        alpha, sigma, _, _ = path(time)
        spreads = [math.sqrt(alpha**2 * c[0, 0] + sigma**2) for c in LINE.covariances]
        parts = zip(LINE.weights, LINE.means, spreads, strict=True)
        return sum(w * stats.norm.cdf(z[0], alpha * m[0], s) for w, m, s in parts)

    for z in points(LINE, *path(start)[:2], count=1):
        share = below(z, start)
        between = oracle.solve(LINE.denoiser, z, path, start, end)
        assert below(between, end) == pytest.approx(share, abs=1e-8)
        assert below(oracle.solve_to_data(LINE, z, path, start), 0.0) == pytest.approx(share, abs=1e-8)
        np.testing.assert_allclose(oracle.solve(LINE.denoiser, between, path, end, start), z, atol=1e-7)


def test_the_three_paths_lead_to_one_point() -> None:
    """z / alpha depends on sigma / alpha alone; a guided denoiser's ODE too."""
    angle = 1.2
    z = np.array([0.8, -0.5])
    noise_level = math.tan(angle)
    t = noise_level / (1 + noise_level)
    edm = z / math.cos(angle)
    data = oracle.solve_to_data(PLANE, z, oracle.vp, angle)
    np.testing.assert_allclose(oracle.solve_to_data(PLANE, edm, oracle.edm, noise_level), data, atol=1e-7)
    np.testing.assert_allclose(oracle.solve_to_data(PLANE, (1 - t) * edm, oracle.flow, t), data, atol=1e-7)

    def guided(point: Array, alpha: float, sigma: float) -> Array:
        return PLANE.guided(point, alpha, sigma, label=1, scale=3.0)

    by_vp = oracle.solve(guided, z, oracle.vp, angle, 0.1) / math.cos(0.1)
    by_edm = oracle.solve(guided, edm, oracle.edm, noise_level, math.tan(0.1))
    np.testing.assert_allclose(by_vp, by_edm, atol=1e-7)


def test_one_gaussian_has_a_closed_solution() -> None:
    """Along each axis of the covariance, z - alpha m grows as sqrt(alpha^2 c + sigma^2)."""
    covariance = PLANE.covariances[0]
    single = oracle.Mixture([1.0], PLANE.means[:1], [covariance])
    c, axes = np.linalg.eigh(covariance)
    z, mean = np.array([0.8, -0.5]), PLANE.means[0]
    (a, s, _, _), (b, r, _, _) = oracle.vp(1.3), oracle.vp(0.2)
    grown = np.sqrt((b**2 * c + r**2) / (a**2 * c + s**2)) * (axes.T @ (z - a * mean))
    got = oracle.solve(single.denoiser, z, oracle.vp, 1.3, 0.2)
    np.testing.assert_allclose(got, b * mean + axes @ grown, atol=1e-8)


def test_guidance_is_a_product_of_powers() -> None:
    """Its score is the gradient of scale log p(z | c) + (1 - scale) log p(z), and of p(z) p(c | z)^scale."""
    alpha, sigma, scale, label = 0.8, 0.6, 2.5, 1
    own = PLANE.of_class(label)
    assert own.weights.tolist() == pytest.approx([2 / 3, 1 / 3])
    for z in points(PLANE, alpha, sigma):
        guided = PLANE.guided(z, alpha, sigma, label, scale)

        def power(point: Array) -> float:
            with_class, free = own.log_density(point, alpha, sigma), PLANE.log_density(point, alpha, sigma)
            return scale * with_class + (1 - scale) * free

        def bayes(point: Array) -> float:
            share = PLANE.class_shares(point, alpha, sigma)[label]
            return PLANE.log_density(point, alpha, sigma) + scale * math.log(share)

        score = (alpha * guided - z) / sigma**2
        np.testing.assert_allclose(score, gradient(power, z), atol=1e-6)
        np.testing.assert_allclose(score, gradient(bayes, z), atol=1e-6)
        np.testing.assert_allclose(PLANE.guided(z, alpha, sigma, label, 1.0), own.denoiser(z, alpha, sigma))
        np.testing.assert_allclose(PLANE.guided(z, alpha, sigma, label, 0.0), PLANE.denoiser(z, alpha, sigma))
        assert sum(PLANE.class_shares(z, alpha, sigma).values()) == pytest.approx(1)


def test_samples_have_the_mixture_s_moments() -> None:
    drawn = PLANE.sample(4_000, np.random.default_rng(1))
    mean = PLANE.weights @ PLANE.means
    second = sum(
        w * (c + np.outer(m, m)) for w, m, c in zip(PLANE.weights, PLANE.means, PLANE.covariances, strict=True)
    )
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), second, atol=0.2)


def test_sliced_wasserstein() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 1
    along = oracle.directions(20, 3, rng)
    np.testing.assert_allclose(np.linalg.norm(along, axis=1), 1)
    by_scipy = np.mean([stats.wasserstein_distance(a @ d, b @ d) for d in along])
    assert oracle.sliced_wasserstein(a, b, along, order=1.0) == pytest.approx(by_scipy)
    assert oracle.sliced_wasserstein(a, a[::-1], along) == pytest.approx(0, abs=1e-12)
    assert oracle.sliced_wasserstein(a, b, along) == pytest.approx(oracle.sliced_wasserstein(b, a, along))
    # a shift by v: |v|^2 / d over the axes; a set is what it is thrice over
    shift = np.array([3.0, 0.0, -4.0])
    assert oracle.sliced_wasserstein(a, a + shift, np.eye(3)) == pytest.approx(5 / math.sqrt(3))
    assert oracle.sliced_wasserstein(a, np.repeat(a, 3, axis=0), along) == pytest.approx(0, abs=1e-7)
    # (0, 1) against (0, 0, 3): a half of 1 - 0 for 1/6, of 1 - 3 for 1/3
    assert oracle.wasserstein_line(np.array([1.0, 0.0]), np.array([0.0, 3.0, 0.0])) == pytest.approx(1 / 6 + 4 / 3)
