"""Accuracy with an interval, and likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F


def metrics(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], classes: Sequence[str]) -> dict[str, Any]:
    """``accuracy`` with ``accuracy_interval`` (Wilson, 1927: over nodes, nothing of other training seeds), ``nll``
    (nats a node), and accuracy by class where there are nodes of it."""
    logits = logits.double()
    right = (logits.argmax(dim=1) == labels).double()
    share = binomtest(int(right.sum()), len(labels)).proportion_ci(method="wilson")
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": [float(share.low), float(share.high)],
        "accuracy_interval_over": "nodes",
        "nll": float(F.cross_entropy(logits, labels)),
        "accuracy_by_class": {
            name: float(right[labels == i].mean()) for i, name in enumerate(classes) if bool((labels == i).any())
        },
        "nodes": len(labels),
    }


__all__ = ["metrics"]
