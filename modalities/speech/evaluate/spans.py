"""When words are said: from the spikes of a CTC path, and from how loud the recording is around them.

A CTC model says a symbol in one frame or two, somewhere within what it stands for, and blank before and after: its
spikes alone would give a word a tenth of its length. So a word reaches from its spikes to either side as long as there
is sound, and no further than the quietest moment between it and its neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.runtime.binary_packages import loading

Span = tuple[int, int]

#: Between a recording's quiet (10th percentile of its frames) and its loud (90th): above this share is sound. Chosen,
#: with CLOSURE, on the dev voice of assets/digits: there words get 1.03 of their true length.
LOUD = 0.2
#: Seconds of silence within a word: the closure of a plosive.
CLOSURE = 0.12
#: Seconds over which loudness is smoothed.
SMOOTH = 0.05


def align(logits: Float[Tensor, "t c"], tokens: Sequence[int], blank: int = 0) -> list[Span] | None:
    """Of each token the first frame and the one behind its last on the most probable path that spells `tokens`.

    Returns None where the frames are too few to spell them.
    """
    if not tokens:
        return []
    repeats = sum(a == b for a, b in pairwise(tokens))
    if len(tokens) + repeats > len(logits):
        return None
    with loading("torchaudio"):
        from torchaudio.functional import forced_align

    log_p = F.log_softmax(logits.float(), dim=-1)[None]
    path, _ = forced_align(log_p, torch.tensor([list(tokens)], dtype=torch.int32), blank=blank)
    runs, counts = torch.unique_consecutive(path[0], return_counts=True)
    ends = counts.cumsum(0)
    found = zip(runs.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True)
    return [(start, end) for token, start, end in found if token != blank]


def widened(spans: Sequence[Span], loudness: Float[Tensor, " t"], seconds: float) -> list[Span]:
    """`spans` of words as far as their sound goes, in frames of `loudness`.

    Args:
        spans: first frame and the one behind the last of each word's spikes, in order.
        loudness: of each frame, any scale that grows with it.
        seconds: between two frames.
    """
    if not len(loudness) or not spans:
        return list(spans)
    width = max(1, round(SMOOTH / seconds)) | 1
    smooth = F.avg_pool1d(loudness[None, None], width, stride=1, padding=width // 2, count_include_pad=False)[0, 0]
    quiet, loud = torch.quantile(_thinned(smooth), torch.tensor([0.1, 0.9])).tolist()
    sound = (smooth >= quiet + LOUD * (loud - quiet)).tolist()
    closure = round(CLOSURE / seconds)
    borders = [0, *(_quietest(smooth, a[1], b[0]) for a, b in pairwise(spans)), len(smooth)]
    found = []
    for (start, end), low, high in zip(spans, borders[:-1], borders[1:], strict=True):
        left = _reach(sound, start - 1, low - 1, closure, -1) + 1
        right = _reach(sound, min(end, len(sound)), high, closure, 1)
        found.append((min(max(left, low), start), max(min(right, high), min(end, len(sound)))))
    return found


def _thinned(values: Tensor) -> Tensor:
    """At most a hundred thousand of many values: quantiles of hours need no more, and torch takes no more than 16 M."""
    return values[:: max(1, len(values) // 100_000)]


def _quietest(loudness: Tensor, start: int, end: int) -> int:
    """The quietest frame from `start` to `end`, the border between what lies on either side."""
    start, end = min(start, end), max(start, end)
    if end - start < 2 or start >= len(loudness):
        return min((start + end) // 2, len(loudness))
    return start + int(loudness[start:end].argmin())


def _reach(sound: Sequence[bool], at: int, limit: int, closure: int, step: int) -> int:
    """The first frame from `at` on, in steps of `step`, that is no sound, nor a closure with sound behind it."""
    edge, silent = at, 0
    while at != limit and 0 <= at < len(sound):
        silent = 0 if sound[at] else silent + 1
        if silent > closure:
            break
        at += step
        if not silent:
            edge = at
    return edge


__all__ = ["align", "widened"]
