"""Accuracy with an interval, likelihood and calibration of class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

#: Bins of confidence in the calibration error.
CONFIDENCES = 15
#: Deviations within which 95 % of a normal variable lie.
Z = 1.959963984540054


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927): right where the share is near 0 or 1, and the count small.

    It says what other images would have done to this model; nothing of other training seeds.

    >>> [round(end, 3) for end in wilson(10, 10)]
    [0.722, 1.0]
    """
    share, square = right / total, Z * Z / total
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * sqrt(share * (1 - share) / total + square / total / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration_error(confidence: Float[Tensor, " n"], right: Float[Tensor, " n"]) -> float:
    """Mean over images of |accuracy - confidence| of the image's bin of confidence (Guo et al., 2017, eq. 5)."""
    place = (confidence * CONFIDENCES).long().clamp(max=CONFIDENCES - 1)
    difference = torch.zeros(CONFIDENCES, dtype=torch.float64).index_add(0, place, right.double() - confidence.double())
    return float(difference.abs().sum() / len(confidence))


def metrics(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], classes: Sequence[str]) -> dict[str, Any]:
    """``accuracy`` with ``accuracy_interval``, ``nll`` (nats an image), ``ece``, and accuracy by class where there are
    images of it."""
    logits = logits.double()
    confidence, answer = torch.softmax(logits, dim=1).max(dim=1)
    right = (answer == labels).double()
    low, high = wilson(int(right.sum()), len(labels))
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": [low, high],
        "accuracy_interval_over": "images",
        "nll": float(F.cross_entropy(logits, labels)),
        "ece": calibration_error(confidence, right),
        "accuracy_by_class": {
            name: float(right[labels == i].mean()) for i, name in enumerate(classes) if bool((labels == i).any())
        },
        "images": len(labels),
    }


__all__ = ["calibration_error", "metrics", "wilson"]
