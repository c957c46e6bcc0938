"""The oracles themselves: values by hand, and CTC against torch's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles import ctc
from oracles.losses import ORACLES

LOG, ROOT = math.log, math.sqrt
#: KL((0.2, 0.8) || (0.5, 0.5)).
AGAINST_EVEN = 0.2 * LOG(0.4) + 0.8 * LOG(1.6)
#: Temperature that makes odds of 1 to 4 of a standardised pair.
EVEN_TO_FOUR = ROOT(2) / (1 + 1e-7) / LOG(4)
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
    # a pair that is sqrt 2 apart has std 1, and this temperature makes (0.2, 0.8) of it; a constant row stays even
    (
        "kd",
        [[[7.0, 7.0]], [[5.0, 5.0 + ROOT(2)]]],
        {"temperature": EVEN_TO_FOUR, "standardise": True},
        [EVEN_TO_FOUR**2 * AGAINST_EVEN],
    ),
    ("kd_lskd", [[[ROOT(2), 0.0]], [[0.0, ROOT(2)]]], {"temperature": EVEN_TO_FOUR}, [EVEN_TO_FOUR**2 * 0.6 * LOG(4)]),
    # stds 5 / sqrt 2 and 3 / sqrt 2: (0.8, 0.2) against (0.2, 0.8), times (3 / log 4)^2; a constant student is even
    (
        "kd",
        [[[0.0, -5.0], [1.0, 1.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 3.0], [2.0, 2.0]]],
        {"temperature": ROOT(2) / LOG(4), "per_sample": True},
        [5.4 / LOG(4), 9 / LOG(4) ** 2 * AGAINST_EVEN, 0.0],
    ),
    # softmax(u / T) is (1/2, 1/4, 1/4), the student (1/4, 1/4, 1/2)
    (
        "tfkd_reg",
        [[[0.0, 0.0, LOG(2)]], [0]],
        {"temperature": 0.25 / LOG(2), "correct": 0.5},
        [0.25 * LOG(2)],
    ),
    # b: (1/2, 1/2) and (1/4, 3/4); q: (1/2, 1/2) and (1/3, 2/3)
    (
        "dkd",
        [[[0.0, 0.0, 2 * LOG(2)]], [[2 * LOG(2), 0.0, 0.0]], [0]],
        {"temperature": 2.0, "alpha": 3.0},
        [4 * (3 * 0.5 * LOG(4 / 3) + 8 * 0.5 * LOG(9 / 8))],
    ),
    # two classes have no second term; this is kd
    ("dkd", [[[0.0, 0.0]], [[0.0, LOG(4)]], [1]], {"temperature": 1.0}, [AGAINST_EVEN]),
    # (0.9, 0.1) and (0.1, 0.9) at T = 1, (0.75, 0.25) and (0.25, 0.75) at T = 2
    (
        "wsld",
        [[[LOG(9), 0.0]], [[0.0, LOG(9)]], [0]],
        {},
        [4 * (1 - math.exp(-LOG(10 / 9) / (LOG(10) + 1e-7))) * (0.25 * LOG(4 / 3) + 0.75 * LOG(4))],
    ),
    # P_t (0.2, 0.8), P_s (0.6, 0.4): the mixture is even
    (
        "gjsd",
        [[[2 * LOG(1.5), 0.0]], [[0.0, 2 * LOG(4)]]],
        {"beta": 0.25, "temperature": 2.0},
        [4 * (0.25 * AGAINST_EVEN + 0.75 * (0.6 * LOG(1.2) + 0.4 * LOG(0.8)))],
    ),
    ("gjsd", [[[0.0, 0.0]], [[0.0, 2 * LOG(4)]]], {"beta": 0.0, "temperature": 2.0}, [4 * AGAINST_EVEN]),
    ("gjsd", [[[0.0, 0.0]], [[0.0, LOG(4)]]], {"beta": 1.0}, [0.5 * LOG(2.5) + 0.5 * LOG(0.625)]),
    (
        "skew_kl",
        [[[2 * LOG(1.5), 0.0]], [[0.0, 2 * LOG(4)]]],
        {"alpha": 0.25, "temperature": 2.0},
        [4 * AGAINST_EVEN],
    ),
    (
        "skew_rkl",
        [[[2 * LOG(1.5), 0.0]], [[0.0, 2 * LOG(4)]]],
        {"alpha": 0.75, "temperature": 2.0},
        [4 * (0.6 * LOG(1.2) + 0.4 * LOG(0.8))],
    ),
    # sigmoids 1/2 against 3/4, 3/4 against 1/2
    (
        "multi_label",
        [[[0.0, 2 * LOG(3)]], [[2 * LOG(3), 0.0]]],
        {"temperature": 2.0},
        [4 * (LOG(2) + 0.5 * LOG(4 / 3) + 0.5 * LOG(4)) / 2],
    ),
    ("weighted_ce", [[[0.0, 0.0]], [[0.0, LOG(4)]]], {}, [(1.5 * 0.2 + 0.8) * LOG(2)]),
    (
        "weighted_ce",
        [[[0.0, LOG(3)]], [[0.0, LOG(4)]]],
        {"background": 1, "background_weight": 3.0},
        [0.2 * LOG(4) + 3 * 0.8 * LOG(4 / 3)],
    ),
    ("ofa", [[[0.0, LOG(3)]], [[0.0, LOG(4)]], [0]], {}, [0.2 * LOG(4) + 0.8 * LOG(4 / 3)]),
    ("ofa", [[[0.0, LOG(3)]], [[0.0, LOG(4)]], [0]], {"eps": 2.0}, [0.44 * LOG(4) + 0.64 * LOG(4 / 3)]),
    # student (0.6, 0.8), teacher (1, 0) and (0.6, 0.8): k(t, t) = (2 + 2 * 0.36) / 4, k(s, t) = (0.36 + 1) / 2
    ("nst", [[[3.0], [4.0]], [[5.0, 3.0], [0.0, 4.0]], [1, 1], 2], {}, [0.0, 0.68 + 1 - 2 * 0.68]),
    # item 0 is rows 0 and 2: even against (0.2, 0.8), and (0.8, 0.2) against it
    (
        "cwd",
        [
            [[1.0, 2 * LOG(4)], [9.0, 9.0], [1.0, 0.0]],
            [[0.0, 0.0], [1.0, 2.0], [2 * LOG(4), 2 * LOG(4)]],
            [0, 1, 0],
            3,
        ],
        {"temperature": 2.0},
        [4 * (AGAINST_EVEN + 0.6 * LOG(4)) / 2, 0.0, 0.0],
    ),
    # rows of P: (2/3, 1/3) and, from opposite directions, (1, 0)
    ("pkt", [[[2.0, 0.0], [0.0, 3.0]], [[4.0], [-1.0]]], {}, 2 * LOG((1 + 1e-7) / (2 / 3 + 1e-7)) / 4),
    # on a line, in one order; distances 1, 2, 3 over 2 and 1, 1, 2 over 4/3: two pairs differ by 1/4, in both orders
    ("rkd", [[[0.0], [1.0], [3.0]], [[0.0], [1.0], [2.0]]], {}, 25 * 4 * 0.5 / 16 / 9),
    # one pair is far from the rest: distances 2, 1, 1 over 4/3 and 0, 3, 3 over 2: off by 3/2 and twice 3/4
    ("rkd", [[[0.0], [2.0], [1.0]], [[0.0], [0.0], [3.0]]], {"angle": 0.0}, 25 * 2 * (1.5 - 0.5 + 0.75**2) / 9),
    # on a line: cosines 1, -1, 1; right triangle: 0 and twice sqrt(1/2); 1/2 + 1/2 + sqrt(1/2) + 3/4 - sqrt(1/2)
    ("rkd", [[[0.0], [1.0], [2.0]], [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], {"distance": 0.0}, 50 * 2 * 1.75 / 27),
    # points 0 and 1 coincide: six triples have a zero side, all of cosine 1 or -1 at the teacher
    ("rkd", [[[0.0], [0.0], [1.0]], [[0.0], [1.0], [2.0]]], {"distance": 0.0}, 50 * 6 * 0.5 / 27),
    # rows (1, 0), (0, 1) and twice (1, 1) / sqrt 2
    ("sp", [[[1.0, 0.0], [0.0, 2.0]], [[3.0], [3.0]]], {}, 2 * ((1 - ROOT(0.5)) ** 2 + 0.5) / 4),
    # (-1, 1) against (1, -1), and a constant channel against (-1, 1)
    ("pearson", [[[0.0, 0.1], [2.0, 0.1]], [[5.0, 3.0], [1.0, 4.0]]], {}, 0.5 * (4 + 1) / 2),
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
