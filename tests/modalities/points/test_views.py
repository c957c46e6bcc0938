"""What each side sees of a frame, and that its rows go on meaning the same points however the view is changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from points_small import COLUMNS, IMAGE, VIEWS, points_data

from xmodal_kd.modalities.points.data.augment_config import Augment
from xmodal_kd.modalities.points.data.config import PointsData, View
from xmodal_kd.modalities.points.data.frame import UNLABELLED, Camera, Frame, Picture, Scan
from xmodal_kd.modalities.points.data.simulator.camera import CameraSpec
from xmodal_kd.modalities.points.data.simulator.cast import simulate
from xmodal_kd.modalities.points.data.simulator.sensors import SENSORS
from xmodal_kd.modalities.points.views.range_image import SCALES, azimuths
from xmodal_kd.modalities.points.views.views import Seen, augmented, fitted, see, thinned
from xmodal_kd.runtime.errors import UserError

EVERYTHING = Augment(rotate=True, flip=True, drop=0.2, shuffle=True, crop=0.75)
KINDS = list(VIEWS)


@pytest.fixture(scope="module")
def moment() -> list[Frame]:
    """Two sweeps of a simulated street with a photograph."""
    sensor = SENSORS["hdl64e"].with_columns(COLUMNS)
    return simulate("train", 3, sensor, camera=CameraSpec(height=IMAGE[0], width=IMAGE[1]), sweeps=2)


@pytest.fixture(scope="module")
def config() -> PointsData:
    return points_data()


def view(kind: str) -> View:
    return View.model_validate(VIEWS[kind])


def seen_of(moment: list[Frame], kind: str, config: PointsData) -> Seen:
    return see(moment, view(kind), config)


def shown_place(seen: Seen, rows: np.ndarray) -> np.ndarray:
    """``(n, 3)`` where the model is told that these rows are, in metres."""
    if seen.inputs.ndim == 2:
        return seen.inputs[rows, :3].numpy()
    place: np.ndarray = seen.inputs[1:4].flatten(1)[:, rows].numpy().T * SCALES[1:]
    return place


def radius_height(xyz: np.ndarray) -> np.ndarray:
    """What turning about z and mirroring leave alone."""
    return np.stack([np.hypot(xyz[:, 0], xyz[:, 1]), xyz[:, 2]], axis=1)


# ---------------------------------------------------------------- as it is


@pytest.mark.parametrize("kind", ["scan", "sparse", "points"])
def test_the_row_of_a_point_is_where_the_point_is(moment: list[Frame], config: PointsData, kind: str) -> None:
    seen, scan = seen_of(moment, kind, config), moment[0].scan
    shown = np.flatnonzero(seen.element >= 0)
    assert len(shown) > 0.8 * len(scan) * (1 if kind == "scan" else 1 / 4)
    np.testing.assert_allclose(shown_place(seen, seen.element[shown]), scan.xyz[shown], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(seen.xyz[seen.element[shown]], scan.xyz[shown], rtol=1e-5, atol=1e-5)
    assert scan.labels is not None and (seen.labels[seen.element[shown]] == scan.labels[shown]).all()


def test_cells_without_a_return_are_no_rows(moment: list[Frame], config: PointsData) -> None:
    seen = seen_of(moment, "scan", config)
    empty = ~seen.valid
    assert 0 < empty.sum() < seen.rows and set(seen.labels[empty]) == {UNLABELLED}
    assert np.isnan(seen.xyz[empty]).all() and not seen.inputs.flatten(1)[:, torch.from_numpy(empty)].any()
    assert set(seen.element[seen.element >= 0]) == set(np.flatnonzero(seen.valid))


def test_a_sparse_view_has_every_fourth_row_of_the_dense_one(moment: list[Frame], config: PointsData) -> None:
    dense, sparse = seen_of(moment, "scan", config), seen_of(moment, "sparse", config)
    assert sparse.inputs.shape == (5, 16, COLUMNS)
    torch.testing.assert_close(sparse.inputs, dense.inputs[:, ::4])
    assert (sparse.labels.reshape(16, -1) == dense.labels.reshape(64, -1)[::4]).all()


def test_a_pixel_shows_the_points_that_project_onto_it(moment: list[Frame], config: PointsData) -> None:
    seen, scan, picture = seen_of(moment, "image", config), moment[0].scan, moment[0].pictures[0]
    uv, depth = picture.camera.project(scan.xyz)
    shown = np.flatnonzero(seen.element >= 0)
    assert len(shown) > 50 and depth[shown].min() >= 1
    u, v = uv[shown].astype(int).T
    assert (seen.element[shown] == v * IMAGE[1] + u).all()
    assert seen.valid.all() and seen.inputs.shape == (3, *IMAGE) and 0 <= seen.inputs.min() <= seen.inputs.max() <= 1
    # of several points in one pixel its label is the nearest one's
    assert scan.labels is not None
    for pixel in np.unique(seen.element[shown]):
        inside = shown[seen.element[shown] == pixel]
        assert seen.labels[pixel] == scan.labels[inside[depth[inside].argmin()]]
    assert (seen.labels >= 0).sum() == len(np.unique(seen.element[shown]))


def test_pixels_that_no_point_hits_have_labels_only_where_all_are_asked_for(moment: list[Frame]) -> None:
    few = see(moment, view("image"), points_data())
    every = see(moment, view("image"), points_data(pixel_labels="all"))
    assert (few.labels >= 0).sum() < 0.6 * (every.labels >= 0).sum()
    truth = moment[0].pictures[0].labels
    assert truth is not None and (every.labels == truth.reshape(-1)).all()
    both = (few.labels >= 0) & (every.labels >= 0)
    assert (few.labels == every.labels)[both].mean() > 0.85, "but for edges within a pixel they agree"
    assert (few.element == every.element).all()


def test_a_photograph_is_brought_to_size_with_its_camera(moment: list[Frame]) -> None:
    frame = moment[0]
    small = fitted(frame, (12, 32))
    assert small.rgb.shape == (12, 32, 3) and small.depth is not None and small.depth.shape == (12, 32)
    uv, _ = frame.pictures[0].camera.project(frame.scan.xyz)
    half, _ = small.camera.project(frame.scan.xyz)
    np.testing.assert_allclose(half, uv / 2)
    assert fitted(frame, IMAGE) is frame.pictures[0]


# ---------------------------------------------------------------- several sweeps


def test_a_fused_view_has_the_older_points_but_only_the_newest_ones_are_matched(
    moment: list[Frame], config: PointsData
) -> None:
    newest = moment[0].scan
    fused = see(moment, View(sees="points", sweeps=2), config)
    assert fused.rows > 1.5 * len(newest) and len(fused.element) == len(newest)
    assert (fused.element == np.arange(len(newest))).all()
    np.testing.assert_allclose(fused.xyz[: len(newest)], newest.xyz)
    as_image = seen_of(moment, "fused", config)
    shown = np.flatnonzero(as_image.element >= 0)
    away = np.linalg.norm(as_image.xyz[as_image.element[shown]], axis=1) - newest.distance[shown]
    assert len(shown) > 0.5 * len(newest) and (away <= 1e-4).all() and (away > -0.51).all()


def test_beams_are_thinned_before_sweeps_are_fused(moment: list[Frame], config: PointsData) -> None:
    whole = see(moment, View(sees="points", sweeps=2), config)
    thin = see(moment, View(sees="points", sweeps=2, beams=16), config)
    assert 0.15 < thin.rows / whole.rows < 0.35
    ring = moment[0].scan.ring
    assert ring is not None and set(ring[thin.element >= 0] % 4) == {0} and (thin.element[ring % 4 > 0] == -1).all()
    shown = np.flatnonzero(thin.element >= 0)
    np.testing.assert_allclose(thin.xyz[thin.element[shown]], moment[0].scan.xyz[shown])


def test_a_view_takes_no_more_sweeps_than_its_own(moment: list[Frame], config: PointsData) -> None:
    third = replace(moment[1], key="third")
    two, of_three = (see(frames, View(sees="points", sweeps=2), config) for frames in (moment, [*moment, third]))
    assert two.rows == of_three.rows


# ---------------------------------------------------------------- thinned, augmented


@pytest.mark.parametrize("kind", KINDS)
def test_rows_keep_their_points_through_every_augmentation(moment: list[Frame], config: PointsData, kind: str) -> None:
    before = seen_of(moment, kind, config)
    element_before = before.element.copy()
    lost = 0
    for seed in range(6):
        after = augmented(before, view(kind), EVERYTHING, np.random.default_rng(seed))
        kept = np.flatnonzero(after.element >= 0)
        assert (before.element[kept] >= 0).all(), "an augmentation shows nothing new"
        lost += len(before.element[before.element >= 0]) - len(kept)
        old, new = before.element[kept], after.element[kept]
        assert (after.labels[new] == before.labels[old]).all() and after.valid[new].all()
        if kind == "image":
            one, other = (x.inputs.flatten(1)[:, rows].numpy() for x, rows in ((before, old), (after, new)))
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(before.xyz[old], after.xyz[new])
        else:
            where = shown_place(after, new)
            np.testing.assert_allclose(radius_height(where), radius_height(before.xyz[old]), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(where, after.xyz[new], rtol=1e-5, atol=1e-5)
        assert after.rows == len(after.valid) == len(after.xyz) == len(after.labels)
    assert lost > 0
    assert (before.element == element_before).all(), "the view that is remembered stays as it is"


def test_a_turned_cell_still_lies_at_its_columns_azimuth(moment: list[Frame], config: PointsData) -> None:
    before = seen_of(moment, "sparse", config)
    for seed in range(4):
        after = augmented(before, view("sparse"), Augment(rotate=True, flip=True), np.random.default_rng(seed))
        x, y = after.xyz[after.valid][:, :2].T
        column = np.flatnonzero(after.valid) % COLUMNS
        off = np.arctan2(y, x) - azimuths(COLUMNS)[column]
        assert np.abs((off + np.pi) % (2 * np.pi) - np.pi).max() < np.pi / COLUMNS + 1e-3


def test_images_of_other_rows_are_turned_flipped_and_scaled_alike(moment: list[Frame], config: PointsData) -> None:
    augment = Augment(rotate=True, flip=True, scale=(0.8, 1.2))
    for seed in range(4):
        dense, sparse = (
            augmented(seen_of(moment, kind, config), view(kind), augment, np.random.default_rng(seed))
            for kind in ("scan", "sparse")
        )
        torch.testing.assert_close(sparse.inputs, dense.inputs[:, ::4])


def test_distance_of_a_turned_point_is_its_own(moment: list[Frame], config: PointsData) -> None:
    augment = Augment(rotate=True, scale=(1.5, 1.5))
    after = augmented(seen_of(moment, "points", config), view("points"), augment, np.random.default_rng(0))
    torch.testing.assert_close(after.inputs[:, 3], after.inputs[:, :3].norm(dim=1))
    assert after.inputs[:, 3].max() > seen_of(moment, "points", config).inputs[:, 3].max()


def test_a_set_of_points_is_thinned_and_the_rest_matches_nothing(moment: list[Frame], config: PointsData) -> None:
    before = seen_of(moment, "points", config)
    after = thinned(before, 100, np.random.default_rng(0))
    assert after.rows == 100 and (after.element >= 0).sum() == 100 < before.rows
    shown = np.flatnonzero(after.element >= 0)
    np.testing.assert_allclose(after.xyz[after.element[shown]], moment[0].scan.xyz[shown])
    assert thinned(before, before.rows, np.random.default_rng(0)) is before
    image = seen_of(moment, "image", config)
    assert thinned(image, 10, np.random.default_rng(0)) is image


# ---------------------------------------------------------------- frames that lack something


def test_what_a_frame_lacks_is_named(moment: list[Frame], config: PointsData) -> None:
    scan = moment[0].scan
    blind = Frame("000007", Scan(scan.xyz, scan.intensity))
    with pytest.raises(UserError, match="000007: it has no picture"):
        see([blind], view("image"), config)
    with pytest.raises(UserError, match="find them first"):
        see([blind], view("sparse"), config)
    with pytest.raises(UserError, match="choose a divisor"):
        see(moment, View(sees="range", beams=10), config)
    with pytest.raises(UserError, match="000007 has no pose"):
        see([moment[0], blind], View(sees="points", sweeps=2), config)
    without = see([blind], View(sees="range", columns=COLUMNS), config)
    assert without.inputs.shape == (5, 64, COLUMNS) and set(without.labels) == {UNLABELLED}, "rows by elevation"


def test_a_camera_that_sees_nothing_matches_nothing(moment: list[Frame], config: PointsData) -> None:
    camera = moment[0].pictures[0].camera
    behind = camera.lidar_to_camera.copy()
    behind[:3] = -behind[:3]  # every point lies behind it
    picture = Picture(Camera(camera.intrinsics, behind, *IMAGE), moment[0].pictures[0].rgb)
    seen = see([replace(moment[0], pictures=(picture,))], view("image"), config)
    front = moment[0].scan.xyz[:, 0] > 0
    assert (seen.element[front] == -1).all()
