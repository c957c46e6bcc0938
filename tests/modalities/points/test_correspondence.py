from __future__ import annotations

import numpy as np
import pytest
import torch

from xmodal_kd.modalities.points.views.correspondence import (
    Correspondence,
    collate,
    collate_row_maps,
    from_elements,
    spread,
)

SEEDS = range(6)


def matrix(found):
    """``(targets, sources)`` dense weights."""
    dense = torch.zeros(sum(found.targets), sum(found.sources), dtype=torch.float64)
    for i, j, w in zip(found.target.tolist(), found.source.tolist(), found.weight.tolist(), strict=True):
        dense[i, j] += w
    return dense


def means(dense, rows):
    total = dense.sum(1, keepdim=True)
    return torch.where(total > 0, dense @ rows.double() / total.clamp_min(1e-12), 0), total[:, 0] > 0


def some(seed, points=40, sources=12, targets=9):
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.5, 2, points) * (rng.random(points) > 0.2)
    return from_elements(rng.integers(-1, sources, points), rng.integers(-1, targets, points), sources, targets, weight)


def some_batch(seed):
    empty = from_elements(np.full(5, -1), np.arange(5), 3, 5)
    return collate(
        [some(seed), empty, some(seed + 100, sources=5), from_elements(np.zeros(0, int), np.zeros(0, int), 0, 2)]
    )


def some_map(seed, sizes, new_sizes):
    """A map of each item's rows to its new ones: some gone, several to one."""
    rng = np.random.default_rng(seed)
    maps = [torch.from_numpy(rng.integers(-1, new, old)) for old, new in zip(sizes, new_sizes, strict=True)]
    return collate_row_maps(maps, new_sizes)


def as_matrix(row_map, new):
    dense = torch.zeros(new, len(row_map), dtype=torch.float64)
    for old, row in enumerate(row_map.tolist()):
        if row >= 0:
            dense[row, old] = 1
    return dense


def rows_for(found, seed, side="sources"):
    return torch.randn(sum(getattr(found, side)), 4, generator=torch.Generator().manual_seed(seed))


def test_pairs_are_the_points_that_both_sides_show():
    found = from_elements(np.array([0, 0, 2, -1, 1]), np.array([3, 3, 1, 0, -1]), 3, 4)
    assert found.source.tolist() == [0, 0, 2] and found.target.tolist() == [3, 3, 1]
    assert found.weight.tolist() == [1, 1, 1] and found.item.tolist() == [0, 0, 0]
    assert found.source.dtype == found.target.dtype == found.item.dtype == torch.int64
    assert found.weight.dtype == torch.float32
    assert (found.sources, found.targets, found.items, len(found)) == ((3,), (4,), 1, 3)
    assert found.reached.tolist() == [False, True, False, True]


def test_a_point_may_have_several_pixels():
    pixels = np.array([[0, 5], [-1, 4], [-1, -1], [3, -1]])
    found = from_elements(np.array([0, 1, 2, 3]), pixels, 4, 6, np.array([1.0, 2, 3, 4]))
    pairs = sorted(zip(found.source.tolist(), found.target.tolist(), found.weight.tolist(), strict=True))
    assert pairs == [(0, 0, 1), (0, 5, 1), (1, 4, 2), (3, 3, 4)]
    rows = torch.arange(6.0)[:, None]
    mean, mask = found.flipped().gather(rows)  # a point is the mean of its pixels
    assert mean[:, 0].tolist() == [2.5, 4, 0, 3] and mask.tolist() == [True, True, False, True]


def test_views_of_some_points_are_spread_over_all():
    mask = np.array([True, False, True, True, False])
    assert spread(np.array([4, -1, 2]), mask, 5).tolist() == [4, -1, -1, 2, -1]
    assert spread(np.arange(2), np.array([3, 1]), 5).tolist() == [-1, 1, -1, 0, -1]
    assert spread(np.array([[1, -1]]), np.array([2]), 3).tolist() == [[-1, -1], [-1, -1], [1, -1]]
    sample, whole = spread(np.arange(3), np.flatnonzero(mask), 5), np.arange(5)
    assert from_elements(sample, whole, 3, 5).target.tolist() == [0, 2, 3]


