"""Attention by hand, and small ragged rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HEADS, WIDTH = 2, 8


def rows(*shape: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=random).requires_grad_()


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """One item, ``(n, h, d)`` and ``(m, h, d)``: the formula."""
    scores = torch.einsum("nhd,mhd->hnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1).nan_to_num(0.0)
    return torch.einsum("hnm,mhe->nhe", weights, v)


def item_by_item(q: Tensor, k: Tensor, v: Tensor, own: list[int], seen: list[int], **kwargs: Any) -> Tensor:
    parts = zip(q.split(own), k.split(seen), v.split(seen), strict=True)
    return torch.cat([by_hand(*part, **kwargs) for part in parts])


def agree(run: Callable[..., Tensor], expected: Callable[..., Tensor], *leaves: Tensor) -> None:
    """Results and gradients of both."""
    found, wanted = run(*leaves), expected(*leaves)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(9))
    for a, b in zip(
        torch.autograd.grad(found, leaves, weight), torch.autograd.grad(wanted, leaves, weight), strict=True
    ):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b)


def ragged(own: list[int], seen: list[int], value: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    return (
        rows(sum(own), HEADS, WIDTH, seed=1), rows(sum(seen), HEADS, WIDTH, seed=2),
        rows(sum(seen), HEADS, value, seed=3),
    )  # fmt: skip
