"""The oracles themselves: values by hand, and CTC against torch's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles import ctc
from oracles.losses import ORACLES

LOG = math.log
BY_HAND: list[tuple[str, list[Any], dict[str, Any], Any]] = [
    ("kd", [[[0.0, 0.0]], [[0.0, LOG(4)]]], {"temperature": 1.0}, [0.2 * LOG(0.4) + 0.8 * LOG(1.6)]),
    ("logit_mse", [[[1.0, 2.0]], [[4.0, 3.0]]], {}, [5.0]),
    ("logit_mse", [[[1.0, 2.0]], [[4.0, 3.0]]], {"centre": True}, [1.0]),
    ("hint", [[[1.0, 2.0], [0.0, 0.0]], [[4.0, 3.0], [0.0, 2.0]]], {}, [5.0, 2.0]),
    # attention 9, 0 is the direction (1, 0) and 3, 4 is (0.6, 0.8); item 1 has no row
    ("at", [[[3.0], [0.0]], [[math.sqrt(3)], [2.0]], [0, 0], 2], {}, [(0.16 + 0.64) / 2, 0.0]),
    # Gram matrices [[1, 0], [0, 0]] and all ones; centred, two rows differ along one line only
    ("cka", [[[1.0], [0.0]], [[1.0], [1.0]]], {"centre": False}, 0.5),
    ("cka", [[[1.0, 5.0], [0.0, 2.0]], [[3.0], [4.0]]], {}, 0.0),
    # two classes, opposite logits: every correlation is -1
    ("dist", [[[1.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [3.0, 0.0]]], {"temperature": 2.0, "gamma": 3.0}, 4 * (2 + 6)),
]


@pytest.mark.parametrize(("name", "inputs", "params", "expected"), BY_HAND)
def test_loss_oracle_by_hand(name: str, inputs: list[Any], params: dict[str, Any], expected: Any) -> None:
    got = ORACLES[name](*[np.array(x) if isinstance(x, list) else x for x in inputs], **params)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


CASES = [(4, 3, (1, 2)), (5, 3, (1, 1)), (6, 3, (2, 1, 2)), (6, 4, (3,)), (3, 2, ()), (1, 2, (1,))]


def _logits(frames: int, symbols: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(frames, symbols, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("frames", "symbols", "labels"), CASES)
def test_ctc_agrees_with_torch(frames: int, symbols: int, labels: tuple[int, ...], seed: int) -> None:
    """The loss, and the occupancy through its gradient: d nll / d logits = p - gamma."""
    logits = _logits(frames, symbols, seed).requires_grad_()
    log_probs = logits.log_softmax(-1)
    sizes = torch.tensor([frames]), torch.tensor([len(labels)])
    targets = torch.tensor([labels], dtype=torch.long)
    loss = torch.nn.functional.ctc_loss(log_probs[:, None], targets, *sizes, reduction="sum")
    loss.backward()
    table = log_probs.detach().numpy()
    assert ctc.nll(table, labels) == pytest.approx(loss.item(), rel=1e-10)
    gamma = ctc.occupancy(table, labels)
    np.testing.assert_allclose(gamma.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.exp(table) - gamma, logits.grad.numpy(), atol=1e-10)


def test_ctc_by_hand() -> None:
    """Two frames of even odds: (a, a), (a, -) and (-, a) spell a; nothing spells aa, which needs a blank between."""
    table = np.log(np.full((2, 2), 0.5))
    assert ctc.nll(table, (1,)) == pytest.approx(-LOG(0.75))
    assert ctc.nll(table, (1, 1)) == math.inf
    np.testing.assert_allclose(ctc.occupancy(table, (1,)), [[1 / 3, 2 / 3]] * 2)
    with pytest.raises(ValueError, match="2 frames"):
        ctc.occupancy(table, (1, 1))
    with pytest.raises(ValueError, match="too many"):
        ctc.nll(np.zeros((9, 9)), (1,))


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize(("frames", "symbols"), [(1, 3), (4, 3), (6, 3), (5, 4)])
def test_a_wide_beam_is_exact(frames: int, symbols: int, blank: int) -> None:
    table = _logits(frames, symbols, seed=frames).log_softmax(-1).numpy()
    exact = ctc.sequences(table, blank)
    found = ctc.prefix_beam_search(table, beam=10_000, blank=blank)
    assert sum(map(math.exp, exact.values())) == pytest.approx(1)
    assert dict(found) == pytest.approx(exact, rel=1e-10)
    assert [score for _, score in found] == pytest.approx(sorted(exact.values(), reverse=True), rel=1e-10)


def test_a_narrow_beam_is_a_lower_bound() -> None:
    table = _logits(6, 4, seed=0).log_softmax(-1).numpy()
    exact = ctc.sequences(table)
    found = ctc.prefix_beam_search(table, beam=5)
    assert len(found) == 5
    assert all(score <= exact[labels] + 1e-12 for labels, score in found)
