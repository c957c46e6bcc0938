"""LwF and PDR with a head for each task, by somebody who has not seen their implementation: slow NumPy after the papers
(Li, Hoiem, ECCV 2016; Hou et al., ECCV 2018), equal to the latter's layer and to packnet's LwF to 1e-12."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
#: What those releases give of `inputs` of seeds 0 and 1, at T = 2: LwF's cross-entropy of labels and the whole with a
#: weight of 1; PDR's two terms on exemplars of two old tasks and the one on new samples.
RELEASED: Mapping[int, tuple[float, float, tuple[float, float, float]]] = {
    0: (3.0586033813780067, 6.2846917562103615, (0.4253118334533708, 0.11437997600680176, 0.299597558106375)),
    1: (2.707459920688318, 6.004473670584758, (0.6400852222751614, 0.6950339281131807, 0.31245331619745736)),
}


def log_softmax(z: Array) -> Array:
    m = z.max()
    return np.asarray(z - m - math.log(np.exp(z - m).sum()))


def inputs(seed: int = 0) -> dict[str, Any]:
    """Two old tasks (4 and 3 classes) and a new one (5): logits of every head on new samples (3) and exemplars (2)."""
    r = np.random.RandomState(seed)
    classes, counts = {"a": 4, "b": 3, "new": 5}, {"new": 3, "a": 2, "b": 2}
    return {
        "student": {h: {k: r.randn(counts[k], classes[h]) * 2 for k in counts} for h in classes},
        "old": {h: {k: r.randn(counts[k], classes[h]) * 2 for k in counts} for h in ("a", "b")},
        "expert": r.randn(counts["new"], classes["new"]) * 2,
        "y": r.randint(0, classes["new"], counts["new"]),
    }


def ce(z: Array, y: Sequence[int]) -> float:
    return -sum(float(log_softmax(row)[k]) for row, k in zip(z, y, strict=True)) / len(z)


def soft_ce(s: Array, t: Array, T: float) -> float:
    """The mean over rows of -sum_k t'_k log s'_k, both softened by T; no T^2."""
    return -sum(
        float((np.exp(log_softmax(b / T)) * log_softmax(a / T)).sum()) for a, b in zip(s, t, strict=True)
    ) / len(s)  # fmt: skip


def kl(s: Array, t: Array, T: float) -> float:
    """The same less the target's entropy: of equal gradient, and 0 at s == t."""
    return soft_ce(s, t, T) - soft_ce(t, t, T)
