"""Decoding against exact enumeration of all paths."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys

import pytest
import torch
from torch import Tensor

from xmodal_kd import binary
from xmodal_kd.errors import UserError
from xmodal_kd.modalities.speech.decode import beam, greedy, spikes

needs_flashlight = pytest.mark.skipif(
    importlib.util.find_spec("flashlight") is None, reason="flashlight-text has no wheel above Python 3.12"
)


def all_sequences(logits: Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """log P of every label sequence that the frames can say."""
    p = logits.double().softmax(dim=-1).tolist()
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(logits.shape[-1]), repeat=len(p)):
        ids = tuple(k for k, _ in itertools.groupby(path) if k != blank)
        sums[ids] = sums.get(ids, 0.0) + math.prod(row[k] for row, k in zip(p, path, strict=True))
    return {ids: math.log(value) for ids, value in sums.items()}


def frames(*tokens: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), 4).float()


def test_greedy_merges_repeats_and_drops_blanks() -> None:
    logits = torch.stack([frames(1, 1, 0, 1, 2, 2), frames(0, 3, 3, 1, 1, 1), frames(0, 0, 0, 0, 0, 2)])
    assert greedy(logits, torch.tensor([6, 3, 5])) == [[1, 1, 2], [3], []]


def test_greedy_with_another_blank() -> None:
    assert greedy(frames(3, 0, 0, 3, 0, 1)[None], torch.tensor([6]), blank=3) == [[0, 0, 1]]


def test_spikes_say_when() -> None:
    assert spikes(frames(0, 1, 1, 0, 1, 2)) == [(1, 1, 3), (1, 4, 5), (2, 5, 6)]
    assert spikes(frames(0, 0)) == []


@needs_flashlight
@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("sharpness", [0.5, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_is_exact(blank: int, sharpness: float, seed: int) -> None:
    lengths = torch.tensor([5, 4, 1])
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed)) * sharpness
    for found, row, length in zip(beam(logits, lengths, beam_size=500, blank=blank), logits, lengths, strict=True):
        exact = all_sequences(row[:length], blank)
        assert len(found) == len(exact)
        for ids, score in found:
            assert score == pytest.approx(exact[tuple(ids)], abs=1e-4)
        assert [score for _, score in found] == sorted((s for _, s in found), reverse=True)


@needs_flashlight
def test_a_narrow_beam_finds_the_best_of_peaky_posteriors() -> None:
    logits = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(0)) * 4
    for found, row in zip(beam(logits, torch.full((8,), 5), beam_size=8), logits, strict=True):
        exact = all_sequences(row, 0)
        assert tuple(found[0][0]) == max(exact, key=lambda ids: exact[ids])
        assert 1 <= len(found) <= 8 and len({tuple(ids) for ids, _ in found}) == len(found)


def test_beam_search_without_flashlight_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashlight", None)
    monkeypatch.setattr(binary, "version", lambda project: None)
    with pytest.raises(UserError, match=r"flashlight-text is missing: pip install 'xmodal-kd\[decode\]'"):
        beam(torch.zeros(1, 2, 3), torch.tensor([2]))
