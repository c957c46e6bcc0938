"""From CTC logits to tokens: greedy, with times, and N-best by beam search."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.runtime.binary_packages import load, loading

from ..models.frames import frame_mask

Hypothesis = tuple[list[int], float]


def greedy(logits: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"], blank: int = 0) -> list[list[int]]:
    """The best token of each frame, repeats merged and blanks dropped."""
    best = logits.argmax(dim=-1)
    starts = F.pad(best[:, 1:] != best[:, :-1], (1, 0), value=True)
    kept = starts & (best != blank) & frame_mask(lengths, best.shape[1])[..., 0]
    return [ids.tolist() for ids in best[kept].split(kept.sum(dim=1).tolist())]


def spikes(logits: Float[Tensor, "t c"], blank: int = 0) -> list[tuple[int, int, int]]:
    """``(token, first frame, frame behind its last)`` of each token that `greedy` finds in one utterance."""
    ids, counts = torch.unique_consecutive(logits.argmax(dim=-1), return_counts=True)
    ends = counts.cumsum(0)
    runs = zip(ids.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True)
    return [(token, start, end) for token, start, end in runs if token != blank]


def beam(
    logits: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"], *, beam_size: int = 16, blank: int = 0
) -> list[list[Hypothesis]]:
    """The N best token sequences of each utterance by CTC prefix beam search, without lexicon or language model.

    Returns:
        for each utterance up to `beam_size` ``(ids, log-probability)``, the best first. The score sums the alignments
        that survived in the beam: a lower bound of ``log P(ids)``, which it reaches as `beam_size` grows.

    Raises:
        UserError: flashlight-text is not installed.
    """
    decoder = _decoder(logits.shape[-1], beam_size, blank)
    log_p = F.log_softmax(logits.detach().float(), dim=-1).cpu().contiguous()
    return [_merge(found) for found in decoder(log_p, lengths.cpu())]


def _decoder(classes: int, beam_size: int, blank: int) -> Any:
    load("flashlight.lib.text.decoder")  # torchaudio looks it up late, and says less of what is wrong
    with loading("torchaudio"):
        from torchaudio.models.decoder import ctc_decoder as build
    names = [str(k) for k in range(classes)]
    # flashlight frames each hypothesis with silence, as if it had been heard: as the blank it says nothing, where a
    # real token in its place would swallow that token in the first frame
    return build(
        lexicon=None, tokens=names, nbest=beam_size, beam_size=beam_size, beam_threshold=1e4, log_add=True,
        blank_token=names[blank], sil_token=names[blank],
    )  # fmt: skip


def _merge(found: list[Any]) -> list[Hypothesis]:
    """One entry for each sequence: flashlight keeps those that end in a blank apart from those that do not."""
    scores: dict[tuple[int, ...], float] = {}
    for hypothesis in found:
        ids = tuple(hypothesis.tokens.tolist())
        scores[ids] = log_add(scores.get(ids, -math.inf), hypothesis.score)
    return sorted(((list(ids), score) for ids, score in scores.items()), key=lambda pair: -pair[1])


def log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
