"""Transformer and pyramid losses against plain torch on dense batches, and what padding must not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from xmodal_kd.losses import LOSSES
from xmodal_kd.losses.pyramids import Level
from xmodal_kd.losses.transformers import _score_gap
from xmodal_kd.signals.signals import Layout

B, L, HEADS = 3, 5, 2


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """(b, heads, L, L) attention of dense (b, L, heads * d), by a mask-free softmax."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    return (teacher * (teacher.log() - student.log())).sum(-1).mean((1, 2))


ITEM = torch.arange(B).repeat_interleave(L)


@pytest.mark.parametrize("name", ["minilm", "minilmv2"])
def test_relations_of_dense_items_are_plain_attention(name: str) -> None:
    student, teacher = ([randn(B, L, w, seed=s + i) for i in range(3)] for w, s in ((4, 0), (8, 5)))
    pairs = {"minilm": ((0, 1), (2, 2)), "minilmv2": ((0, 0), (1, 1), (2, 2))}[name]
    expected = sum(
        divergence(attention(teacher[i], teacher[j], HEADS), attention(student[i], student[j], HEADS)) for i, j in pairs
    )
    rows = ([x.flatten(0, 1) for x in side] for side in (student, teacher))
    values, counted = LOSSES[name].fn(*rows, [ITEM] * 3, B, heads=HEADS)
    torch.testing.assert_close(values, expected)
    assert counted.all()


def test_items_of_other_lengths_change_nothing() -> None:
    """An item alone, beside longer ones, beside one without tokens, and with its rows anywhere in the batch."""
    student, teacher = ([randn(9, 4, seed=s + i) for i in range(3)] for s in (0, 5))
    item = torch.tensor([3, 0, 0, 3, 0, 2, 3, 3, 3])
    values, counted = LOSSES["minilm"].fn(student, teacher, [item] * 3, 4, heads=HEADS)
    assert counted.tolist() == [True, False, True, True] and values[1] == 0
    for i in (0, 2, 3):
        sides = ([x[item == i] for x in side] for side in (student, teacher))
        alone, _ = LOSSES["minilm"].fn(
            *sides, [torch.zeros(int((item == i).sum()), dtype=torch.int64)] * 3, 1, heads=HEADS
        )
        torch.testing.assert_close(values[i], alone[0])
    assert values[2] == 0, "one token has nothing to look at but itself"


@pytest.mark.parametrize("length", [3, 40])
def test_score_gap_is_that_of_the_scores(length: int) -> None:
    """By the scores themselves for short items, and by products of channels for long ones."""
    q_s, k_s = (randn(2, HEADS, length, 4, seed=s) for s in (0, 1))
    q_t, k_t = (randn(2, HEADS, length, 6, seed=s) for s in (2, 3))
    gap = q_s @ k_s.transpose(-1, -2) / 2 - q_t @ k_t.transpose(-1, -2) / 6**0.5
    torch.testing.assert_close(_score_gap(q_s, k_s, q_t, k_t), gap.square().sum((-1, -2)).mean(1))


def test_tinybert_shares_one_map_over_layers() -> None:
    """Two student layers and four of the teacher: hidden states 2 and 4, one projector, means as in the paper."""
    torch.manual_seed(0)
    loss: Any = LOSSES["tinybert"].make([4] * 7, [6] * 13, heads=HEADS).double()
    assert {name for name, _ in loss.named_parameters()} == {
        f"{a}.{b}" for a in ("embed", "hidden") for b in ("weight", "bias")
    }
    student, teacher = ([randn(B, L, w, seed=s + i) for i in range(n)] for w, s, n in ((4, 0, 7), (6, 50, 13)))

    def scores(q: Tensor, k: Tensor) -> Tensor:
        q, k = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k))
        return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5

    expected = (loss.embed(student[0]) - teacher[0]).square().mean((1, 2))
    for m, n in ((1, 2), (2, 4)):
        expected = expected + (loss.hidden(student[m]) - teacher[n]).square().mean((1, 2))
        gap = scores(student[2 + m], student[4 + m]) - scores(teacher[4 + n], teacher[8 + n])
        expected = expected + gap.square().mean((1, 2, 3))
    rows = ([x.flatten(0, 1) for x in side] for side in (student, teacher))
    values, _ = loss(*rows, [ITEM] * 7, B)
    torch.testing.assert_close(values, expected)


