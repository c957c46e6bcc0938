"""Several teachers as one: mixtures and weights against oracles, and what must hold of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import scheme_teachers as oracle
from torch import Tensor

from xmodal_kd.losses import LOSSES
from xmodal_kd.schemes import aggregate

ROWS, CLASSES = 7, 5


def randn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def several(count: int, seed: int = 0) -> list[Tensor]:
    return [randn(ROWS, CLASSES, seed=seed + j) for j in range(count)]


def arrays(rows: list[Tensor]) -> list[np.ndarray]:
    return [x.numpy() for x in rows]


SEEN = torch.ones(3, ROWS, dtype=torch.bool)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_against_the_mixture_is_kd_against_the_mean_of_probabilities(temperature: float) -> None:
    teachers, student = several(3), randn(ROWS, CLASSES, seed=9)
    mixed = aggregate.mixture(teachers, aggregate.equal(SEEN), temperature)
    found = LOSSES["kd"].fn(student, mixed.double(), temperature=temperature)
    expected = oracle.against_mean(student.numpy(), arrays(teachers), temperature=temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_weighted_sum_of_divergences_has_the_gradient_of_the_mixture() -> None:
    teachers, labels = several(3), torch.arange(ROWS) % CLASSES
    student = randn(ROWS, CLASSES, seed=9).requires_grad_()
    ce = torch.stack([aggregate.cross_entropy(z, labels) for z in teachers])
    weights = aggregate.by_confidence(ce, SEEN)
    mixed = aggregate.mixture(teachers, weights, 3.0)
    [mine] = torch.autograd.grad(LOSSES["kd"].fn(student, mixed, temperature=3.0).sum(), student)
    each = torch.stack([LOSSES["kd"].fn(student, z, temperature=3.0) for z in teachers])
    [theirs] = torch.autograd.grad((weights * each).sum(), student)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_weights_by_confidence_agree_with_the_oracle() -> None:
    teachers, labels = several(3), torch.arange(ROWS) % CLASSES
    ce = torch.stack([aggregate.cross_entropy(z, labels) for z in teachers])
    expected = oracle.ca_mkd_weights(arrays(teachers), labels.numpy()).T
    np.testing.assert_allclose(aggregate.by_confidence(ce, SEEN).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_weights_are_shared_among_those_who_see_a_row() -> None:
    seen = torch.tensor([[True, True, False, False], [True, True, True, False], [True, False, False, False]])
    ce = torch.tensor([[0.1, 0.5, 9.0, 0.0], [0.1, 0.7, 1.0, 0.0], [0.1, 0.0, 0.0, 0.0]])
    for weights in (aggregate.equal(seen), aggregate.by_confidence(ce, seen)):
        assert weights.sum(dim=0).tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0])
        assert not weights[~seen].any()
        assert weights[:, 0].tolist() == pytest.approx([1 / 3] * 3), "equal teachers weigh the same"
    assert aggregate.by_confidence(ce, seen)[0, 1] > 0.5, "the surer one weighs more"


def test_an_impossible_answer_leaves_weights_finite() -> None:
    ce = torch.tensor([[torch.inf], [0.2], [0.2]])
    weights = aggregate.by_confidence(ce, SEEN[:, :1])
    assert weights[:, 0].tolist() == pytest.approx([0.0, 0.5, 0.5])


@pytest.mark.parametrize("cap", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_min_norm_weights_are_the_least(cap: float, seed: int) -> None:
    teachers, student = several(4, seed), randn(ROWS, CLASSES, seed=50 + seed)
    slopes = oracle.kd_gradients(student.numpy(), arrays(teachers), temperature=2.0)
    expected = oracle.ae_kd_weights(slopes, cap=cap)
    flat = aggregate.gradients(student, teachers, 2.0).flatten(1).double()
    found = np.array(aggregate.min_norm(flat @ flat.T, cap))
    assert found.sum() == pytest.approx(1.0)
    assert found.min() >= 0
    assert found.max() <= min(1.0, cap / 4) + 1e-12
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_min_norm_of_gradients_that_are_one() -> None:
    """Teachers that agree: any weights will do, and they stay finite."""
    found = aggregate.min_norm(torch.ones(3, 3), 2.0)
    assert sum(found) == pytest.approx(1.0)
    assert sum(aggregate.min_norm(torch.zeros(3, 3), 2.0)) == pytest.approx(1.0)
    assert aggregate.min_norm(torch.tensor([[4.0]]), 1.0) == [1.0]


def test_opposite_gradients_cancel() -> None:
    """g and -3 g: weights 3/4 and 1/4 leave nothing."""
    assert aggregate.min_norm(torch.tensor([[1.0, -3.0], [-3.0, 9.0]]), 2.0) == pytest.approx([0.75, 0.25])


def test_rows_of_no_weight_may_hold_nan() -> None:
    a, b = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]), torch.tensor([[0.0, torch.nan], [3.0, 1.0]])
    seen = torch.tensor([[True, False], [False, True]])
    mixed = aggregate.mixture([a, b], aggregate.equal(seen), 2.0)
    torch.testing.assert_close(torch.softmax(mixed / 2, -1), torch.softmax(torch.stack([a[0], b[1]]) / 2, -1))
    torch.testing.assert_close(aggregate.mean([a, b], aggregate.equal(seen)), torch.stack([a[0], b[1]]))


def test_a_transcript_is_as_likely_as_ctc_says_per_label() -> None:
    """One frame for each of two labels: the likelihood is a product, whatever the frames behind them."""
    scores = randn(1, 2, 3)
    found = aggregate.transcript_entropy(scores, torch.tensor([2]), torch.tensor([[1, 2]]), torch.tensor([2]), blank=0)
    log_p = torch.log_softmax(scores[0], dim=-1)
    assert found.tolist() == pytest.approx([float(-(log_p[0, 1] + log_p[1, 2]) / 2)], rel=1e-5)
    short = aggregate.transcript_entropy(scores, torch.tensor([1]), torch.tensor([[1, 2]]), torch.tensor([2]), blank=0)
    assert short.tolist() == [aggregate.WORST]
