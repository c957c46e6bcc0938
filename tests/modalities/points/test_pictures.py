"""Pictures show each label in its colour at its place, and colours can be told from the paper and from each other."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal_kd.modalities.points.data.frame import CLASSES, Camera, Frame, Picture, Scan
from xmodal_kd.modalities.points.show.palette import COLOURS, FAINT, colours, legend
from xmodal_kd.modalities.points.show.pictures import (
    GAP,
    HEAD,
    SIDE,
    STRIP,
    birds_eye,
    density_curve,
    in_view,
    lines,
    overview_pictures,
    projected,
    range_strip,
    shades,
    sheet,
    strips,
)

CAR, PERSON = CLASSES.index("car"), CLASSES.index("person")


def has(image: Image.Image | np.ndarray, label: int) -> np.ndarray:
    """``(h, w)`` where an image has a label's colour."""
    return (np.asarray(image) == colours(np.array(label))).all(axis=-1)


def luminance(colour: tuple[int, ...]) -> float:
    """Relative luminance (WCAG 2.1)."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_every_class_has_a_colour_seen_on_white_and_on_black() -> None:
    assert len(COLOURS) >= 19, "SemanticKITTI's"
    for colour in COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) >= 3 and (luminance(colour) + 0.05) / 0.05 >= 3
    for a, b in combinations(COLOURS, 2):
        assert np.abs(np.subtract(a, b)).sum() > 80


def test_colours_of_labels() -> None:
    found = colours(np.array([[0, len(COLOURS)], [-1, 2]]))
    assert found.shape == (2, 2, 3)
    assert (found[0, 0] == found[0, 1]).all(), "classes beyond the palette begin again"
    assert tuple(found[1, 0]) == FAINT and tuple(found[1, 1]) == COLOURS[2]


def test_the_legend_shows_all_classes_in_any_width() -> None:
    wide, narrow = legend(900, CLASSES), legend(150, CLASSES)
    for label in range(len(CLASSES)):
        assert has(wide, label).sum() > 100 and has(narrow, label).sum() > 100
    assert narrow.height > 3 * wide.height and (wide.width, narrow.width) == (900, 150)


def test_strips_have_one_size_whatever_their_rows() -> None:
    labels = np.full((4, 8), CAR)
    labels[0] = PERSON
    page = range_strip([("few", labels), ("many", np.full((64, 256), -1))], CLASSES)
    pixels = np.asarray(page)[HEAD : HEAD + STRIP[1], GAP : GAP + STRIP[0]]
    assert has(pixels, PERSON)[:32].all() and has(pixels, CAR)[32:].all()
    below = np.asarray(page)[2 * HEAD + STRIP[1] :][: STRIP[1], GAP : GAP + STRIP[0]]
    assert has(below, -1).all()


def test_distances_are_darker_where_near() -> None:
    grey = shades(np.array([[1.0, 10.0, 39.0, 1e4, np.nan, 0.0, np.inf]]))[0]
    assert (np.diff(grey[:4, 0].astype(int)) >= 0).all() and grey[0, 0] < grey[2, 0]
    assert (grey[4:] == FAINT).all()


def test_from_above_forward_is_up_and_left_is_left() -> None:
    xyz = np.array([[30.0, 0, 0], [0, 30, 0], [100, 0, 0], [-20, -20, 0], [-20, -20, 2]])
    page = birds_eye([("a", xyz, np.array([CAR, PERSON, 4, 5, 6]))], CLASSES)
    view = np.asarray(page)[HEAD : HEAD + SIDE, GAP : GAP + SIDE]
    middle = SIDE / 2
    [(row, column)] = [np.argwhere(has(view, CAR)).mean(axis=0)]
    assert row == pytest.approx(middle - 30 * SIDE / 80, abs=2) and column == pytest.approx(middle, abs=2)
    [(row, column)] = [np.argwhere(has(view, PERSON)).mean(axis=0)]
    assert row == pytest.approx(middle, abs=2) and column == pytest.approx(middle - 30 * SIDE / 80, abs=2)
    assert not has(view, 4).any(), "beyond the edge"
    assert has(view, 6).sum() == 9 and not has(view, 5).any(), "the higher point hides the lower one"


def test_points_in_the_photograph() -> None:
    rgb = np.full((20, 600, 3), 200, dtype=np.uint8)
    uv = np.array([[10.5, 5.5], [300.2, 10.7], [10.5, 5.5], [599.9, 19.9]])
    page = projected(rgb, uv, {"teacher": np.array([0, CAR, PERSON, CAR]), "student": np.full(4, -1)}, CLASSES)
    first = np.asarray(page)[HEAD : HEAD + 20, GAP : GAP + 600]
    assert np.argwhere(has(first, PERSON)).mean(axis=0).tolist() == [5, 10], "later points hide earlier ones"
    assert not has(first, 0).any() and has(first, CAR).sum() == 9 + 4
    assert len(np.unique(np.asarray(page)[HEAD : HEAD + 20, GAP + 600 + GAP : -GAP][..., 0])) <= 2
    assert rgb.max() == 200, "the photograph itself stays"
    assert first[0, 0].max() < min(max(colour) for colour in COLOURS), "darker than any label"


def test_small_photographs_are_enlarged_and_wide_ones_stacked() -> None:
    uv, labels = np.array([[5.5, 5.5]]), np.array([CAR])
    small = projected(np.zeros((96, 320, 3), np.uint8), uv, {"a": labels, "b": labels}, CLASSES)
    assert small.width > 2 * 640 and np.argwhere(has(small, CAR)[:-60])[0].tolist() == [HEAD + 10, GAP + 10]
    wide = projected(np.zeros((375, 1242, 3), np.uint8), uv, {"a": labels, "b": labels}, CLASSES)
    assert wide.width < 1300 and wide.height > 2 * 375


def test_a_picture_needs_something_to_show() -> None:
    with pytest.raises(ValueError, match="at least one panel"):
        sheet([], 1, "", CLASSES)


@pytest.fixture
def frame() -> Frame:
    """A wall 10 m ahead seen by 8 beams, with a post 4 m ahead of its middle, and a camera at the sensor."""
    azimuth, up = np.meshgrid(np.linspace(0.5, -0.5, 64), np.linspace(0.1, -0.1, 8))
    ahead = np.where(abs(azimuth) < 0.03, 4.0, 10.0).ravel()
    xyz = np.stack([ahead, ahead * np.tan(azimuth.ravel()), ahead * np.tan(up.ravel())], axis=1)
    labels = np.where(ahead == 4, 5, 4)
    scan = Scan(xyz, np.zeros(len(xyz)), ring=np.repeat(np.arange(8), 64), beams=8, labels=labels)
    to_camera = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
    camera = Camera(np.array([[100.0, 0, 64], [0, 100, 16], [0, 0, 1]]), to_camera, 32, 128)
    return Frame("drive/7", scan, pictures=(Picture(camera, np.full((32, 128, 3), 250, np.uint8)),))


def test_strips_drop_the_rows_that_a_role_does_not_see(frame: Frame) -> None:
    sparse = np.where(frame.scan.ring % 4 == 0, 4, -1)
    rows = strips(frame.scan, {"teacher": frame.scan.labels, "student": sparse, "silent": np.full(512, -1)}, 256)
    assert [(caption, image.shape) for caption, image in rows] == [
        ("distance", (8, 256)), ("teacher, 8 rows", (8, 256)), ("student, 2 rows", (2, 256)),
        ("silent, 8 rows", (8, 256)),
    ]  # fmt: skip
    assert set(np.unique(rows[1][1])) == {-1, 4, 5}


def test_a_scan_without_rings_is_shown_by_elevation(frame: Frame) -> None:
    scan = Scan(frame.scan.xyz, frame.scan.intensity)
    (_, distance), (_, image) = strips(scan, {"a": frame.scan.labels}, 256)
    assert distance.shape == image.shape == (40, 256) and np.isfinite(distance).sum() == (image >= 0).sum() > 250


def test_what_the_camera_sees_comes_farthest_first(frame: Frame) -> None:
    seen, uv = in_view(frame.scan, frame.pictures[0])
    depth = frame.scan.xyz[seen, 0]
    assert (np.diff(depth) <= 0).all() and {4.0, 10.0} == set(depth)
    assert (uv >= 0).all() and (uv < (128, 32)).all() and len(seen) < len(frame.scan)


@pytest.mark.parametrize("pictures", [True, False])
def test_overview(tmp_path: Path, frame: Frame, pictures: bool) -> None:
    frame = frame if pictures else Frame(frame.key, Scan(frame.scan.xyz, frame.scan.intensity))
    said = {"teacher": np.full(512, CAR), "student": np.full(512, PERSON)}
    found = overview_pictures(tmp_path / "deep", frame, said, CLASSES)
    assert [path.name for path in found.values()] == [
        f"drive-7-{name}.png" for name in (["range", "above", "photograph"] if pictures else ["range", "above"])
    ]
    assert all("drive/7" in caption for caption in found)
    for path in found.values():
        with Image.open(path) as image:
            inner = np.asarray(image)[: -legend(image.width, CLASSES).height]
        assert has(inner, CAR).any() and has(inner, PERSON).any() and has(inner, 5).any() == pictures


POINTS = [
    {"role": "student", "beams": beams, "metrics": {"miou": value}}
    for beams, value in ((16, 0.6), (64, 0.7), (16, 0.5), (8, float("nan")))
]


def test_seeds_of_a_role_are_drawn_together() -> None:
    assert lines([*POINTS, {"role": "teacher", "beams": 64, "metrics": {}}], "miou") == {
        "student": [(16, pytest.approx(0.55), 0.5, 0.6), (64, 0.7, 0.7, 0.7)]
    }


@pytest.mark.parametrize("points", [POINTS, []])
def test_a_density_curve_is_drawn(tmp_path: Path, points: list[dict[str, object]]) -> None:
    with Image.open(density_curve(tmp_path / "density.png", points, title="Streets")) as found:
        assert found.size == (768, 504)
        line = (np.asarray(found.convert("RGB")) == (30, 110, 230)).all(axis=-1)
    assert (line.sum() > 100) == bool(points), "the student's line has the student's colour"
