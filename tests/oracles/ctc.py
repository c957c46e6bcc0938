"""CTC by brute force: every quantity of the lattice as a sum over all K^T paths, and a plain prefix beam search.

`log_probs` is ``(T, K)``, one normalised log-distribution a frame; labels are tuples without the blank.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = tuple[int, ...]

#: Six frames of four symbols: above this, enumeration is a mistake of the caller.
MAX_PATHS = 4**6


def collapse(path: Labels, blank: int = 0) -> Labels:
    """Labels that a path spells: repeats are merged first, then blanks are dropped."""
    merged = [symbol for symbol, _ in itertools.groupby(path)]
    return tuple(symbol for symbol in merged if symbol != blank)


def paths(log_probs: Array) -> Iterator[tuple[Labels, float]]:
    """Every path through the frames with its log-probability. Raises ``ValueError`` when there are too many."""
    frames, symbols = log_probs.shape
    if symbols**frames > MAX_PATHS:
        raise ValueError(f"{symbols}^{frames} paths are too many to enumerate: at most {MAX_PATHS}")
    for path in itertools.product(range(symbols), repeat=frames):
        yield path, sum(log_probs[t, k] for t, k in enumerate(path))


def sequences(log_probs: Array, blank: int = 0) -> dict[Labels, float]:
    """Log-probability of every label sequence that the frames can spell, the empty one included."""
    total: dict[Labels, float] = {}
    for path, score in paths(log_probs):
        labels = collapse(path, blank)
        total[labels] = np.logaddexp(total.get(labels, -math.inf), score)
    return total


def nll(log_probs: Array, labels: Labels, blank: int = 0) -> float:
    """-log p(labels); infinity when the frames are too few to spell them."""
    return -sequences(log_probs, blank).get(tuple(labels), -math.inf)


def occupancy(log_probs: Array, labels: Labels, blank: int = 0) -> Array:
    """gamma(t, k) ``(T, K)``: probability that frame t emits symbol k, given that the path spells `labels`.

    Raises ``ValueError`` when no path spells them.
    """
    gamma = np.zeros(log_probs.shape)
    for path, score in paths(log_probs):
        if collapse(path, blank) == tuple(labels):
            for t, k in enumerate(path):
                gamma[t, k] += math.exp(score)
    if gamma.sum() == 0:
        raise ValueError(f"no path of {len(log_probs)} frames spells the labels {tuple(labels)}")
    return gamma / gamma.sum(axis=1, keepdims=True)


def prefix_beam_search(log_probs: Array, beam: int, blank: int = 0) -> list[tuple[Labels, float]]:
    """The `beam` best label sequences, best first, with the log-probability of their paths that were kept.

    A prefix keeps two scores, for paths that end in a blank and for those that end in its last label: only after a
    blank does the same label count a second time (Graves, Jaitly, 2014; Hannun et al., 2014).
    """
    kept: dict[Labels, tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in log_probs:
        grown: dict[Labels, tuple[float, float]] = {}
        for prefix, (in_blank, in_label) in kept.items():
            whole = np.logaddexp(in_blank, in_label)
            for symbol, score in enumerate(frame):
                if symbol == blank:
                    _add(grown, prefix, blank_score=whole + score)
                elif prefix and symbol == prefix[-1]:
                    _add(grown, prefix, label_score=in_label + score)
                    _add(grown, (*prefix, symbol), label_score=in_blank + score)
                else:
                    _add(grown, (*prefix, symbol), label_score=whole + score)
        kept = dict(sorted(grown.items(), key=_best_first)[:beam])
    # a second a of "aa" without a blank between has no path yet: its score is minus infinity
    best = sorted(kept.items(), key=_best_first)
    return [(prefix, float(np.logaddexp(*scores))) for prefix, scores in best if max(scores) > -math.inf]


def _add(
    table: dict[Labels, tuple[float, float]],
    prefix: Labels,
    blank_score: float = -math.inf,
    label_score: float = -math.inf,
) -> None:
    in_blank, in_label = table.get(prefix, (-math.inf, -math.inf))
    table[prefix] = (np.logaddexp(in_blank, blank_score), np.logaddexp(in_label, label_score))


def _best_first(entry: tuple[Labels, tuple[float, float]]) -> tuple[float, Labels]:
    return -float(np.logaddexp(*entry[1])), entry[0]
