"""Accuracy, its interval, likelihood and calibration, by hand."""

from __future__ import annotations

from math import log, sqrt

import pytest
import torch

from xmodal_kd.modalities.images.evaluate.metrics import calibration_error, metrics, wilson


@pytest.mark.parametrize(("right", "total"), [(0, 5), (3, 10), (99, 100), (20, 20)])
def test_wilson_solves_its_equation(right: int, total: int) -> None:
    """The ends are the shares p whose distance from what was seen is z deviations of p itself."""
    low, high = wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert abs(right / total - end) == pytest.approx(1.959964 * sqrt(end * (1 - end) / total), rel=1e-5)


def test_calibration_by_hand() -> None:
    """Two of confidence 0.9, one right: |1/2 - 0.9|; two of 0.62 (another bin), both right: 0.38."""
    confidence = torch.tensor([0.9, 0.9, 0.62, 0.62], dtype=torch.float64)
    right = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    assert calibration_error(confidence, right) == pytest.approx((2 * 0.4 + 2 * 0.38) / 4)
    assert calibration_error(torch.ones(3), torch.ones(3)) == 0


def test_metrics_of_three_images() -> None:
    logits = torch.tensor([[0.0, log(3)], [0.0, log(3)], [log(3), 0.0]])
    found = metrics(logits, torch.tensor([1, 0, 0]), ("a", "b"))
    assert found["accuracy"] == pytest.approx(2 / 3) and found["images"] == 3
    assert found["nll"] == pytest.approx(-(2 * log(0.75) + log(0.25)) / 3)
    assert found["ece"] == pytest.approx(0.75 - 2 / 3)
    assert found["accuracy_by_class"] == {"a": 0.5, "b": 1.0}
    assert found["accuracy_interval"] == list(wilson(2, 3))
