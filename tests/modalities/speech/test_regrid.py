"""Frames of any two rates meet on one grid, and what they spell stays what it was."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from xmodal_kd.modalities.speech.losses.frame_alignment import pool_posteriors, regrid_features, regrid_posteriors

CLASSES = 4
#: 20, 30, 40 and 60 ms on 40 ms, on 20 ms, and a rate of no small numbers.
RATIOS = [Fraction(1, 2), Fraction(3, 4), Fraction(2, 3), Fraction(3, 2), Fraction(2), Fraction(3), Fraction(441, 640)]


def spelt(path: list[int]) -> list[int]:
    return [k for k, _ in itertools.groupby(path) if k]


def peaked(path: list[int]) -> Tensor:
    """``(1, t, classes)`` logits of one sure path."""
    return 20.0 * torch.nn.functional.one_hot(torch.tensor([path]), CLASSES).float()


def apart(ratio: Fraction) -> list[int]:
    """Spikes with blanks between, so far apart that a grid coarser by `ratio` has room for them."""
    gap = [0] * -(-1 // ratio) * 2
    return [0, *itertools.chain.from_iterable([k, *gap] for k in (1, 1, 2, 3, 3))]


@pytest.mark.parametrize("ratio", RATIOS)
def test_spikes_stay_spikes(ratio: Fraction) -> None:
    path = apart(ratio)
    out, lengths = regrid_posteriors(peaked(path), torch.tensor([len(path)]), ratio)
    best = out[0, : int(lengths[0])].argmax(dim=-1).tolist()
    assert spelt(best) == [1, 1, 2, 3, 3]
    assert sum(k > 0 for k in best) == 5  # a frame each, however fine the grid
    assert abs(len(best) - len(path) * float(ratio)) <= 1.5


@pytest.mark.parametrize("ratio", [r for r in RATIOS if r > 1])
def test_a_label_that_is_held_is_not_cut_in_two_on_a_finer_grid(ratio: Fraction) -> None:
    path = [0, 1, 1, 1, 0, 2, 3, 3]
    out, lengths = regrid_posteriors(peaked(path), torch.tensor([len(path)]), ratio)
    best = out[0, : int(lengths[0])].argmax(dim=-1).tolist()
    assert spelt(best) == [1, 2, 3]
    assert best[: int(ratio)].count(0) == int(ratio)


@pytest.mark.parametrize("ratio", RATIOS)
def test_rows_are_distributions_and_padding_is_without_effect(ratio: Fraction) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 23, CLASSES, dtype=torch.float64)
    alone, short = regrid_posteriors(logits[1:, :9], torch.tensor([9]), ratio)
    logits[1, 9:] = torch.nan
    out, lengths = regrid_posteriors(logits, torch.tensor([23, 9]), ratio)
    assert int(short[0]) == int(lengths[1])
    torch.testing.assert_close(out[1, : int(lengths[1])], alone[0, : int(short[0])])
    for row, n in zip(out, lengths.tolist(), strict=True):
        torch.testing.assert_close(row[:n].exp().sum(dim=-1), torch.ones(n, dtype=torch.float64))


def test_equal_rates_are_left_alone_and_nested_ones_are_pooled() -> None:
    logits, lengths = torch.randn(2, 8, CLASSES), torch.tensor([8, 5])
    assert regrid_posteriors(logits, lengths, Fraction(1))[0] is logits
    for mine, theirs in zip(
        regrid_posteriors(logits, lengths, Fraction(1, 2)), pool_posteriors(logits, lengths, 2), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_frame_belongs_where_its_middle_lies() -> None:
    """30 ms on 40 ms: frames 1 and 2, with their middles at 45 and 75 ms, share the second; the others stand alone."""
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(1, 4, CLASSES, dtype=torch.float64), dim=-1)
    out, lengths = regrid_posteriors(p.log(), torch.tensor([4]), Fraction(3, 4))
    pair = torch.maximum(p[0, 1], p[0, 2])
    pair[0] = torch.minimum(p[0, 1, 0], p[0, 2, 0])
    torch.testing.assert_close(out[0].exp(), torch.stack([p[0, 0], pair / pair.sum(), p[0, 3]]))
    assert lengths.tolist() == [3]


@pytest.mark.parametrize("ratio", RATIOS)
def test_features_keep_a_line_a_line(ratio: Fraction) -> None:
    """Features that grow with time: on the grid they do, by the ratio, to within a frame."""
    steps = torch.arange(24, dtype=torch.float64)
    out, lengths = regrid_features(steps[None, :, None], torch.tensor([24]), ratio)
    found = out[0, : int(lengths[0]), 0]
    middle = (torch.arange(len(found), dtype=torch.float64) + 0.5) / float(ratio) - 0.5
    assert float((found - middle).abs().max()) <= max(0.5, 0.5 / float(ratio)) + 1e-9
