"""Classifiers: their paths mean what they say, and an image has the same scores in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xmodal_kd.modalities.images.models import MODELS
from xmodal_kd.modalities.images.models.vit import places
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.signals.capture import capture

SMALL: list[tuple[str, dict[str, Any]]] = [
    ("cnn", {"width": 4}),
    ("cnn", {"width": 3, "depth": 3, "convolutions": 1}),
    ("resnet", {"width": 4, "depth": 2, "blocks": 1}),
]


def make(name: str, params: dict[str, Any]) -> Any:
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


TOKENS: list[tuple[str, dict[str, Any]]] = [
    ("vit", {"width": 8, "depth": 2, "heads": 2}),
    ("vit", {"width": 8, "depth": 1, "heads": 1, "patch": 4, "distilled": False}),
]


@pytest.mark.parametrize(("name", "params"), TOKENS)
def test_tokens_to_capture(name: str, params: dict[str, Any]) -> None:
    """The answer is the mean of both heads, the second one's of a token of its own."""
    model, x = make(name, params), torch.randn(2, 3, 8, 12)
    both = ["head", "distilled"] if params.get("distilled", True) else ["head"]
    with capture(model, ["blocks.*", "embedding", *both]) as taken:
        logits = model(x)
    patches = 8 * 12 // params.get("patch", 2) ** 2
    assert taken["blocks.0"][0].shape == (2, patches + len(both), 8)
    torch.testing.assert_close(torch.stack([taken[path][0] for path in both]).mean(dim=0), logits)
    torch.testing.assert_close(model.head(taken["embedding"][0]), taken["head"][0])
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


def test_images_are_whole_patches() -> None:
    with pytest.raises(UserError, match="9x8 are no whole patches of 2 pixels"):
        make(*TOKENS[0])(torch.randn(1, 3, 8, 9))
    with pytest.raises(ValueError, match="no multiple of 4 and of 3 heads"):
        make("vit", {"width": 8, "heads": 3})


def test_every_patch_has_its_place() -> None:
    told = places(16, 5, 7)
    assert told.shape == (35, 16) and torch.cdist(told, told).fill_diagonal_(1.0).min() > 1e-3


@pytest.mark.parametrize(("name", "params"), [*SMALL, *TOKENS])
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
    assert round(parameters("vit", 1), -3) == 202_000
