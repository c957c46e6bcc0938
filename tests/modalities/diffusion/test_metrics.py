"""Metrics against closed forms, double loops and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance
from torch import Tensor

from xmodal_kd.modalities.diffusion.evaluate import metrics
from xmodal_kd.modalities.diffusion.evaluate.metrics import Gaussian


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(seed: int, d: int) -> Tensor:
    x = normal(seed, 3 * d, d)
    return x.T @ x / (3 * d)


# Fréchet


def test_frechet_of_diagonal_gaussians_is_the_sum_over_axes() -> None:
    # W2^2 of one-dimensional Gaussians: (m - m')^2 + (s - s')^2
    a = Gaussian(torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 2.0, 0.5]).double().diag())
    b = Gaussian(torch.tensor([1.0, 1.0, 0.0]).double(), torch.tensor([3.0, 2.0, 0.0]).double().diag())
    assert metrics.frechet(a, b) == pytest.approx(1 + 4 + 4 + 0.25, rel=1e-12)
    assert metrics.frechet(b, a) == pytest.approx(9.25, rel=1e-12)


def test_frechet_of_full_covariances_is_scipys() -> None:
    a, b, mean = covariance(0, 6), covariance(1, 6), normal(2, 6)
    expected = float(mean.square().sum() + a.trace() + b.trace() - 2 * np.trace(sqrtm((a @ b).numpy())).real)
    cholesky = [Gaussian(m, torch.linalg.cholesky(c).T) for m, c in ((mean, a), (torch.zeros_like(mean), b))]
    assert metrics.frechet(*cholesky) == pytest.approx(expected, rel=1e-10)


def test_frechet_of_scaled_sets_is_closed_form() -> None:
    x = normal(0, 40, 5)
    variance = float(x.var(0).sum())
    # y = s x + c has the covariance s^2 C: the distance is |m - (s m + c)|^2 + (1 - s)^2 tr C
    y = 3 * x + 2
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + 4 * variance
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_a_fitted_gaussian_has_numpys_covariance() -> None:
    x = normal(3, 50, 7)
    fitted = metrics.fit_gaussian(x.float())
    np.testing.assert_allclose(fitted.factor.T @ fitted.factor, np.cov(x.float().numpy().T), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [3, 20, 200])
def test_equal_sets_are_at_no_distance_even_with_more_dimensions_than_rows(rows: int) -> None:
    x = normal(0, rows, 64)
    assert metrics.frechet_distance(x, x.flip(0)) < 1e-10


def test_rank_deficiency_does_no_harm() -> None:
    # the covariances lie in orthogonal axes: nothing is shared, and the root is 0
    x, y = torch.zeros(30, 8).double(), torch.zeros(30, 8).double()
    x[:, :3], y[:, 5:] = normal(0, 30, 3), normal(1, 30, 3)
    expected = float((x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum())
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


# KID


def kid_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_is_the_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(0, 11, 4), normal(1, 7, 4) + 0.5
    expected = kid_by_loops(x.numpy(), y.numpy())
    assert metrics.kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(metrics, "BLOCK", 20)  # blocks of one and two rows
    assert metrics.kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_unbiased_at_any_size_where_frechet_is_not() -> None:
    kernel, frechet = ([[f(normal(2 * s, n, 4), normal(2 * s + 1, n, 4)) for s in range(300)] for n in (8, 32)]
                       for f in (metrics.kernel_distance, metrics.frechet_distance))  # fmt: skip
    for values in kernel:
        assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
    assert np.mean(frechet[0]) > 2 * np.mean(frechet[1]) > 0.5


# precision, recall, density, coverage


def shares_by_loops(real: np.ndarray, fake: np.ndarray) -> metrics.Coverage:
    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return math.dist(a, b)

    def radius(x: np.ndarray, i: int, k: int) -> float:
        return sorted(distance(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]

    real3, real5 = ([radius(real, i, k) for i in range(len(real))] for k in (3, 5))
    fake3 = [radius(fake, i, 3) for i in range(len(fake))]
    n, m = len(fake), len(real)
    inside = [[distance(fake[j], real[i]) <= real5[i] for j in range(n)] for i in range(m)]
    return metrics.Coverage(
        precision=sum(any(distance(f, r) <= real3[i] for i, r in enumerate(real)) for f in fake) / n,
        recall=sum(any(distance(f, r) <= fake3[j] for j, f in enumerate(fake)) for r in real) / m,
        density=sum(map(sum, inside)) / (5 * n),
        coverage=sum(map(any, inside)) / m,
    )


@pytest.mark.parametrize("block", [2**23, 100])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.3, 0.0), (1.5, 1.0)])
def test_shares_are_the_double_loops(scale: float, shift: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)
    real, fake = normal(0, 40, 3), normal(1, 30, 3) * scale + shift
    found = metrics.precision_recall_density_coverage(real, fake)
    expected = shares_by_loops(real.numpy(), fake.numpy())
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12), name


def test_copies_of_the_real_set_cover_it_and_far_samples_nothing() -> None:
    real = normal(0, 60, 5)
    same = metrics.precision_recall_density_coverage(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    # each real ball holds its own centre, its five neighbours, and nothing else
    assert same.density == pytest.approx(6 / 5)
    far = metrics.precision_recall_density_coverage(real, real + 100)
    assert far == metrics.Coverage(0, 0, 0, 0)


def test_a_collapsed_set_is_precise_but_covers_little() -> None:
    real = normal(0, 200, 4)
    found = metrics.precision_recall_density_coverage(real, real[:1] + 1e-3 * normal(1, 200, 4))
    assert found.precision == 1 and found.recall < 0.05 and found.coverage < 0.2


# Wasserstein


@pytest.mark.parametrize(("n", "m"), [(20, 20), (7, 12), (50, 3), (1, 4)])
def test_one_dimension_is_scipys_wasserstein(n: int, m: int) -> None:
    x, y = normal(0, n, 1), 2 * normal(1, m, 1) + 0.3
    expected = wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert metrics.sliced_wasserstein(x, y) == pytest.approx(expected, rel=1e-10)


def test_slices_of_a_shift_are_the_shift_projected() -> None:
    x, shift = normal(0, 30, 6), normal(1, 6)
    expected = float((shift @ metrics._directions(6)).abs().mean())
    assert metrics.sliced_wasserstein(x, x.flip(0) + shift) == pytest.approx(expected, rel=1e-10)
    assert metrics.sliced_wasserstein(x, x.flip(0)) < 1e-12
    assert torch.allclose(metrics._directions(6).norm(dim=0), torch.ones(metrics.PROJECTIONS).double())


def test_directions_draw_nothing_from_the_global_generator() -> None:
    metrics._directions.cache_clear()
    before = torch.get_rng_state()
    first = metrics.sliced_wasserstein(normal(0, 9, 3), normal(1, 9, 3))
    metrics._directions.cache_clear()
    assert metrics.sliced_wasserstein(normal(0, 9, 3), normal(1, 9, 3)) == first
    assert torch.equal(before, torch.get_rng_state())


# neighbours and pairs


def test_nearest_distances_over_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, train = normal(0, 23, 12) + 5, normal(1, 57, 12) + 5
    x[4] = train[40]
    expected = (x[:, None] - train).norm(dim=2).min(1).values
    monkeypatch.setattr(metrics, "BLOCK", 100)
    found = metrics.nearest_distances(x, train.split(10))
    assert torch.allclose(found, expected, atol=1e-9) and found[4] == 0


def test_memorised_samples_have_the_ratio_0_and_unseen_ones_1() -> None:
    train, test, other = (normal(seed, 400, 8).float() for seed in range(3))
    unseen = metrics.nearest_distances(test, [train])
    assert metrics.nearest_ratio(metrics.nearest_distances(train[:100], [train]), unseen) == 0
    assert metrics.nearest_ratio(metrics.nearest_distances(other, [train]), unseen) == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="copies of training data"):
        metrics.nearest_ratio(unseen, torch.zeros(5))


def test_paired_error_is_a_mean_square_and_wants_pairs() -> None:
    x = normal(0, 5, 2, 3)
    assert metrics.paired_error(x, x + 0.5) == pytest.approx(0.25)
    with pytest.raises(ValueError, match=r"one shape, got \(5, 2, 3\) and \(4, 2, 3\)"):
        metrics.paired_error(x, x[1:])


def test_sets_of_other_widths_or_without_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="one width"):
        metrics.kernel_distance(normal(0, 5, 3), normal(0, 5, 4))
    with pytest.raises(ValueError, match="n at least 2"):
        metrics.frechet_distance(normal(0, 1, 3), normal(0, 5, 3))
    with pytest.raises(ValueError, match="n at least 6"):
        metrics.precision_recall_density_coverage(normal(0, 5, 3), normal(0, 9, 3))
