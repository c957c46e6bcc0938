"""Classifiers: their paths mean what they say, and an image has the same scores in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xmodal_kd.modalities.images.models import MODELS, Classifier
from xmodal_kd.signals.capture import capture

SMALL: list[tuple[str, dict[str, Any]]] = [
    ("cnn", {"width": 4}),
    ("cnn", {"width": 3, "depth": 3, "convolutions": 1}),
    ("resnet", {"width": 4, "depth": 2, "blocks": 1}),
]


def make(name: str, params: dict[str, Any]) -> Classifier:
    torch.manual_seed(0)
    kind = MODELS[name]
    return kind(kind.Config(**params), channels=3, classes=5)


@pytest.mark.parametrize(("name", "params"), SMALL)
def test_paths_to_capture(name: str, params: dict[str, Any]) -> None:
    """Logits are the head of the embedding, and the mean of the cells; stages halve the size, up where it is odd."""
    model, x = make(name, params), torch.randn(2, 3, 9, 8)
    with capture(model, ["stages.*", "embedding", "cells"]) as taken:
        logits = model(x)
    [embedding], [cells] = taken["embedding"], taken["cells"]
    last = taken[f"stages.{len(model.stages) - 1}"][0]
    assert taken["stages.0"][0].shape == (2, params["width"], 9, 8) and taken["stages.1"][0].shape[2:] == (5, 4)
    torch.testing.assert_close(embedding, last.mean(dim=(2, 3)))
    torch.testing.assert_close(model.head(embedding), logits)
    assert cells.shape == (2, 5, *last.shape[2:])
    torch.testing.assert_close(cells[1, :, 0, 1], model.head(last[1, :, 0, 1]))


@pytest.mark.parametrize(("name", "params"), SMALL)
def test_no_batch_statistics(name: str, params: dict[str, Any]) -> None:
    model, x = make(name, params).train(), torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_sizes_that_the_docstrings_name() -> None:
    def parameters(name: str, channels: int) -> int:
        kind = MODELS[name]
        model = kind(kind.Config(), channels=channels, classes=10)
        return sum(p.numel() for p in model.parameters())

    assert round(parameters("cnn", 1), -3) == 17_000 and round(parameters("resnet", 3), -3) == 175_000
