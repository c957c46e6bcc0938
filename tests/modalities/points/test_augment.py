"""Augment and then match equals match and then augment, for every augmentation and on either side."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from xmodal_kd.modalities.points.data.augment_config import READ, Augment
from xmodal_kd.modalities.points.data.frame import UNLABELLED, Scan
from xmodal_kd.modalities.points.views import augment as A
from xmodal_kd.modalities.points.views.augment import apply_image, apply_points, apply_range
from xmodal_kd.modalities.points.views.correspondence import collate, collate_row_maps, from_elements
from xmodal_kd.modalities.points.views.range_image import azimuths, column_of, range_image

ROWS, COLUMNS = 4, 16
SEEDS = range(5)


def sweep(seed, points=150):
    """A scan whose points keep away from the borders between columns, so that rounding moves none over one."""
    rng = np.random.default_rng(seed)
    azimuth = azimuths(COLUMNS)[rng.integers(0, COLUMNS, points)] + rng.uniform(-0.4, 0.4, points) * 2 * np.pi / COLUMNS
    flat, z = rng.uniform(2, 30, points), rng.uniform(-2, 1, points)
    xyz = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), z], axis=1).astype(np.float32)
    return Scan(xyz, np.zeros(points, np.float32), ring=rng.integers(0, ROWS, points), beams=ROWS)


def view(scan):
    return range_image(scan, ROWS, COLUMNS, max_range=50.0, tolerance=5.0)


def shown(scan):
    return torch.from_numpy(view(scan).channels)


def turned(scan, angle, side=1.0, scale=1.0):
    cos, sin = math.cos(angle), math.sin(angle)
    x, y, z = (scan.xyz.astype(np.float64) * [1, side, 1]).T
    xyz = scale * np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1)
    return replace(scan, xyz=xyz.astype(np.float32))


def labels_of(*shape):
    return torch.arange(math.prod(shape)).reshape(shape)


def random_picture(seed, height=6, width=9):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


# Geometry of range images


@pytest.mark.parametrize("columns", [0, 1, 5, 15, 16, -3])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_rolled_image_is_the_image_of_the_turned_scan(seed, columns):
    scan = sweep(seed)
    rolled = A.roll(shown(scan), columns)
    other = view(turned(scan, -2 * math.pi * columns / COLUMNS))
    np.testing.assert_allclose(rolled.inputs.numpy(), other.channels, atol=2e-6)
    cell = view(scan).cell
    np.testing.assert_array_equal(np.where(cell >= 0, rolled.row_map.numpy()[cell], -1), other.cell)


@pytest.mark.parametrize("columns", range(-COLUMNS, COLUMNS, 3))
def test_after_a_roll_azimuth_is_still_the_columns(columns):
    middle = np.tile(azimuths(COLUMNS), ROWS)
    xyz = np.stack([10 * np.cos(middle), 10 * np.sin(middle), 0 * middle], axis=1).astype(np.float32)
    scan = Scan(xyz, xyz[:, 0], ring=np.repeat(np.arange(ROWS), COLUMNS), beams=ROWS)
    channels = A.roll(shown(scan), columns).inputs
    found = torch.atan2(channels[2], channels[1])
    torch.testing.assert_close(found, torch.from_numpy(azimuths(COLUMNS)).float().expand(ROWS, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mirrored_image_is_the_image_of_the_mirrored_scan(seed):
    scan = sweep(seed)
    mirrored, other = A.mirror(shown(scan)), view(turned(scan, 0, side=-1))
    np.testing.assert_array_equal(mirrored.inputs.numpy(), other.channels)
    cell = view(scan).cell
    np.testing.assert_array_equal(np.where(cell >= 0, mirrored.row_map.numpy()[cell], -1), other.cell)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stretched_image_is_the_image_of_the_scaled_scan(seed):
    scan = sweep(seed)
    stretched = A.stretch(shown(scan), 1.2, torch.zeros(ROWS, COLUMNS))
    np.testing.assert_allclose(stretched.numpy(), view(turned(scan, 0, scale=1.2)).channels, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_augmented_range_image_is_geometry(seed):
    """Range, azimuth and elevation agree with one another and with the place; empty cells stay empty."""
    settings = Augment(rotate=True, flip=True, scale=(0.9, 1.1), jitter=0.05, drop=0.2)
    before = shown(sweep(seed))
    found = apply_range(before, settings, np.random.default_rng(seed))
    metres = found.inputs[:4] * torch.tensor([20.0, 20, 20, 2])[:, None, None]
    torch.testing.assert_close(metres[0], metres[1:].norm(dim=0))
    there = found.inputs[4] == 1
    assert not found.inputs[:, ~there].any() and 0 < there.sum() < (before[4] == 1).sum()
    columns = column_of(metres[1:, there].T.numpy(), COLUMNS)
    assert columns.tolist() == there.nonzero()[:, 1].tolist()
    assert found.inputs.dtype == torch.float32 and found.rows == ROWS * COLUMNS


# Row maps: every single augmentation, and all at once

RANGE = {
    "roll": lambda x, y, rng: A.roll(x, 5, y),
    "mirror": lambda x, y, rng: A.mirror(x, y),
    "drop": lambda x, y, rng: A.drop_cells(x, torch.from_numpy(rng.random(x.shape[1:]) > 0.3), y),
    "all": lambda x, y, rng: apply_range(
        x, Augment(rotate=True, flip=True, scale=(0.9, 1.1), jitter=0.1, drop=0.3), rng, y
    ),
    "nothing": lambda x, y, rng: apply_range(x, Augment(), rng, y),
}
POINTS = {
    "shuffle": lambda x, y, rng: apply_points(x, Augment(shuffle=True), rng, y),
    "drop": lambda x, y, rng: apply_points(x, Augment(drop=0.4), rng, y),
    "all": lambda x, y, rng: apply_points(
        x, Augment(rotate=True, flip=True, scale=(0.9, 1.1), jitter=0.1, drop=0.3, shuffle=True), rng, y
    ),
    "nothing": lambda x, y, rng: apply_points(x, Augment(), rng, y),
}
IMAGE = {
    "flip": lambda x, y, rng: A.flip(x, y),
    "crop": lambda x, y, rng: A.crop(x, 2, 1, 3, 5, y),
    "all": lambda x, y, rng: apply_image(x, Augment(flip=True, crop=0.7, colour=0.3), rng, y),
    "nothing": lambda x, y, rng: apply_image(x, Augment(), rng, y),
}
VIEWS = {
    "range": (RANGE, lambda seed: shown(sweep(seed)), (ROWS, COLUMNS)),
    "points": (POINTS, lambda seed: torch.from_numpy(sweep(seed, 40).xyz), (40,)),
    "image": (IMAGE, random_picture, (6, 9)),
}
CASES = [(kind, name) for kind, (steps, _, _) in VIEWS.items() for name in steps]


def augmented(kind, name, seed):
    """Labels say which row they belonged to, so they tell where each row went whatever the map says."""
    steps, inputs, shape = VIEWS[kind]
    found = steps[name](inputs(seed), labels_of(*shape), np.random.default_rng(seed))
    return found, math.prod(shape)


@pytest.mark.parametrize("kind, name", CASES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_map_says_where_labels_went(kind, name, seed):
    found, rows = augmented(kind, name, seed)
    labels = found.labels.flatten()
    assert found.row_map.shape == (rows,) and len(labels) == found.rows
    there = found.row_map >= 0
    assert torch.equal(labels[found.row_map[there]], torch.arange(rows)[there])
    assert there.sum() == (labels != UNLABELLED).sum() > 0  # and nowhere else did any come from


@pytest.mark.parametrize("kind, name", CASES)
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("seed", SEEDS)
def test_augment_then_match_is_match_then_augment(kind, name, side, seed):
    found, rows = augmented(kind, name, seed)
    rng = np.random.default_rng(seed + 1)
    mine, others = rng.integers(-1, rows, 200), rng.integers(-1, 11, 200)
    moved = np.where(mine >= 0, found.row_map.numpy()[mine], -1)  # elements found in the augmented view
    if side == "source":
        after = from_elements(moved, others, found.rows, 11)
        before = from_elements(mine, others, rows, 11).remap(source=found.row_map, sources=(found.rows,))
    else:
        after = from_elements(others, moved, 11, found.rows)
        before = from_elements(others, mine, 11, rows).remap(target=found.row_map, targets=(found.rows,))
    assert torch.equal(after.source, before.source) and torch.equal(after.target, before.target)
    assert torch.equal(after.weight, before.weight)
    assert (after.sources, after.targets) == (before.sources, before.targets)


@pytest.mark.parametrize("kind, name", CASES)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_gathered_moves_with_the_target(kind, name, seed):
    found, rows = augmented(kind, name, seed)
    rng = np.random.default_rng(seed + 1)
    match = from_elements(rng.integers(-1, 11, 200), rng.integers(-1, rows, 200), 11, rows)
    features = torch.randn(11, 3, generator=torch.Generator().manual_seed(seed))
    mean, mask = match.remap(target=found.row_map, targets=(found.rows,)).gather(features)
    before, reached = match.gather(features)
    labels = found.labels.flatten()
    torch.testing.assert_close(mean, torch.where(labels[:, None] >= 0, before[labels], 0))
    assert torch.equal(mask, (labels >= 0) & reached[labels])


@pytest.mark.parametrize("kind, name", CASES)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_gathered_stays_when_the_source_moves(kind, name, seed):
    found, rows = augmented(kind, name, seed)
    rng = np.random.default_rng(seed + 1)
    mine, others = rng.integers(-1, rows, 200), rng.integers(-1, 11, 200)
    features = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    labels = found.labels.flatten()
    mean, mask = (
        from_elements(mine, others, rows, 11)
        .remap(source=found.row_map, sources=(found.rows,))
        .gather(features[labels.clamp_min(0)])
    )
    left = np.where(np.isin(mine, labels.numpy()), mine, -1)  # points whose row is still there
    expected, reached = from_elements(left, others, rows, 11).gather(features)
    torch.testing.assert_close(mean, expected)
    assert torch.equal(mask, reached)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_batch_of_augmented_items_with_an_empty_one(seed):
    scans = [sweep(seed), sweep(seed, 0), sweep(seed + 1)]
    views = [apply_range(shown(s), Augment(rotate=True, drop=0.2), np.random.default_rng(seed)) for s in scans]
    cells = ROWS * COLUMNS
    matches = [from_elements(np.arange(len(s)), view(s).cell, len(s), cells) for s in scans]
    batch = collate(matches).remap(target=collate_row_maps([v.row_map for v in views], [cells] * 3))
    alone = collate([m.remap(target=v.row_map) for m, v in zip(matches, views, strict=True)])
    assert torch.equal(batch.source, alone.source) and torch.equal(batch.target, alone.target)
    assert set(batch.item.tolist()) == {0, 2}


# The rest


@pytest.mark.parametrize("seed", SEEDS)
def test_points_turn_as_a_body(seed):
    scan = sweep(seed)
    points = torch.cat([torch.from_numpy(scan.xyz), torch.rand(len(scan), 2)], dim=1)
    found = apply_points(points, Augment(rotate=True, flip=True, scale=(1.5, 1.5)), np.random.default_rng(seed))
    before, after = (torch.pdist(x[:, :3].double()) for x in (points, found.inputs))
    torch.testing.assert_close(after, 1.5 * before, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.inputs[:, 2], 1.5 * points[:, 2])
    assert torch.equal(found.inputs[:, 3:], points[:, 3:])
    assert not torch.allclose(found.inputs[:, :2], points[:, :2])


def test_jitter_has_the_deviation_asked_for():
    points = torch.zeros(20000, 3)
    found = apply_points(points, Augment(jitter=0.3), np.random.default_rng(0)).inputs
    assert found.std().item() == pytest.approx(0.3, rel=0.02)
    channels = torch.zeros(5, 100, 200)
    channels[[0, 1, 4]] = 1.0  # 20 m ahead
    found = apply_range(channels, Augment(jitter=0.3), np.random.default_rng(0)).inputs
    assert (20 * (found[0] - 1)).std().item() == pytest.approx(0.3, rel=0.02)
    torch.testing.assert_close(found[0], found[1])


def test_some_point_is_always_left():
    found = apply_points(torch.ones(3, 3), Augment(drop=0.999), np.random.default_rng(0), torch.arange(3))
    assert found.rows == 1 == (found.row_map >= 0).sum()
    empty = apply_points(torch.ones(0, 3), Augment(drop=0.5, shuffle=True), np.random.default_rng(0))
    assert empty.rows == 0 and empty.labels is None


def test_crops_of_pictures_of_one_size_have_one_size():
    found = [apply_image(random_picture(0), Augment(crop=0.5), np.random.default_rng(seed)) for seed in range(20)]
    assert {tuple(f.inputs.shape) for f in found} == {(3, 3, 4)}
    assert len({f.inputs.sum().item() for f in found}) > 5  # at different places


@pytest.mark.parametrize("seed", SEEDS)
def test_colours_stay_colours(seed):
    before = random_picture(seed)
    found = apply_image(before, Augment(colour=0.5), np.random.default_rng(seed))
    assert found.inputs.min() >= 0 and found.inputs.max() <= 1 and not torch.equal(found.inputs, before)
    assert torch.equal(found.row_map, torch.arange(54))
    torch.testing.assert_close(A.recolour(before, 1.0, 1.0, 1.0), before)
    grey = A.recolour(before, 1.0, 1.0, 0.0)
    torch.testing.assert_close(grey[0], grey[2])
    assert A.recolour(before, 1.0, 0.0, 1.0).std().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind, name", CASES)
def test_the_same_stream_gives_the_same_and_inputs_are_left_alone(kind, name):
    steps, inputs, shape = VIEWS[kind]
    before = inputs(0)
    kept = before.clone()
    first = steps[name](before, labels_of(*shape), np.random.default_rng(3))
    second = steps[name](before, labels_of(*shape), np.random.default_rng(3))
    assert torch.equal(first.inputs, second.inputs) and torch.equal(first.row_map, second.row_map)
    assert torch.equal(before, kept)


def test_a_view_says_what_it_does_not_read():
    settings = Augment(rotate=True, colour=0.2, flip=True)
    assert settings.unread("image") == ("rotate",)
    assert settings.unread("range") == settings.unread("points") == ("colour",)
    assert Augment().unread("image") == ()
    assert set().union(*READ.values()) == set(Augment.model_fields)


@pytest.mark.parametrize(
    "wrong", [{"scale": (1.2, 0.8)}, {"scale": (0.0, 1.0)}, {"drop": 1.0}, {"crop": 0.0}, {"jitter": -1}, {"roll": 1}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        Augment(**wrong)
