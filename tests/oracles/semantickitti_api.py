"""SemanticKITTI's rules of evaluation (the data set's page and semantic-kitti-api, ``evaluate_semantics.py``), by sets.

Written from the rules before the metric that is held against it, point by point and set by set:

- a label file has a uint32 a point, whose lower 16 bits are the id; ids of labels and of predictions alike are mapped
  by ``learning_map``, unknown ones to 0;
- points whose label is of an ignored class (0) do not count; a prediction of 0 on another point is a miss of its class;
- the IoU of a class is TP / (TP + FP + FN) over all points of all scans; the mean is over all classes that are not
  ignored, and one with nothing in its union has IoU 0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path


def ids_of(path: Path) -> list[int]:
    content = path.read_bytes()
    return [value & 0xFFFF for (value,) in struct.iter_unpack("<I", content)]


def scores(
    pairs: Iterable[tuple[Path, Path]], learning_map: Mapping[int, int], classes: int
) -> tuple[float, dict[int, float]]:
    """Mean IoU and the IoU of each class, 1 to `classes`, of files of labels and of predictions."""
    true: dict[int, set[tuple[int, int]]] = {c: set() for c in range(1, classes + 1)}
    said: dict[int, set[tuple[int, int]]] = {c: set() for c in range(1, classes + 1)}
    for scan, (labels, predictions) in enumerate(pairs):
        wanted, given = ids_of(labels), ids_of(predictions)
        assert len(wanted) == len(given), "one answer a point"
        for point, (label, prediction) in enumerate(zip(wanted, given, strict=True)):
            of, as_ = learning_map.get(label, 0), learning_map.get(prediction, 0)
            if of == 0:
                continue
            true[of].add((scan, point))
            if as_:
                said[as_].add((scan, point))
    shares = {
        c: Fraction(len(true[c] & said[c]), len(true[c] | said[c])) if true[c] | said[c] else Fraction(0) for c in true
    }
    return float(sum(shares.values()) / classes), {c: float(share) for c, share in shares.items()}
