"""How far a set of samples is from a set of real data: pure functions of float tensors ``(n, d)``, in any features.

Everything but the search for neighbours among pixels is computed in float64. Distances go in blocks of rows, so memory
grows with the larger set and not with the product of both. Nothing here draws random numbers except the directions of
`sliced_wasserstein`, whose seed is fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.runtime.random_streams import Streams

#: Distances held at once: 64 MiB in float64.
BLOCK = 2**23
#: Neighbours of precision and recall (Kynkäänniemi et al., 2019) and of density and coverage (Naeem et al., 2020).
PRECISION_K, DENSITY_K = 3, 5
#: Directions of `sliced_wasserstein`, and their seed.
PROJECTIONS, PROJECTION_SEED = 256, 0


@dataclass(frozen=True)
class Gaussian:
    """``mean`` (d,) and ``factor`` (r, d) with covariance ``factor.T @ factor``, float64."""

    mean: Tensor
    factor: Tensor


def fit_gaussian(features: Tensor) -> Gaussian:
    """Mean and unbiased covariance of ``(n, d)``, n at least 2, kept as a factor and never squared."""
    x = _rows(features, least=2)
    mean = x.mean(0)
    return Gaussian(mean, torch.linalg.qr(x - mean, mode="r").R / (len(x) - 1) ** 0.5)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` (Dowson and Landau, 1982; Heusel et al., 2017, eq. 6).

    With ``C = R^T R`` the eigenvalues of ``C_a C_b`` are the squared singular values of ``R_a R_b^T``, so the trace of
    the square root is their sum. No matrix root is taken, and covariances of any rank will do.
    """
    root = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    value = (a.mean - b.mean).square().sum() + a.factor.square().sum() + b.factor.square().sum() - 2 * root
    return max(float(value), 0.0)  # equal sets give 0 up to rounding


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """`frechet` of the Gaussians fitted to ``(n, d)`` and ``(m, d)``. Biased upwards, the more so the fewer rows."""
    return frechet(fit_gaussian(x), fit_gaussian(y))


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Squared MMD with the kernel ``(x.y / d + 1)^3``, unbiased, over the whole sets (Binkowski et al., 2018, eq. 4).

    Its expectation is 0 for sets of one distribution, whatever their sizes, so it may come out below 0.
    """
    x, y = _pair(x, y, least=2)
    return _kernel_within(x) + _kernel_within(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel_within(x: Tensor) -> float:
    n = len(x)
    itself = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
    return (_kernel_sum(x, x) - float(itself)) / (n * (n - 1))


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    return sum(float((block @ y.T / x.shape[1] + 1).pow(3).sum()) for _, block in _blocks(x, len(y)))


def neighbour_radii(x: Tensor, k: int) -> Tensor:
    """Distance ``(n,)`` of every row to its k-th nearest other row. Raises ValueError for fewer than k + 1 rows."""
    x = _rows(x, least=k + 1)
    radii = []
    for start, block in _blocks(x, len(x)):
        distances = _distances(block, x)
        own = torch.arange(len(block), device=x.device)
        distances[own, start + own] = torch.inf
        radii.append(distances.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)


@dataclass(frozen=True)
class Coverage:
    """What `precision_recall_density_coverage` finds; all but `density` are shares."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(
    real: Tensor, fake: Tensor, *, radii: tuple[Tensor, Tensor] | None = None
) -> Coverage:
    """The four measures from balls that reach each point's k-th neighbour in its own set.

    Precision is the share of samples in any ball of the real points, recall the share of real points in any ball of
    the samples (Kynkäänniemi et al., 2019, eq. 1 and 2, k = 3). Density is the number of real balls that hold a sample,
    over k and averaged, coverage the share of real balls that hold any sample (Naeem et al., 2020, eq. 3 and 4, k = 5).
    All four depend on the counts, so sets are compared at equal counts only.

    Args:
        radii: `neighbour_radii` of `real` for `PRECISION_K` and `DENSITY_K`, where they are known already.
    """
    real, fake = _pair(real, fake, least=DENSITY_K + 1)
    radius, wide = radii or (neighbour_radii(real, PRECISION_K), neighbour_radii(real, DENSITY_K))
    theirs = neighbour_radii(fake, PRECISION_K)
    precise, recalled, inside = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device), 0
    covered = recalled.clone()
    for start, block in _blocks(fake, len(real)):
        distances = _distances(block, real)
        precise += int((distances <= radius).any(1).sum())
        recalled |= (distances <= theirs[start : start + len(block), None]).any(0)
        held = distances <= wide
        inside += int(held.sum())
        covered |= held.any(0)
    n, m = len(fake), len(real)
    return Coverage(precise / n, int(recalled.sum()) / m, inside / (DENSITY_K * n), int(covered.sum()) / m)


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """Mean over fixed random directions of the Wasserstein-1 distance of the projections (Rabin et al., 2011).

    Exact in every direction, for sets of different sizes too: both quantile functions are steps, and their difference
    is integrated between the steps of either. In units of the data along a unit vector.
    """
    x, y = _pair(x, y)
    directions = _directions(x.shape[1]).to(x.device)
    return float(_wasserstein(x @ directions, y @ directions).mean())


