"""How well rows are labelled: IoU by class and by distance, accuracy, calibration, agreement, points in boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

#: Metres at which the range bins end; the last one has no end.
RANGES = (15.0, 30.0, float("inf"))
#: Bins of confidence in the calibration error.
CONFIDENCES = 15


def confusion(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, "c c"]:
    """Rows are labels, columns predictions; labels below 0 do not count."""
    known = labels >= 0
    pairs = labels[known].astype(np.int64) * classes + predicted[known]
    counts: np.ndarray = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    return counts


def iou(matrix: Int[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """``TP / (TP + FP + FN)`` by class; NaN for a class that is neither there nor predicted."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hit
    shares: np.ndarray = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
    return shares


def miou(matrix: Int[np.ndarray, "c c"]) -> float:
    """Mean IoU over the classes whose union is above 0, as benchmarks count; NaN where no row is counted.

    A class that the labels lack and that is predicted all the same counts 0.
    """
    shares = iou(matrix)
    there = np.isfinite(shares)
    return float(shares[there].mean()) if there.any() else float("nan")


def miou_labelled(matrix: Int[np.ndarray, "c c"]) -> float:
    """Mean IoU over the classes that the labels hold alone, whatever else is predicted; NaN without labels."""
    there = matrix.sum(axis=1) > 0
    return float(iou(matrix)[there].mean()) if there.any() else float("nan")


def miou_interval(matrices: Sequence[Int[np.ndarray, "c c"]], *, resamples: int = 1000) -> list[float] | None:
    """95 % percentile bootstrap of `miou` over frames, of the confusion matrix of each; None for fewer than two.

    It says what other frames would have done to this model; nothing of other training seeds.
    """
    if len(matrices) < 2:
        return None
    n, stacked = len(matrices), np.stack(matrices).astype(np.int64)
    drawn = np.random.Generator(np.random.Philox(0)).multinomial(n, np.full(n, 1 / n), size=resamples)
    found = _mious(np.tensordot(drawn, stacked, axes=1))
    return [float(end) for end in np.nanpercentile(found, [2.5, 97.5])]


def _mious(matrices: Int[np.ndarray, "n c c"]) -> Float[np.ndarray, " n"]:
    """`miou` of each, to the bit: means are taken together of those that hold the same classes."""
    hit = np.diagonal(matrices, axis1=1, axis2=2).astype(np.float64)
    union = matrices.sum(axis=1) + matrices.sum(axis=2) - hit
    shares = np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)
    patterns, which = np.unique(np.isfinite(shares), axis=0, return_inverse=True)
    found = np.full(len(matrices), np.nan)
    for i, there in enumerate(patterns):
        if there.any():
            found[which == i] = np.ascontiguousarray(shares[which == i][:, there]).mean(axis=1)
    return found


def balanced_agreement(matrix: Int[np.ndarray, "c c"]) -> float:
    """Mean over the reference's classes of the share of their rows that is given the same class; NaN without rows."""
    total = matrix.sum(axis=1)
    there = total > 0
    return float((np.diag(matrix)[there] / total[there]).mean()) if there.any() else float("nan")


def majority_agreement(matrix: Int[np.ndarray, "c c"]) -> float:
    """`balanced_agreement` of whoever always answers the reference's commonest class: 1 / classes that are there."""
    there = int((matrix.sum(axis=1) > 0).sum())
    return 1 / there if there else float("nan")


