"""Attention over batches and ragged rows, against the sum written out; and when another operator is trusted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_small import HEADS, WIDTH, agree, by_hand, item_by_item, ragged, rows
from torch import Tensor

from xmodal_kd.models import attention as module
from xmodal_kd.models.attention import attention


@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_batch_is_its_items(scale: float | None) -> None:
    q, k, v = rows(3, 5, HEADS, WIDTH, seed=1), rows(3, 7, HEADS, WIDTH, seed=2), rows(3, 7, HEADS, 4, seed=3)

    def expected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.stack([by_hand(*item, scale=scale) for item in zip(q, k, v, strict=True)])

    agree(lambda q, k, v: attention(q, k, v, scale=scale), expected, q, k, v)


@pytest.mark.parametrize("shape", [(1, 1, 5, 7), (3, 1, 1, 7), (3, HEADS, 5, 7), (1, HEADS, 1, 7)])
def test_masks_of_every_shape(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(4)) < 0.6
    q, k, v = rows(3, 5, HEADS, WIDTH, seed=1), rows(3, 7, HEADS, WIDTH, seed=2), rows(3, 7, HEADS, 4, seed=3)
    each = mask.expand(3, HEADS, 5, 7)

    def expected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.stack([by_hand(*item) for item in zip(q, k, v, each, strict=True)])

    agree(lambda q, k, v: attention(q, k, v, mask=mask), expected, q, k, v)


def test_a_query_that_sees_nothing_gets_zeros_and_gives_no_gradient() -> None:
    q, k, v = (rows(2, 3, HEADS, WIDTH, seed=i) for i in range(3))
    mask = torch.tensor([[True, True, False], [False, False, False]])[:, None, None]
    out = attention(q, k, v, mask=mask)
    assert out[1].abs().max() == 0 < out[0].abs().min()
    out.square().sum().backward()
    for x in (q, k, v):
        assert torch.isfinite(x.grad).all() and x.grad[1].abs().max() == 0
    assert k.grad[0, 2].abs().max() == 0


@pytest.mark.parametrize(
    ("own", "seen"),
    [
        ([4, 4, 4], [4, 4, 4]),
        ([3, 5, 1, 5, 3], [3, 5, 1, 5, 3]),
        ([3, 5, 2], [1, 4, 6]),
        ([3, 0, 2, 0], [3, 0, 2, 0]),
        ([3, 2, 0], [4, 0, 5]),
        ([2], [7]),
        (list(range(1, 25)), list(range(24, 0, -1))),
        ([0, *range(1, 25)], [3, *range(24, 1, -1), 0]),
    ],
    ids=["equal", "some", "pairs", "empty items", "no keys", "one item", "many", "many and no keys"],
)
@pytest.mark.parametrize("most", [16, 0], ids=["grouped", "padded"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_ragged_rows_are_their_items(
    own: list[int], seen: list[int], as_tensor: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.MOST_GROUPS, "cpu", most)
    lengths = (torch.tensor(own), torch.tensor(seen)) if as_tensor else (own, seen)
    agree(
        lambda q, k, v: attention(q, k, v, lengths=lengths),
        lambda q, k, v: item_by_item(q, k, v, own, seen),
        *ragged(own, seen, value=4),
    )


def test_one_list_of_lengths_serves_queries_and_keys() -> None:
    q, k, v = ragged([3, 5], [3, 5])
    assert torch.equal(attention(q, k, v, lengths=[3, 5]), attention(q, k, v, lengths=([3, 5], [3, 5])))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_nothing_at_all_keeps_its_graph(lengths: list[int]) -> None:
    q, k, v = ragged([0], [0])
    out = attention(q, k, v, lengths=lengths)
    assert out.shape == (0, HEADS, WIDTH) and out.requires_grad
    out.sum().backward()
    assert q.grad.shape == q.shape


@pytest.mark.parametrize("own", [[4, 4], [3, 5], list(range(1, 25))], ids=["equal", "grouped", "padded"])
def test_dropout_keeps_the_mean_and_draws_from_the_global_generator(
    own: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.MOST_GROUPS, "cpu", 16)
    q, k, v = (x.detach() for x in ragged(own, own))
    torch.manual_seed(0)
    first = attention(q, k, v, lengths=own, dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(first, attention(q, k, v, lengths=own, dropout=0.5))
    mean = torch.stack([attention(q, k, v, lengths=own, dropout=0.2) for _ in range(400)]).mean(0)
    assert (mean - attention(q, k, v, lengths=own)).abs().mean() < 0.05 < (first - mean).abs().mean()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lengths": [3, 3]}, "8 queries, but 2 lengths that sum to 6"),
        ({"lengths": ([3, 5], [2, 5])}, "8 keys, but 2 lengths that sum to 7"),
        ({"lengths": ([3, 5], [8])}, "2 items of queries, but of 1 of keys"),
        ({"lengths": [-1, 9]}, "lengths"),
        ({"lengths": [3, 5], "mask": torch.ones(1, dtype=torch.bool)}, "not both"),
        ({}, "or give lengths"),
    ],
)
def test_what_does_not_fit_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(*ragged([3, 5], [3, 5]), **kwargs)


def test_a_batch_with_lengths_is_refused() -> None:
    q = rows(2, 4, HEADS, WIDTH, seed=1)
    with pytest.raises(ValueError, match=r"takes \(total, heads, width\)"):
        attention(q, q, q, lengths=[4, 4])
