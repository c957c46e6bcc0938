"""Word, character and sentence errors with their interval, from transcripts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from xmodal_kd.adapter.adapter import Evaluation, Score

RESAMPLES = 1000
EXAMPLES = 50
#: Below this many speakers their resampling says nothing, and utterances are resampled instead.
FEWEST_SPEAKERS = 5


@dataclass(frozen=True)
class Errors:
    """Edit operations of one utterance against a reference of `units` words or characters."""

    substitutions: int
    insertions: int
    deletions: int
    units: int

    @property
    def total(self) -> int:
        return self.substitutions + self.insertions + self.deletions


def score(
    references: Sequence[str], hypotheses: Sequence[str], keys: Sequence[str], speakers: Sequence[str],
    metric: str = "wer",
) -> Evaluation:  # fmt: skip
    """Word error rate of a test set and what it is made of; by item the errors in what `metric` counts.

    All rates are shares, not percent. ``wer_interval`` (``cer_interval``, where that is the metric) is a 95 %
    percentile bootstrap over speakers where there are at least 5, else over utterances, which flatters: then the
    speakers at hand stand for all (``wer_interval_over``).
    """
    words = [_errors(*pair, unit="words") for pair in zip(references, hypotheses, strict=True)]
    characters = [_errors(*pair, unit="characters") for pair in zip(references, hypotheses, strict=True)]
    counted = characters if metric == "cer" else words
    scores = [
        Score(key, speaker, float(found.total), float(found.units))
        for key, speaker, found in zip(keys, speakers, counted, strict=True)
    ]
    over = "speakers" if len(set(speakers)) >= FEWEST_SPEAKERS else "utterances"
    metrics: dict[str, Any] = {
        "wer": _rate(words),
        "substitutions": sum(e.substitutions for e in words),
        "insertions": sum(e.insertions for e in words),
        "deletions": sum(e.deletions for e in words),
        "words": sum(e.units for e in words),
        "ser": float(np.mean([e.total > 0 for e in words])) if words else 0.0,
        "cer": _rate(characters),
        f"{metric}_interval": interval(scores, over),
        f"{metric}_interval_over": over,
        f"{metric}_by_speaker": {name: e / max(u, 1.0) for name, (e, u) in sorted(_by_speaker(scores).items())},
    }
    return Evaluation(metrics, scores, _worst(references, hypotheses, keys, counted))


def interval(scores: Sequence[Score], over: str = "speakers", *, resamples: int = RESAMPLES) -> list[float]:
    """Low and high end of the bootstrap's middle 95 %. The draws are the same for equal numbers of units."""
    if not scores:
        return [0.0, 0.0]
    pairs = list(_by_speaker(scores).values()) if over == "speakers" else [(s.errors, s.units) for s in scores]
    errors, units = np.array(pairs).T
    rng = np.random.Generator(np.random.Philox(0))
    # how often each unit is drawn, one row a resample: (1000, units) integers, where indexes would need as much again
    drawn = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=resamples)
    rates = (drawn @ errors) / np.maximum(drawn @ units, 1.0)
    return [float(end) for end in np.percentile(rates, [2.5, 97.5])]


def _by_speaker(scores: Sequence[Score]) -> dict[str, tuple[float, float]]:
    sums: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for s in scores:
        errors, units = sums[s.group]
        sums[s.group] = (errors + s.errors, units + s.units)
    return dict(sums)


def _rate(errors: Sequence[Errors]) -> float:
    """Errors a unit of the reference; of references without any, the number of insertions."""
    return sum(e.total for e in errors) / max(sum(e.units for e in errors), 1)


@lru_cache(maxsize=1 << 14)  # dev is heard again and again, and most of it is written as it was
def _errors(reference: str, hypothesis: str, *, unit: str) -> Errors:
    import jiwer

    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    if not reference:  # jiwer refuses it: all that was said is an insertion
        return Errors(0, len(hypothesis.split() if unit == "words" else hypothesis), 0, 0)
    process = jiwer.process_words if unit == "words" else jiwer.process_characters
    found = process(reference, hypothesis)
    return Errors(
        found.substitutions, found.insertions, found.deletions, found.hits + found.substitutions + found.deletions
    )


def _worst(
    references: Sequence[str], hypotheses: Sequence[str], keys: Sequence[str], errors: Sequence[Errors]
) -> list[dict[str, str]]:
    order = sorted(range(len(keys)), key=lambda i: (-errors[i].total, keys[i]))[:EXAMPLES]
    return [{"key": keys[i], "reference": references[i], "hypothesis": hypotheses[i]} for i in order]
