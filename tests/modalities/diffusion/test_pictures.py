"""Pictures show the right pixels at the right place, large enough to be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal_kd.modalities.diffusion.show.curves import draw_curve, lines
from xmodal_kd.modalities.diffusion.show.pictures import as_heat, as_pixels, contact_sheet, grid, write_grid


def test_pixels_are_clipped_rounded_and_grey_or_coloured() -> None:
    values = torch.tensor([-1.0, 1.0, 0.0, 7.0, -7.0, float("nan")])
    assert as_pixels(values.reshape(1, 1, 1, 6))[0, 0, :, 0].tolist() == [0, 255, 128, 255, 0, 0]
    colours = torch.tensor([1.0, -1.0, 0.0]).reshape(1, 3, 1, 1)
    assert as_pixels(colours).reshape(3).tolist() == [255, 0, 128]


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    sheet = np.asarray(grid(images, columns=3))
    assert sheet.shape == (2 * 50 + 2, 3 * 50 + 2, 3)
    fourth = sheet[52:100, 2:50, 0]
    assert (fourth[::6, ::6] == as_pixels(images)[3, :, :, 0]).all(), "the fourth image begins the second row"
    assert (fourth[:6, :6] == fourth[0, 0]).all(), "nearest neighbour"
    assert (sheet[52:, 104:] == 255).all(), "where no image is left the sheet is empty"


@pytest.mark.parametrize(("shape", "size"), [((9, 3, 32, 32), (3 * 66 + 2,) * 2), ((2, 3, 64, 64), (134, 68))])
def test_sizes(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    assert grid(torch.zeros(shape)).size == size


def test_scale_is_taken_as_given() -> None:
    assert grid(torch.zeros(1, 1, 8, 8), scale=2).size == (20, 20)


def test_arrays_are_coloured_with_low_rows_at_the_bottom() -> None:
    ramp = torch.linspace(-1, 1, 4).reshape(1, 1, 4, 1)
    colours = as_heat(ramp)[0, :, 0]
    assert colours[-1].tolist() == [68, 1, 84] and colours[0].tolist() == [253, 231, 37], "the ends of viridis"
    two = torch.cat([ramp, -ramp], dim=1)
    assert as_heat(two).shape == (1, 8, 1, 3)
    assert grid(two.expand(1, 2, 4, 8)).size == (52, 52), "two channels are no picture: they stand below each other"


@pytest.mark.parametrize(("shape", "size"), [((2, 4, 8), (2 * 98 + 2, 52)), ((1, 6), (6 * 48 + 4, 52))])
def test_arrays_of_other_axes_are_shown_too(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    assert grid(torch.zeros(shape)).size == size
    assert np.asarray(grid(torch.zeros(shape)))[2, 2].tolist() == [33, 145, 140], "the middle of viridis"


def test_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="n > 0"):
        grid(torch.zeros(0, 1, 8, 8))
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet(Path("x.png"), [])


def test_files(tmp_path: Path) -> None:
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    with Image.open(write_grid(tmp_path / "deep" / "grid.png", images)) as found:
        assert found.format == "PNG" and (np.asarray(found) == np.asarray(grid(images))).all()


def test_a_contact_sheet_has_a_labelled_row_for_each_model(tmp_path: Path) -> None:
    rows = [("teacher, 64 steps", torch.full((3, 1, 8, 8), -1.0)), ("student, 4", torch.zeros(3, 1, 8, 8))]
    with Image.open(contact_sheet(tmp_path / "sheet.png", rows, "The same noise")) as found:
        sheet = np.asarray(found)
    assert sheet.shape[0] == 28 + 2 * 52
    right = sheet[28:, -152:]
    assert (right[2:50, 2:50] == 0).all() and (right[54:102, 2:50] == 128).all()
    left = sheet[28:, : sheet.shape[1] - 152]
    assert (left[:52] < 128).any() and (left[52:] < 128).any(), "each row has its label"


def test_a_long_title_is_not_cut(tmp_path: Path) -> None:
    rows = [("a", torch.zeros(1, 1, 8, 8))]
    widths = []
    for title in ("", "A title that is a good deal wider than the only image below it"):
        with Image.open(contact_sheet(tmp_path / "sheet.png", rows, title)) as found:
            widths.append(found.width)
    assert widths[1] > 2 * widths[0]


POINTS = [
    {"role": "teacher", "solver": "ddim", "nfe": 64, "metrics": {"fd_clf": 33.0}},
    {"role": "teacher", "solver": "ddim", "nfe": 4, "metrics": {"fd_clf": 116.0}},
    {"role": "student", "solver": "ddim", "nfe": 4, "metrics": {"fd_clf": 34.0}},
    {"role": "student", "solver": "ddim", "nfe": 4, "metrics": {"fd_clf": 32.0}},
    {"role": "student", "solver": "ddim", "nfe": 1, "metrics": {"fd_clf": float("nan")}},
    {"role": "student", "solver": "ddim", "nfe": 2, "metrics": {}},
]


def test_points_become_lines_in_order_with_seeds_together() -> None:
    assert lines(POINTS, "fd_clf") == {
        ("teacher", "ddim"): [(4, 116.0, 116.0, 116.0), (64, 33.0, 33.0, 33.0)],
        ("student", "ddim"): [(4, 33.0, 32.0, 34.0)],
    }


@pytest.mark.parametrize("floor", [None, 12.0, -0.1])
def test_a_curve_is_drawn(tmp_path: Path, floor: float | None) -> None:
    with Image.open(draw_curve(tmp_path / "curve.png", POINTS, floor=floor, title="Digits")) as found:
        assert found.size == (768, 504)
        assert len(np.unique(np.asarray(found.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_a_curve_without_points_is_an_empty_picture(tmp_path: Path) -> None:
    assert draw_curve(tmp_path / "curve.png", [], "kid_clf").is_file()
