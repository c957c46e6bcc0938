"""How often a role names the right class of an utterance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal_kd.adapter.adapter import Batch, Evaluation, Score

from ..data.intents import IntentSource
from .score import EXAMPLES, FEWEST_SPEAKERS, interval


def accuracy(source: IntentSource, classes: Sequence[str], scores: Callable[[Batch], Tensor]) -> Evaluation:
    """``accuracy`` with its interval, by class and by speaker, and ``rtf`` as `measured` has it.

    The interval is a 95 % percentile bootstrap over speakers where there are at least 5, else over utterances, which
    flatters: then the speakers at hand stand for all (``accuracy_interval_over``).

    Args:
        scores: of a batch ``(b, classes)``.
    """
    found: list[Score] = []
    examples: list[dict[str, str]] = []
    by_class = np.zeros((2, len(classes)))
    seconds = 0.0
    for indexes in source.plan(0):
        batch = source.collate([source.sample(i, 0) for i in indexes])
        start = perf_counter()
        with torch.no_grad():
            said = scores(batch).argmax(dim=1).tolist()
        seconds += perf_counter() - start
        rows = zip(batch["keys"], batch["speakers"], batch["labels"].tolist(), said, strict=True)
        for key, speaker, label, answer in rows:
            found.append(Score(key, speaker, float(answer != label), 1.0))
            by_class[:, label] += (answer == label), 1
            if answer != label and len(examples) < EXAMPLES:
                examples.append({"key": key, "reference": classes[label], "hypothesis": classes[answer]})
    over = "speakers" if len({one.group for one in found}) >= FEWEST_SPEAKERS else "utterances"
    low, high = interval(found, over)
    speakers = sorted({one.group for one in found})
    metrics: dict[str, Any] = {
        "accuracy": _right(found),
        "accuracy_interval": [1 - high, 1 - low],
        "accuracy_interval_over": over,
        "accuracy_by_class": {
            name: float(right / count) for name, right, count in zip(classes, *by_class, strict=True) if count
        },
        "accuracy_by_speaker": {name: _right([one for one in found if one.group == name]) for name in speakers},
        "utterances": len(found),
        "rtf": seconds / float(source.seconds.sum()),
    }
    return Evaluation(metrics, found, examples)


def _right(scores: Sequence[Score]) -> float:
    return 1 - sum(one.errors for one in scores) / len(scores)


__all__ = ["accuracy"]