def test_several_points_in_a_pixel_give_their_weighted_mean():
    found = from_elements(np.array([0, 1, 2]), np.array([1, 1, 0]), 3, 3, np.array([1.0, 3, 0]))
    mean, mask = found.gather(torch.tensor([[2.0], [6.0], [9.0]]))
    assert mean.tolist() == [[0], [5], [0]] and mask.tolist() == [False, True, False]


@pytest.mark.parametrize("seed", SEEDS)
def test_gathering_is_a_product_with_the_normalised_matrix(seed):
    found = some_batch(seed)
    rows = rows_for(found, seed)
    mean, mask = found.gather(rows)
    expected, there = means(matrix(found), rows)
    torch.testing.assert_close(mean.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(mask, there)


@pytest.mark.parametrize("seed", SEEDS)
def test_gathering_is_differentiable(seed):
    found = some(seed)
    rows = rows_for(found, seed).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: found.gather(x)[0], rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_summed_in_single(dtype):
    found = from_elements(np.arange(3000), np.zeros(3000, int), 3000, 1)
    mean, _ = found.gather(torch.full((3000, 1), 0.75, dtype=dtype))
    assert mean.dtype == dtype and mean.item() == 0.75


@pytest.mark.parametrize("seed", SEEDS)
def test_moving_rows_is_a_product_on_either_side(seed):
    found = some_batch(seed)
    new_sources, new_targets = (7, 4, 6, 2), (9, 5, 3, 1)
    source, target = some_map(seed, found.sources, new_sources), some_map(seed + 1, found.targets, new_targets)
    moved = found.remap(source, target, sources=new_sources, targets=new_targets)
    dense = as_matrix(target, sum(new_targets)) @ matrix(found) @ as_matrix(source, sum(new_sources)).T
    torch.testing.assert_close(matrix(moved), dense)
    assert (moved.sources, moved.targets) == (new_sources, new_targets)
    one_by_one = found.remap(source=source, sources=new_sources).remap(target=target, targets=new_targets)
    assert torch.equal(matrix(one_by_one), matrix(moved))
    assert torch.equal(matrix(found.remap()), matrix(found))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_batch_is_its_items_and_moves_as_they_do(seed):
    parts = [some(seed), some(seed + 10, points=0), some(seed + 20, sources=20)]
    maps = [some_map(seed + i, part.sources, (8,)) for i, part in enumerate(parts)]
    batch = collate(parts)
    assert batch.items == 3 and batch.sources == (12, 12, 20) and batch.targets == (9, 9, 9)
    assert batch.item.tolist() == [i for i, part in enumerate(parts) for _ in range(len(part))]
    torch.testing.assert_close(matrix(batch), torch.block_diag(*map(matrix, parts)))
    together = batch.remap(source=collate_row_maps(maps, [8, 8, 8]), sources=(8, 8, 8))
    alone = collate([p.remap(source=m, sources=(8,)) for p, m in zip(parts, maps, strict=True)])
    assert torch.equal(matrix(together), matrix(alone)) and torch.equal(together.item, alone.item)
    nested = collate([collate(parts[:2]), parts[2]])
    assert torch.equal(matrix(nested), matrix(batch)) and torch.equal(nested.item, batch.item)


@pytest.mark.parametrize("seed", SEEDS)
def test_flipping_transposes(seed):
    found = some_batch(seed)
    assert torch.equal(matrix(found.flipped()), matrix(found).T)
    assert found.flipped().sources == found.targets
    assert torch.equal(matrix(found.flipped().flipped()), matrix(found))


@pytest.mark.parametrize("seed", SEEDS)
def test_one_after_the_other_is_gathering_twice(seed):
    first, second = some(seed, points=60), some(seed + 1, sources=9, targets=5)
    both = first.then(second)
    rows = rows_for(first, seed)
    middle, there = first.gather(rows)
    reaching = second.remap(source=torch.where(there, torch.arange(9), -1))  # middles that nothing reaches do not count
    expected, mask = reaching.gather(middle)
    mean, reached = both.gather(rows)
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(reached, mask)
    assert (both.sources, both.targets) == (first.sources, second.targets)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_after_the_other_works_in_batches(seed):
    firsts = [some(seed, points=60), some(seed, points=0), some(seed + 1)]
    seconds = [some(seed + 2, sources=9, targets=5), some(seed + 3, sources=9, targets=4), some(seed + 4, 0, 9, 2)]
    together = collate(firsts).then(collate(seconds))
    alone = collate([a.then(b) for a, b in zip(firsts, seconds, strict=True)])
    torch.testing.assert_close(matrix(together), matrix(alone))
    assert torch.equal(together.item.sort().values, alone.item)


def test_one_after_the_other_must_meet():
    with pytest.raises(ValueError, match="ends in rows"):
        some(0).then(some(0))


@pytest.mark.parametrize("seed", SEEDS)
def test_points_matched_over_a_third_view_are_matched_at_least_as_well(seed):
    rng = np.random.default_rng(seed)
    left, right, points = rng.integers(-1, 6, 30), rng.integers(-1, 5, 30), np.arange(30)
    over_points = from_elements(left, points, 6, 30).then(from_elements(points, right, 30, 5))
    # a point has one source, so a mean of means is the mean
    torch.testing.assert_close(matrix(over_points), matrix(from_elements(left, right, 6, 5)))


@pytest.mark.parametrize("batch", [False, True])
def test_an_empty_match_leaves_the_graph_whole(batch):
    empty = from_elements(np.full(4, -1), np.zeros(4, int), 3, 2)
    found = collate([empty, empty]) if batch else empty
    rows = rows_for(found, 0).requires_grad_()
    mean, mask = found.gather(rows)
    assert not mask.any() and not mean.any() and len(mean) == sum(found.targets)
    mean.sum().backward()
    assert rows.grad is not None and not rows.grad.any()
    assert len(found.flipped().remap(source=torch.full((sum(found.targets),), -1))) == 0
    assert len(found.then(found.flipped())) == 0


def test_an_empty_item_takes_nothing_from_its_neighbours():
    full = from_elements(np.arange(2), np.arange(2), 2, 2)
    found = collate([full, from_elements(np.full(2, -1), np.arange(2), 2, 2), full])
    rows = torch.arange(6.0)[:, None].requires_grad_()
    mean, mask = found.gather(rows)
    assert mean[:, 0].tolist() == [0, 1, 0, 0, 4, 5] and mask.tolist() == [True, True, False, False, True, True]
    mean.sum().backward()
    assert rows.grad[:, 0].tolist() == [1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.array([0, 3]), np.array([0, 0]), 3, 1), "source elements 0 to 3"),
        ((np.array([0, 1]), np.array([-2, 0]), 3, 1), "target elements -2 to 0"),
        ((np.array([0]), np.array([0, 0]), 3, 1), "1 points of the source, 2"),
        ((np.array([0]), np.array([0]), 3, 1, np.array([-1.0])), "a weight is"),
        ((np.array([0]), np.array([0]), 3, 1, np.array([np.nan])), "a weight is"),
    ],
)
def test_elements_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_elements(*arguments)


def test_maps_that_cannot_be_are_refused():
    found = collate([from_elements(np.arange(2), np.arange(2), 2, 2)] * 2)
    with pytest.raises(ValueError, match="a map of 3 rows for 4 source rows"):
        found.remap(source=torch.arange(3))
    with pytest.raises(ValueError, match="say targets"):
        found.remap(target=torch.arange(4) + 1)
    with pytest.raises(ValueError, match="a source map moves rows into another item"):
        found.remap(source=torch.tensor([2, 3, 0, 1]))
    with pytest.raises(ValueError, match="at least one item"):
        collate([])
    with pytest.raises(ValueError, match="3 rows for a correspondence of 4 sources"):
        found.gather(torch.zeros(3, 1))


def test_it_moves_to_a_device():
    found = some_batch(0).to("meta")
    assert isinstance(found, Correspondence) and found.source.device.type == found.weight.device.type == "meta"