def _wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """Wasserstein-1 distance ``(p,)`` of the columns of ``(n, p)`` and ``(m, p)``."""
    n, m = len(x), len(y)
    # the steps of both quantile functions, in units of 1 / (n m), so that they are integers
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    difference = torch.sort(x, dim=0)[0][starts // m] - torch.sort(y, dim=0)[0][starts // n]
    widths = (ends - starts).to(x.dtype)
    distances: Tensor = (widths[:, None] * difference.abs()).sum(0) / (n * m)
    return distances


@lru_cache(maxsize=4)
def _directions(width: int) -> Tensor:
    """Unit vectors ``(width, PROJECTIONS)``, the same at every call."""
    drawn = Streams(PROJECTION_SEED).numpy("directions", width).standard_normal((width, PROJECTIONS))
    return torch.from_numpy(drawn / np.linalg.norm(drawn, axis=0))


def nearest_distances(x: Tensor, others: Iterable[Tensor]) -> Tensor:
    """Euclidean distance ``(n,)``, float64, of every row of `x` to the nearest row of all of `others`.

    Args:
        x: ``(n, d)``.
        others: blocks ``(m_i, d)`` that need never be in memory together.
    """
    x = _rows(x)
    nearest = x.new_full((len(x),), torch.inf)
    for other in others:
        _same_width(x, other)
        nearest = torch.minimum(nearest, _nearest_in(x, other.to(x.device)))
    return nearest


def _nearest_in(x: Tensor, y: Tensor) -> Tensor:
    """The neighbour is found by a product in float32, its distance then taken in float64, so that a copy is at 0."""
    middle = y.to(torch.float32).mean(0)
    centred = y.to(torch.float32) - middle
    squares = centred.square().sum(1)
    found = []
    for _, block in _blocks(x, len(y)):
        index = (squares - 2 * (block.to(torch.float32) - middle) @ centred.T).argmin(1)
        found.append((block - y[index].to(torch.float64)).norm(dim=1))
    return torch.cat(found)


def nearest_ratio(samples: Tensor, held_out: Tensor) -> float:
    """Median `nearest_distances` of samples to the training data, over the same of held-out real data.

    1: samples are as far from the training data as real data that were not trained on; far below 1: memorised. Blurred
    or collapsed samples lie near the mean of the data and fall below 1 too, so read it beside recall and coverage.

    Raises:
        ValueError: the held-out median is 0, that is half of the held-out data are copies of training data.
    """
    middle = float(held_out.to(torch.float64).median())
    if middle == 0:
        raise ValueError("at least half of the held-out data are exact copies of training data")
    return float(samples.to(torch.float64).median()) / middle


def paired_error(x: Tensor, y: Tensor) -> float:
    """Mean squared difference of two samplers' results ``(n, ...)`` from the same noise."""
    if x.shape != y.shape:
        raise ValueError(f"paired samples must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    return float((x.to(torch.float64) - y.to(torch.float64)).square().mean())


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean, from differences: the product form would leave copies at a distance that is not 0."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _blocks(x: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    """Start and rows of each block of `x` whose product with `width` columns fits `BLOCK`."""
    size = max(1, BLOCK // max(width, 1))
    for start in range(0, len(x), size):
        yield start, x[start : start + size]


def _pair(x: Tensor, y: Tensor, *, least: int = 1) -> tuple[Tensor, Tensor]:
    x, y = _rows(x, least=least), _rows(y, least=least)
    _same_width(x, y)
    return x, y


def _same_width(x: Tensor, y: Tensor) -> None:
    if y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"both sets must be (n, d) of one width d, got {tuple(x.shape)} and {tuple(y.shape)}")


def _rows(x: Tensor, *, least: int = 1) -> Tensor:
    if x.ndim != 2 or len(x) < least:
        raise ValueError(f"expected (n, d) with n at least {least}, got {tuple(x.shape)}")
    return x.detach().to(torch.float64)
