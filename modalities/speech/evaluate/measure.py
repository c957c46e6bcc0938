"""What a role writes of a split, held against what was said."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

from xmodal_kd.adapter.adapter import Batch, Evaluation

from ..data.source import SpeechSource
from .score import score

#: Of a batch its texts, and what gives those of a second, slower search, whose time does not count.
Write = Callable[[Batch], tuple[list[str], Callable[[], list[str]] | None]]


def measured(source: SpeechSource, write: Write, metric: str) -> Evaluation:
    """Word errors, and ``rtf``: seconds of computing, features excluded, a second of audio.

    Where there is a second search, also ``wer_beam`` and ``cer_beam`` by it.
    """
    references: list[str] = []
    hypotheses: list[str] = []
    keys: list[str] = []
    speakers: list[str] = []
    searched: list[str] = []
    seconds, heard = 0.0, 0.0
    for indexes in source.plan(0):
        batch = source.collate([source.sample(i, 0) for i in indexes])
        heard += float(source.seconds[np.asarray(indexes)].sum())
        start = perf_counter()
        with torch.no_grad():
            texts, search = write(batch)
        seconds += perf_counter() - start
        searched += [] if search is None else search()
        hypotheses += texts
        references += batch["texts"]
        keys += batch["keys"]
        speakers += batch["speakers"]
    evaluation = score(references, hypotheses, keys, speakers, metric)
    metrics = evaluation.metrics | {"rtf": seconds / heard}
    if searched:
        by_beam = score(references, searched, keys, speakers, metric).metrics
        metrics |= {f"{name}_beam": by_beam[name] for name in ("wer", "cer")}
    return Evaluation(metrics, evaluation.scores, evaluation.examples)


__all__ = ["Write", "measured"]
