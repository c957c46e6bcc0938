"""Oracles against what the papers' own releases say of the same rows, run once in float64 and written down here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles.losses import ORACLES
from oracles.maths import Array

#: Five rows of seven logits, that any machine makes the same; student, teacher, labels.
_COUNT = np.arange(35, dtype=np.float64).reshape(5, 7)
STUDENT: Array = 3 * np.sin(1 + 1.7 * _COUNT)
TEACHER: Array = 4 * np.sin(2 + 2.3 * _COUNT)
LABELS = np.array([0, 3, 6, 3, 1])

#: (oracle, hyper-parameters, mean over the rows), of the repository and commit above it.
RELEASED: list[tuple[str, dict[str, Any], float]] = [
    # github.com/gizi1/NormKD, 279371b
    ("kd", {"per_sample": True, "temperature": 1.0}, 4.875085724379311),
    ("kd", {"per_sample": True, "temperature": 2.0}, 6.595053598640829),
]


@pytest.mark.parametrize(("name", "params", "expected"), RELEASED)
def test_oracle_says_what_the_release_says(name: str, params: dict[str, Any], expected: float) -> None:
    assert np.mean(ORACLES[name](STUDENT, TEACHER, **params)) == pytest.approx(expected, rel=1e-12)