def test_refusals_say_what_is_wrong() -> None:
    rows = [randn(5, 6, seed=i) for i in range(6)]
    item = [torch.zeros(5, dtype=torch.int64)] * 6
    with pytest.raises(ValueError, match="not the same tokens in 4 heads"):
        LOSSES["minilm"].fn(rows[:3], rows[:3], item, 1, heads=4)
    with pytest.raises(ValueError, match="queries, keys, values"):
        LOSSES["minilm"].fn(rows[:2], rows[:3], item, 1, heads=2)
    with pytest.raises(ValueError, match="5 signals are not hidden states, queries and keys of as many layers"):
        LOSSES["mobilebert"].fn(rows[:5], rows[:6], item, 1, heads=2)
    with pytest.raises(ValueError, match="whose widths differ"):
        LOSSES["tinybert"].make([4] * 7, [6, 6, 8, 6, 6, 6, 6])
    with pytest.raises(ValueError, match="2 layers cannot be mapped onto a teacher of 1"):
        LOSSES["pkd"].fn(rows[:2], rows[:1])


def level(grid: tuple[int, ...], items: int = 2) -> Level:
    layout = Layout.dense("pixel", items, grid)
    return Level.of(layout.item, items, torch.arange(len(layout)), grid)


def maps(rows: Tensor, grid: tuple[int, ...], items: int = 2) -> Tensor:
    return rows.reshape(items, *grid, -1).movedim(-1, 1)


@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("grid", [(7,), (2,), (5, 6), (3, 2, 5)], ids=str)
def test_pooling_of_full_grids_is_torchs(grid: tuple[int, ...], side: int) -> None:
    at = level(grid)
    rows = randn(len(at.item), 3)
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(grid)]
    expected = pool(maps(rows, grid), (side,) * len(grid)).flatten(2).transpose(1, 2)  # type: ignore[arg-type]
    got, held = at.pooled(rows, side)
    torch.testing.assert_close(got, expected)
    assert held.all()


@pytest.mark.parametrize(
    ("deep", "shallow"), [((3,), (7,)), ((2, 3), (5, 6)), ((1, 1), (3, 4)), ((4, 4), (2, 2))], ids=str
)
def test_nearest_cells_of_full_grids_are_torchs(deep: tuple[int, ...], shallow: tuple[int, ...]) -> None:
    rows = randn(len(level(deep).item), 3)
    expected = F.interpolate(maps(rows, deep), shallow, mode="nearest").movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(level(deep).nearest(rows, level(shallow)), expected)


def test_a_pooled_embedding_is_a_map_of_one_cell() -> None:
    layout = Layout.samples(2)
    top = Level.of(layout.item, 2, torch.arange(2), None)
    rows = randn(2, 3)
    torch.testing.assert_close(top.nearest(rows, level((2, 2))), rows.repeat_interleave(4, 0))
    with pytest.raises(ValueError, match="differ in axes"):
        level((3,)).nearest(randn(6, 3), level((2, 2)))
    with pytest.raises(ValueError, match="form no grid"):
        Level.of(torch.tensor([0, 0]), 1, torch.arange(2), None)


@pytest.mark.parametrize("more", [0, 3])
def test_wider_padding_moves_no_border(more: int) -> None:
    """Items of 5 and 3 frames in a grid of 5 or 8: pools and nearest cells are those of the items alone."""
    lengths, steps = torch.tensor([5, 3]), 5 + more
    layout = Layout.padded("frame", lengths, steps)
    cell = layout.mask.nonzero().squeeze(1)
    at = Level.of(layout.item[cell], 2, cell, (steps,))
    rows = randn(8, 3)
    for i, own in enumerate((rows[:5], rows[5:])):
        expected = F.adaptive_avg_pool1d(own.T[None], 2)[0].T
        torch.testing.assert_close(at.pooled(rows, 2)[0][i], expected)


def test_reviewkd_on_a_pyramid_of_images_with_its_embedding() -> None:
    """Three levels of different grids and widths; every parameter but the deepest level's gates gets a gradient."""
    grids = [(8, 8), (4, 4)]
    layouts = [Layout.dense("pixel", 2, grid) for grid in grids] + [Layout.samples(2)]
    widths_s, widths_t = [3, 4, 5], [6, 7, 8]
    torch.manual_seed(0)
    loss: Any = LOSSES["reviewkd"].make(widths_s, widths_t, [2, 2, 0], mid=4).double()
    student, teacher = (
        [randn(len(layout), w, seed=s + w) for layout, w in zip(layouts, widths, strict=True)]
        for s, widths in ((0, widths_s), (9, widths_t))
    )
    cells = [torch.arange(len(layout)) for layout in layouts]
    values, counted = loss(student, teacher, [x.item for x in layouts], 2, cells, [*grids, None])
    assert values.shape == (2,) and counted.all()
    values.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loss.parameters())
