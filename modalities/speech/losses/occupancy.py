"""What a recogniser says of label sequences: their probability, and which frame says which symbol given one of them.

All in at least float32 and without a loop over utterances. Rows are those of a padded batch ``(b, t, c)`` with the
frames ``(b,)`` of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: Below this probability a symbol is not tried in a frame by the prefix beam; what is left out adds up to less.
NEGLIGIBLE = 1e-4
#: In place of minus infinity, the score of a symbol that a teacher does not know: CTC's backward pass makes NaN of it.
UNKNOWN = -1e4

Labels = tuple[int, ...]


def sequence_nll(
    logits: Tensor, frames: Tensor, targets: Sequence[Labels], blank: int, *, zero_infinity: bool = False
) -> Tensor:
    """``(b,)`` ``-log P(targets[i])`` in nats by CTC's full forward sum, inf where the frames are too few.

    Args:
        zero_infinity: 0 there, without a gradient.
    """
    lengths = torch.tensor([len(target) for target in targets], device=logits.device)
    flat = torch.tensor([k for target in targets for k in target], dtype=torch.int64, device=logits.device)
    log_p = F.log_softmax(known(logits), dim=-1).transpose(0, 1)
    return F.ctc_loss(
        log_p, flat, frames.clamp(min=1), lengths, blank=blank, reduction="none", zero_infinity=zero_infinity
    )


def known(logits: Tensor) -> Tensor:
    """Logits of which those of minus infinity are finite, and their probability still 0."""
    return logits.clamp(min=UNKNOWN)


def occupancy(logits: Tensor, frames: Tensor, targets: Sequence[Labels], blank: int) -> Tensor:
    """``gamma (b, t, c)``: the probability that frame t says symbol k, given that the frames spell the target.

    By the gradient of the forward sum, ``d NLL / d z = softmax(z) - gamma``. Rows behind an utterance's frames, and
    of a target that has no path, mean nothing.
    """
    with torch.enable_grad():
        z = known(logits.detach()).requires_grad_()
        nll = sequence_nll(z, frames, targets, blank, zero_infinity=True)
        (gradient,) = torch.autograd.grad(nll.sum(), z)
    gamma = (torch.softmax(z.detach(), dim=-1) - gradient).clamp(min=0)
    total = gamma.sum(dim=-1, keepdim=True)
    return gamma / torch.where(total > 0, total, 1.0)


def n_best(logits: Tensor, frames: Tensor, n: int, beam: int, blank: int) -> list[list[Labels]]:
    """The up to `n` most probable label sequences of each utterance that a prefix beam search finds, best first.

    Of `beam` prefixes kept each frame; a symbol of a probability below `NEGLIGIBLE` is not tried. Their order is the
    beam's; what they are worth should be summed anew over all paths (`sequence_nll`).
    """
    log_p = F.log_softmax(known(logits.detach()), dim=-1).double().cpu()
    return [_search(rows[:count], n, beam, blank) for rows, count in zip(log_p, frames.tolist(), strict=True)]


def _search(log_p: Tensor, n: int, beam: int, blank: int) -> list[Labels]:
    """Prefixes with the log-probability of their paths that end in a blank, and in their last symbol."""
    kept: dict[Labels, tuple[float, float]] = {(): (0.0, -math.inf)}
    for row, likely, first in zip(log_p.tolist(), *_tried(log_p, beam, blank), strict=True):
        grown: dict[Labels, tuple[float, float]] = {}
        symbols = first | {prefix[-1] for prefix in kept if prefix} & likely
        for prefix, (ends, says) in kept.items():
            either = _add(ends, says)
            _put(grown, prefix, either + row[blank], -math.inf)
            for k in symbols:
                if prefix and k == prefix[-1]:  # the same again, or after a blank a second one
                    _put(grown, prefix, -math.inf, says + row[k])
                    _put(grown, (*prefix, k), -math.inf, ends + row[k])
                else:
                    _put(grown, (*prefix, k), -math.inf, either + row[k])
        # a symbol said twice without a blank between has no path: minus infinity
        scores = {prefix: score for prefix, both in grown.items() if (score := _add(*both)) > -math.inf}
        kept = {prefix: grown[prefix] for prefix in sorted(scores, key=lambda prefix: -scores[prefix])[:beam]}
    return list(kept)[:n]


def _tried(log_p: Tensor, beam: int, blank: int) -> tuple[list[set[int]], list[set[int]]]:
    """By frame the symbols that are not negligible, and those of them with which any prefix may grow.

    Whatever else it grows by, `beam` symbols that it does not end in make more probable prefixes of it; but where the
    grown prefix is kept already, whose last symbol it then is, their paths add up.
    """
    spoken = log_p.clone()
    spoken[:, blank] = -math.inf
    above = spoken >= math.log(NEGLIGIBLE)
    top = spoken.topk(min(beam + 1, spoken.shape[1]), dim=1).indices.tolist()
    likely = [set(row.nonzero().flatten().tolist()) for row in above]
    return likely, [found & set(best) for found, best in zip(likely, top, strict=True)]


def _put(into: dict[Labels, tuple[float, float]], prefix: Labels, ends: float, says: float) -> None:
    before = into.get(prefix, (-math.inf, -math.inf))
    into[prefix] = (_add(before[0], ends), _add(before[1], says))


def _add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