class Tally:
    """Counts over a split, and the metrics that follow from them."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        n = len(self.classes)
        self.by_range = np.zeros((len(RANGES), n, n), dtype=np.int64)
        self.elsewhere = np.zeros((n, n), dtype=np.int64)
        self.bins = np.zeros((3, CONFIDENCES))

    def add(
        self, predicted: Int[np.ndarray, " n"], confidence: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"],
        distance: Float[np.ndarray, " n"],
    ) -> Int[np.ndarray, "c c"]:  # fmt: skip
        """Count rows; returns their own confusion matrix. A distance that is not finite falls into no bin."""
        here = np.zeros_like(self.elsewhere)
        bins = np.searchsorted(RANGES, distance, side="left")
        for i in range(len(RANGES)):
            chosen = np.isfinite(distance) & (bins == i)
            found = confusion(predicted[chosen], labels[chosen], len(self.classes))
            self.by_range[i] += found
            here += found
        rest = confusion(predicted[~np.isfinite(distance)], labels[~np.isfinite(distance)], len(self.classes))
        self.elsewhere += rest
        known = labels >= 0
        which = np.minimum((confidence[known] * CONFIDENCES).astype(np.int64), CONFIDENCES - 1)
        for row, values in enumerate((np.ones(known.sum()), confidence[known], predicted[known] == labels[known])):
            self.bins[row] += np.bincount(which, weights=values, minlength=CONFIDENCES)
        both: np.ndarray = here + rest
        return both

    @property
    def matrix(self) -> Int[np.ndarray, "c c"]:
        total: np.ndarray = self.by_range.sum(axis=0) + self.elsewhere
        return total

    def metrics(self) -> dict[str, Any]:
        """``miou``, ``miou_labelled``, ``accuracy``, ``ece``, ``iou`` by class, ``miou_by_range`` and ``rows``."""
        matrix = self.matrix
        total = max(int(matrix.sum()), 1)
        by_class = iou(matrix)
        there = np.isfinite(by_class)
        return {
            "miou": miou(matrix),
            "miou_labelled": miou_labelled(matrix),
            "accuracy": float(np.trace(matrix) / total),
            "ece": self._calibration_error(),
            "iou": {name: float(by_class[i]) for i, name in enumerate(self.classes) if there[i]},
            "miou_by_range": {
                name: miou(found) for name, found in zip(_range_names(), self.by_range, strict=True) if found.any()
            },
            "rows": int(matrix.sum()),
        }

    def _calibration_error(self) -> float:
        """Mean over rows of |accuracy - confidence| of the row's bin (Guo et al., 2017, eq. 5)."""
        count, confidence, correct = self.bins
        return float(np.abs(correct - confidence).sum() / max(count.sum(), 1))


class PointTally:
    """All labelled points of scans, as SemanticKITTI's own program counts them: no answer is a wrong one."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        #: Rows are labels, columns predictions, the last one none.
        self.counts = np.zeros((len(self.classes), len(self.classes) + 1), dtype=np.int64)

    def add(self, predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> None:
        """Count points; a prediction below 0 is none, labels below 0 do not count."""
        known, columns = labels >= 0, len(self.classes) + 1
        said = np.where(predicted >= 0, predicted, len(self.classes))
        pairs = labels[known].astype(np.int64) * columns + said[known]
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)

    def metrics(self) -> dict[str, Any]:
        """``miou_points``, ``miou_official``, ``iou_points`` by class and ``points``.

        ``miou_points`` is the mean over the classes whose union is above 0. ``miou_official`` is the mean over all of
        them, where one that is neither there nor predicted counts 0, as in semantic-kitti-api's ``iouEval``: the two
        differ on scans that lack a class.
        """
        hit = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(axis=1) + self.counts[:, :-1].sum(axis=0) - hit
        there = union > 0
        shares = np.divide(hit, union, out=np.zeros_like(hit), where=there)
        return {
            "miou_points": float(shares[there].mean()) if there.any() else float("nan"),
            "miou_official": float(shares.mean()),
            "iou_points": {name: float(shares[i]) for i, name in enumerate(self.classes) if there[i]},
            "points": int(self.counts.sum()),
        }


def _range_names() -> list[str]:
    starts = (0.0, *RANGES[:-1])
    return [f"{a:g}-{b:g} m" if np.isfinite(b) else f"{a:g}+ m" for a, b in zip(starts, RANGES, strict=True)]


def in_boxes(
    predicted: Bool[np.ndarray, " n"], inside: Bool[np.ndarray, " n"], counted: Bool[np.ndarray, " n"]
) -> Mapping[str, int]:
    """Hits, predictions and points in boxes among the counted points, to be summed over frames."""
    return {
        "hits": int((predicted & inside & counted).sum()),
        "predicted": int((predicted & counted).sum()),
        "inside": int((inside & counted).sum()),
    }
