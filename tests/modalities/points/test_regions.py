import numpy as np
import pytest

from xmodal_kd.modalities.points.data.classes import EIGHT
from xmodal_kd.modalities.points.data.frame import CLASSES
from xmodal_kd.modalities.points.views.regions import HEIGHT, RADIUS, SUPERVOXELS, VOXELS, cells, minor, supervoxels

PERSON, MINOR = CLASSES.index("person"), minor(EIGHT)


def scattered(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(-50, 50, (n, 2)), rng.uniform(-2, 4, n)])


def test_cells_are_those_of_a_loop_over_points() -> None:
    xyz = np.concatenate([scattered(300), [[RADIUS + 1, 0, 0], [0, 0, HEIGHT[1]], [np.nan, 0, 0]]])
    found = cells(xyz, VOXELS)
    for point, cell in zip(xyz[:300], found[:300], strict=True):
        x, y, z = point
        r = int(np.hypot(x, y) / RADIUS * VOXELS[0])
        a = int((np.pi - np.arctan2(y, x)) / (2 * np.pi) * VOXELS[1])
        h = int((z - HEIGHT[0]) / (HEIGHT[1] - HEIGHT[0]) * VOXELS[2])
        expected = (r * VOXELS[1] + a) * VOXELS[2] + h if r < VOXELS[0] else -1
        assert cell == expected
    assert (found[300:] == -1).all()


def test_a_voxel_lies_in_one_supervoxel() -> None:
    xyz = scattered(3000)
    small, large = cells(xyz, VOXELS), cells(xyz, SUPERVOXELS)
    for voxel in np.unique(small[small >= 0]):
        assert len(np.unique(large[small == voxel])) == 1


def test_so_many_supervoxels_are_drawn_each_of_points_of_one_cell() -> None:
    xyz = scattered(3000)
    found = supervoxels(xyz, np.zeros(len(xyz), int), 4, np.random.default_rng(1), MINOR)
    assert set(found) == {-1, 0, 1, 2, 3}
    for number in range(4):
        assert len(np.unique(cells(xyz, SUPERVOXELS)[found == number])) == 1


def test_supervoxels_of_minor_classes_are_drawn_more_often() -> None:
    xyz = scattered(3000)
    labels = np.zeros(len(xyz), int)
    held = cells(xyz, SUPERVOXELS)
    chosen = np.bincount(held[held >= 0]).argmax()
    drawn = []
    for full in (False, True):
        labels[held == chosen] = PERSON if full else 0
        rng = np.random.default_rng(2)
        drawn.append(sum((supervoxels(xyz, labels, 1, rng, MINOR)[held == chosen] == 0).any() for _ in range(400)))
    assert drawn[1] > 2.5 * drawn[0]  # f falls from 5 to 1


@pytest.mark.parametrize("xyz", [np.zeros((0, 3)), np.full((5, 3), np.nan), np.array([[1.0, 2.0, 0.0]])])
def test_nothing_to_draw_from_is_no_error(xyz: np.ndarray) -> None:
    found = supervoxels(xyz, np.zeros(len(xyz), int), 4, np.random.default_rng(0), MINOR)
    assert found.shape == (len(xyz),) and (found == -1).all()
